"""A row's text ends at its stops, and says why."""

import pytest

import decoders
from jaxspec.text.continuation import Continuation
from jaxspec.text.detokenizer import continuation

TOKENIZER = decoders.byte_fallback()
PROMPT = TOKENIZER.encode("def a").ids
EOS, TOOL = (TOKENIZER.token_to_id(name) for name in (decoders.EOS, decoders.TOOL))


def ids(text):
    """Tokens of a text, without the space that begins one."""
    return [TOKENIZER.token_to_id(piece) for piece in text.split()]


def read(tokens, reason="length", **stops):
    made = Continuation(TOKENIZER, PROMPT, **stops)
    shown = "".join(map(made.extend, tokens)) + made.finish(reason)
    assert shown == made.text
    return made.text, made.finish_reason, len(made.tokens)


@pytest.mark.parametrize("stop", [EOS, TOOL], ids=["special", "text"])
def test_a_stop_token_is_no_text(stop):
    tokens = [*ids("\u2581b x"), stop, *ids("a")]
    assert read(tokens, stop_tokens=[stop]) == (" bx", "stop", 3)
    assert read(tokens) == (continuation(TOKENIZER, PROMPT, tokens), "length", 4)
    assert (decoders.TOOL in read(tokens)[0]) == (stop == TOOL)


def test_a_stop_string_straddles_tokens():
    tokens = ids("\u2581b x def . a")
    assert read(tokens, stop_strings=["ef.a"]) == (" bxd", "stop", 5)
    assert read(tokens, stop_strings=["xd", "q"]) == (" b", "stop", 3)
    assert read(tokens, stop_strings=["xq"]) == (" bxdef.a", "length", 5)


def test_a_stop_string_may_be_what_was_held_back():
    newline = TOKENIZER.token_to_id("<0x0A>")  # more bytes may follow
    assert read([*ids("x"), newline], stop_strings=["\n"]) == ("x", "stop", 2)
    assert read([*ids("x"), newline]) == ("x\n", "length", 2)
    assert read([*ids("x"), newline, EOS], stop_tokens=[EOS]) == ("x\n", "stop", 3)


def test_an_error_ends_it_once():
    made = Continuation(TOKENIZER, PROMPT)
    made.extend(*ids("x"))
    made.finish("error")
    assert made.extend(*ids("b")) == made.finish("length") == ""
    assert (made.text, made.finish_reason) == ("x", "error")
