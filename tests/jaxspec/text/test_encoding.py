"""A prompt has one BOS if its tokenizer adds any, also if it is written out."""

import pytest

import decoders
from jaxspec.text.encoding import encode


@pytest.mark.parametrize("kind", decoders.KINDS)
def test_bos_is_not_doubled(kind):
    tokenizer = decoders.KINDS[kind]()
    bos = tokenizer.token_to_id(decoders.BOS)
    for text in ("def a", "<s>def a", "<s>", ""):
        tokens = encode(tokenizer, text)
        assert tokens[0] == bos and tokens.count(bos) == 1, text
    assert tokenizer.encode("<s>def a").ids.count(bos) == 2  # the tokenizer's own


def test_it_can_be_left_out():
    tokenizer = decoders.byte_level()
    bare = tokenizer.encode("def a", add_special_tokens=False).ids
    assert encode(tokenizer, "def a", add_special_tokens=False) == bare
    bos = tokenizer.token_to_id(decoders.BOS)
    assert encode(tokenizer, "<s>def a", add_special_tokens=False) == [bos, *bare]


def test_what_else_a_tokenizer_adds_stays():
    tokenizer = decoders.byte_level()
    tokenizer.post_processor = decoders.processors.TemplateProcessing(
        single="<s> $A </s>",
        special_tokens=[(t, tokenizer.token_to_id(t)) for t in ("<s>", "</s>")],
    )
    assert (
        encode(tokenizer, "<s>x") == encode(tokenizer, "x") == tokenizer.encode("x").ids
    )
