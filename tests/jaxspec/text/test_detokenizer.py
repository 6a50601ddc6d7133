"""Text in pieces equals the text of all tokens at once, for every kind of decoder."""

import numpy as np
import pytest

import decoders
from jaxspec.text import detokenizer
from jaxspec.text.detokenizer import Detokenizer, continuation

kinds = pytest.mark.parametrize("kind", decoders.KINDS)


def pieces(tokenizer, prompt, new, cuts=()):
    """The text of tokens that come in chunks, ended at `cuts`."""
    made = Detokenizer(tokenizer, prompt)
    chunks = np.split(np.asarray(new, int), cuts)
    return [*(made.extend(chunk.tolist()) for chunk in chunks), made.finish()]


def random_tokens(tokenizer, rng, count):
    """Any tokens, and now and then whole characters: runs of bytes of all kinds."""
    tokens = []
    while len(tokens) < count:
        if rng.random() < 0.5:
            text = rng.choice([" a", "\u20ac", "\U0001f600\u00e9", " def ab", "\n"])
            tokens += tokenizer.encode(text, add_special_tokens=False).ids
        else:  # some ids beyond the vocabulary, as padded tables have
            size = tokenizer.get_vocab_size() + 3
            tokens += rng.integers(0, size, rng.integers(1, 4)).tolist()
    return tokens[:count]


@kinds
@pytest.mark.parametrize("chunk", [1, 3])
def test_pieces_are_the_whole_text(kind, chunk):
    tokenizer, rng = decoders.KINDS[kind](), np.random.default_rng(chunk)
    for trial in range(150):
        prompt = random_tokens(tokenizer, rng, int(rng.integers(0, 40)))
        new = random_tokens(tokenizer, rng, int(rng.integers(0, 90)))
        found = pieces(tokenizer, prompt, new, range(chunk, len(new), chunk))
        assert "".join(found) == continuation(tokenizer, prompt, new), (
            trial,
            prompt,
            new,
        )


@pytest.mark.parametrize("kind", ["byte-fallback", "metaspace"])
def test_the_leading_space_is_kept(kind):
    tokenizer = decoders.KINDS[kind]()
    prompt = tokenizer.encode("def a").ids
    new = [tokenizer.token_to_id("\u2581x"), tokenizer.token_to_id("b")]
    assert tokenizer.decode(new) == "xb"
    assert pieces(tokenizer, prompt, new, [1]) == [" x", "b", ""]
    assert pieces(tokenizer, [], new, [1]) == ["x", "b", ""]  # a text's first


@kinds
def test_special_tokens_are_no_text_and_hide_no_space(kind):
    tokenizer = decoders.KINDS[kind]()
    prompt = tokenizer.encode("def").ids
    middle = [tokenizer.token_to_id(decoders.EOS)] * 20
    new = tokenizer.encode(" a x", add_special_tokens=False).ids
    assert "".join(pieces(tokenizer, prompt, middle + new)) == "".join(
        pieces(tokenizer, prompt, new)
    )


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
def test_characters_wait_until_they_are_whole(kind):
    tokenizer = decoders.KINDS[kind]()
    new = tokenizer.encode("\U0001f600", add_special_tokens=False).ids[-4:]
    found = pieces(tokenizer, tokenizer.encode("x").ids, [*new, new[0]], range(1, 5))
    assert "\ufffd" not in "".join(found[:4])  # nothing that would be taken back
    assert "".join(found) == continuation(
        tokenizer, tokenizer.encode("x").ids, [*new, new[0]]
    )
    assert found[-1] != ""  # what was held back is not lost


def test_a_prompt_may_end_within_a_character():
    tokenizer = decoders.byte_level()
    euro = tokenizer.encode("\u20ac", add_special_tokens=False).ids
    assert pieces(tokenizer, euro[:2], euro[2:]) == ["\u20ac", ""]


def test_a_run_of_bytes_may_begin_in_the_prompt():
    tokenizer = decoders.byte_fallback()
    prompt = tokenizer.encode("\u6f22" * 5).ids  # of three bytes each
    newline, x = (tokenizer.token_to_id(piece) for piece in ("<0x0A>", "x"))
    assert pieces(tokenizer, prompt, [newline, x], [1]) == ["", "\nx", ""]


def test_only_the_last_tokens_are_decoded_again():
    class Counting:
        def __init__(self, tokenizer):
            self.tokenizer, self.lengths = tokenizer, []

        def __getattr__(self, name):
            return getattr(self.tokenizer, name)

        def decode(self, tokens):
            self.lengths.append(len(tokens))
            return self.tokenizer.decode(tokens)

    tokenizer = Counting(decoders.byte_level())
    text = tokenizer.encode("def ab" * 500).ids
    made = Detokenizer(tokenizer, text)
    assert "".join(made.extend([token]) for token in text) == "def ab" * 500
    assert max(tokenizer.lengths) <= detokenizer.LONGEST + 1
