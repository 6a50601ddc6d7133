"""A trimmed draft model proposes what is kept, and the text stays what it is."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
import texts
import tiny
from jaxspec import digests
from jaxspec.drafting import static, vocabulary
from jaxspec.drafting.fusion import Pair
from jaxspec.drafting.model import Trimmed, draft_model
from jaxspec.drafting.ngram import ngram
from jaxspec.drafting.rasd import rasd
from jaxspec.models import forms
from jaxspec.verification.recursive_rejection import recursive_rejection

KEEP = np.array([0, 1, 3, 5, 8, 13, 21, 22, 34, 35, 40, 47], np.int32)
COUNTS = np.array([0, 7, 2, 7, 0, 9, 2, 1])


def test_tokens_are_counted():
    counts = vocabulary.count([[1, 1, 3], [], [3, 1, 0]], 5)
    assert counts.tolist() == [1, 3, 0, 2, 0]
    for bad in (-1, 5):
        with pytest.raises(ValueError, match=f"0 to 4.*{bad}"):
            vocabulary.count([[2, bad]], 5)


@pytest.mark.parametrize(
    "size, always, keep",
    [
        (1, (), [5]),
        (2, (), [1, 5]),  # 1 and 3 are as frequent: the lower goes first
        (4, (), [1, 2, 3, 5]),
        (3, (0, 7), [0, 5, 7]),
        (3, (5, 1, 5), [1, 3, 5]),  # named and frequent is kept once
        (8, (), [1, 2, 3, 5, 6, 7]),  # what was never seen is not kept
        (8, (4,), [1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_the_most_frequent_are_kept(size, always, keep):
    assert vocabulary.select(COUNTS, size, always).tolist() == keep


@pytest.mark.parametrize(
    "size, always, message",
    [
        (0, (), "from 1"),
        (9, (), "to 8, got 9"),
        (1, (0, 1), "from 2"),
        (3, (8,), r"ids from 0 to 7, got \[8\]"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(size, always, message):
    with pytest.raises(ValueError, match=message):
        vocabulary.select(COUNTS, size, always)


def test_nothing_seen_is_nothing_to_keep():
    with pytest.raises(ValueError, match="No token was seen"):
        vocabulary.select(np.zeros(4, int), 2)
    with pytest.raises(ValueError, match="No token was counted"):
        vocabulary.coverage(np.zeros(4, int), np.array([0]))


def test_coverage_is_the_share_that_is_kept():
    assert vocabulary.coverage(COUNTS, np.array([1, 5])) == pytest.approx(16 / 28)
    shares = [
        vocabulary.coverage(COUNTS, vocabulary.select(COUNTS, size))
        for size in range(1, 9)
    ]
    assert (np.diff(shares) >= 0).all() and shares[-1] == 1.0


@pytest.mark.parametrize("name", ["small-hybrid", "mamba2-multipliers"])
def test_a_trimmed_head_is_the_full_one_gathered(name):
    model, params = tiny.model(name), tiny.params(name)
    hidden = jax.random.normal(jax.random.key(0), (2, 3, 16))
    trimmed = forms.trim_head(params, KEEP)
    found = model.logits(trimmed, hidden)
    np.testing.assert_allclose(
        found, model.logits(params, hidden)[..., KEEP], rtol=1e-5, atol=1e-6
    )
    assert trimmed["embed"] is params["embed"]  # every token can still be an input
    assert ("lm_head" in params) == (not tiny.CONFIGS[name].tie_embeddings)


@pytest.mark.parametrize("keep", [[], [3, 3], [5, 3], [-1, 3], [3, tiny.VOCAB]])
def test_columns_that_are_none_are_refused(keep):
    with pytest.raises(ValueError, match="ascending ids from 0 to 47"):
        forms.trim_head(tiny.params("mamba2"), np.array(keep, int))


@functools.cache
def trimmed():
    params = forms.trim_head(tiny.params(texts.DRAFT), KEEP)
    return Trimmed(params, jnp.asarray(KEEP))


def drafter(law="top_k", topology=(3, 2)):
    draft = tiny.model(texts.DRAFT, max_path=texts.MAX_PATH)
    return draft_model(draft, static.static_tree(topology, law))


@pytest.mark.parametrize("setting", ["sampled"])
def test_the_text_is_the_targets(setting):
    state, info = texts.speculative(drafter(), trimmed(), **texts.SETTINGS[setting])
    texts.check_same(state, texts.baseline(setting))
    assert info.kept[:, 1:].sum() > 0  # something was accepted


@pytest.mark.parametrize("law", static.KINDS)
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_drafts_are_of_kept_tokens(law, temperature):
    made = drafter(law)
    params, state = texts.start(made, trimmed(), temperature=temperature)
    propose = jax.jit(jaxspec.propose, static_argnames="drafter")
    _, draft = propose(params, state, drafter=made)
    drafted = np.asarray(draft.tree.tokens)[:, 1:]
    assert np.isin(drafted, KEEP).all()
    if law == "iid" or temperature == 0.0:
        return
    assert len(np.unique(drafted)) > 6
    np.testing.assert_array_equal(draft.vocab_ids, KEEP)


def wide_drafters():
    """By a model, and by a model beside what is retrieved: 13 children of 12 tokens."""
    draft = tiny.model(texts.DRAFT, max_path=texts.MAX_PATH)
    wide = static.static_tree((len(KEEP) + 1,), "without_replacement")
    yield draft_model(draft, wide), trimmed()
    yield rasd(draft, wide, ngram(4, 3), keep=3), Pair(trimmed(), None)


@pytest.mark.parametrize("made", range(2))
def test_a_builder_wider_than_a_trimmed_head_is_refused(made):
    drafter, params = list(wide_drafters())[made]
    message = "draws 13 children at a node, and the trimmed head has 12 tokens; draw"
    with pytest.raises(ValueError, match=message) as error:
        texts.start(drafter, params)
    assert "\n" not in str(error.value)
    state = texts.start()[1].replace(drafter=None)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(drafter.propose, params, (None, None), state.context)


def test_children_of_a_trimmed_model_are_the_likeliest_of_the_kept():
    made = drafter(topology=(3,))
    params, state = texts.start(made, trimmed())
    _, draft = jaxspec.propose(params, state, drafter=made)
    for row, prompt in enumerate(texts.PROMPTS):
        logits = tiny.oracle_logits(texts.DRAFT, prompt)[-1][KEEP]
        expected = KEEP[np.argsort(-logits, kind="stable")[:3]]
        np.testing.assert_array_equal(draft.tree.tokens[row, 1:], expected)


def test_what_is_cut_is_emitted_and_never_drafted():
    made = drafter("without_replacement")
    model = texts.target()
    params, state = texts.start(made, trimmed(), model, temperature=0.8)
    state, info = jaxspec.speculative_generate(
        params, state, target=model, drafter=made, verifier=recursive_rejection()
    )
    assert state.done.all()
    from_draft = np.asarray(info.from_draft) == 1
    tokens = np.asarray(state.tokens)
    emitted = np.arange(tokens.shape[1])[None] < np.asarray(state.lengths)[:, None]
    emitted &= np.arange(tokens.shape[1])[None] >= state.prompt_lengths[:, None]
    assert from_draft.any() and np.isin(tokens[from_draft], KEEP).all()
    assert not np.isin(tokens[emitted & ~from_draft], KEEP).all()


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "vocabulary.json"
    keep = vocabulary.select(COUNTS, 4, (0,))
    vocabulary.save(path, vocabulary.Vocabulary(keep, COUNTS, "abc"), note="hello")
    return path


def test_what_is_saved_is_loaded(saved):
    found = vocabulary.load(saved, "abc")
    assert found.keep.tolist() == [0, 1, 3, 5] and found.keep.dtype == np.int32
    assert found.counts.tolist() == COUNTS.tolist() and found.tokenizer_hash == "abc"
    assert json.loads(saved.read_text())["note"] == "hello"
    assert [path.name for path in saved.parent.iterdir()] == ["vocabulary.json"]


def test_another_tokenizer_is_refused(saved):
    with pytest.raises(ValueError, match="another tokenizer"):
        vocabulary.load(saved, "abd")


@pytest.mark.parametrize(
    "change",
    [
        {"keep": [0, 3, 1, 5]},
        {"keep": [0, 1, 1, 5]},
        {"keep": [0, 1, 3, 8]},
        {"keep": [-1, 1, 3, 5]},
        {"keep": [0, 1, 3]},
        {"keep": [0.5, 1, 3, 5]},
        {"keep": []},
        {"size": 3},
        {"counts": [1, 2]},
        {"counts": [-1] * 8},
        {"format": "jaxspec trees 1"},
        {"tokenizer_hash": None, "counts": None},
    ],
)
def test_damaged_files_are_refused(saved, change):
    record = json.loads(saved.read_text()) | change
    del record["sha256"]
    saved.write_text(digests.seal(record))
    with pytest.raises(ValueError, match="is no vocabulary|has format"):
        vocabulary.load(saved)


def test_another_vocabulary_under_the_same_digest_is_refused(saved):
    saved.write_text(saved.read_text().replace("[0, 1, 3, 5]", "[0, 1, 2, 5]"))
    with pytest.raises(ValueError, match="vocabulary.json is damaged: its sha256"):
        vocabulary.load(saved)


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", '{"keep": [1]}', "7"])
def test_other_files_are_refused(saved, text):
    saved.write_text(text)
    with pytest.raises(ValueError, match="vocabulary.json"):
        vocabulary.load(saved)
