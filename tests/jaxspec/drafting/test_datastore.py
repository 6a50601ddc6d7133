"""A datastore's order and its search against sorting and counting lists."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from jaxspec.drafting import datastore

VOCAB = 5


def make_documents(seed=0, count=9, alphabet=3):
    """Short ones, so that separators are everywhere; some are empty."""
    rng = np.random.default_rng(seed)
    return [
        rng.integers(0, alphabet, rng.integers(0, 9)).tolist() for _ in range(count)
    ]


def flat(documents):
    """All tokens in one list, separators between and around the documents."""
    tokens = [datastore.SEPARATOR]
    for document in documents:
        tokens += [*document, datastore.SEPARATOR]
    return tokens


def tokenizer(words="abcde"):
    vocab = {word: i for i, word in enumerate(words)}
    return tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token=words[0]))


DOCUMENTS = make_documents()
STORE = datastore.build(DOCUMENTS)


@pytest.mark.parametrize("alphabet", [1, 3, 300, 70_000])
def test_places_are_in_the_order_of_what_comes_before_them(alphabet):
    documents = make_documents(alphabet, alphabet=alphabet)
    store, tokens = datastore.build(documents), flat(documents)
    assert store.tokens.tolist() == tokens
    expected = sorted(range(len(tokens)), key=lambda i: tokens[i::-1])
    assert store.suffix_array.tolist() == expected


@pytest.mark.parametrize("documents", [[], [[]], [[4]]])
def test_the_smallest_datastores_are_searched_too(documents):
    store = datastore.build(documents)
    found = datastore.rank(store, jnp.array([[4, 4], [0, 0]]))
    assert found.tolist() == [sum(t < k for t in flat(documents)) for k in (5, 0)]


def test_rank_counts_the_places_before_a_key():
    tokens, length = flat(DOCUMENTS), 4
    padded = [
        tokens[i::-1] + [datastore.SEPARATOR] * length for i in range(len(tokens))
    ]
    keys = np.random.default_rng(1).integers(-2, 4, (200, length))
    found = jax.jit(datastore.rank)(STORE, jnp.asarray(keys, jnp.int32))
    for key, count in zip(keys.tolist(), found.tolist(), strict=True):
        assert count == sum(place[:length] < key for place in padded)


def test_what_follows_a_place_ends_with_its_document():
    tokens, length = flat(DOCUMENTS), 3
    places = jnp.arange(len(tokens))
    following, lengths = datastore.forwards(STORE, places, length)
    for place, row, count in zip(range(len(tokens)), following, lengths, strict=True):
        rest = [*tokens[place + 1 :], datastore.SEPARATOR]
        expected = rest[: rest.index(datastore.SEPARATOR)][:length]
        assert row[:count].tolist() == expected


@pytest.mark.parametrize("document", [[1, -1], [[1, 2]], [2**31 - 1]])
def test_documents_of_other_things_are_refused(document):
    with pytest.raises(ValueError, match="document 1 has shape"):
        datastore.build([[3], document])


def test_the_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydivsufsort", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"pip install 'jaxspec\[retrieval\]'"
    ):
        datastore.build(DOCUMENTS)


# --- On disk ---


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "texts.datastore"
    datastore.save(path, STORE, tokenizer())
    return path


def test_a_datastore_comes_back_as_it_was(path):
    found = datastore.load(path, tokenizer())
    for name in ("tokens", "suffix_array"):
        expected = getattr(STORE, name)
        assert getattr(found, name).dtype == expected.dtype == jnp.int32
        np.testing.assert_array_equal(getattr(found, name), expected)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_damage_is_one_clear_line(path):
    """Every byte in turn is another one, and then the file is cut."""
    whole = path.read_bytes()
    cut = [whole[:n] for n in (0, 5, len(whole) // 2, len(whole) - 1)]
    stride = max(1, len(whole) // 97)
    changed = [
        whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :]
        for i in range(0, len(whole), stride)
    ]
    for data in [*cut, *changed]:
        path.write_bytes(data)
        with pytest.raises(ValueError, match=path.name) as caught:
            datastore.load(path, tokenizer())
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "words, message", [("abcdf", "has tokenizer"), ("abcdef", "has vocab_size '5'")]
)
def test_another_tokenizer_is_refused(path, words, message):
    with pytest.raises(ValueError, match=message):
        datastore.load(path, tokenizer(words))


def test_another_format_is_refused(path, monkeypatch):
    monkeypatch.setattr(datastore, "FORMAT", "2")
    with pytest.raises(ValueError, match="has format '1', expected '2'"):
        datastore.load(path, tokenizer())


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="There is no datastore .*nowhere"):
        datastore.load(tmp_path / "nowhere", tokenizer())
