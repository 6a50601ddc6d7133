"""Tokens of a prompt, with one beginning-of-sequence token if the tokenizer adds any."""

import tokenizers


def encode(
    tokenizer: tokenizers.Tokenizer, text: str, *, add_special_tokens: bool = True
) -> list[int]:
    """Encodes a prompt.

    Tokenizers add their own first tokens (BOS) to any text, also to one that begins with
    them in writing, which models have never seen twice. There they are left out.

    Args:
        tokenizer: of the model.
        text: the prompt; special tokens may be written out.
        add_special_tokens: whether the tokenizer may add any.
    """
    plain = tokenizer.encode(text, add_special_tokens=False).ids
    if not add_special_tokens:
        return plain
    whole = tokenizer.encode(text).ids
    first = _first_tokens(tokenizer)
    carries_them = first and plain[: len(first)] == first
    return whole[len(first) :] if carries_them else whole


def _first_tokens(tokenizer: tokenizers.Tokenizer) -> list[int]:
    """The tokens that a tokenizer adds before a text."""
    whole = tokenizer.encode("a").ids
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start]
    return []
