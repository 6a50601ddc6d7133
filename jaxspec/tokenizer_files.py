"""Reading a `tokenizer.json`, whatever is in it."""

import os

import tokenizers

from jaxspec import files

MAX_ID = 2**24
"""Bound of token ids: tables as long as the largest one are made of them."""


def read(path: str | os.PathLike) -> tokenizers.Tokenizer:
    """Reads a tokenizer of Hugging Face `tokenizers` that encodes texts whole.

    Whatever the file says of clipping and padding is not done.

    Raises:
        ValueError: naming the file, if it is none.
        OSError: if there is no such file, or it cannot be read.
    """
    text = files.read_text(path)
    try:
        tokenizer = tokenizers.Tokenizer.from_str(text)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises nothing narrower, and panics
        raise ValueError(
            f"{path} is not a tokenizer: {files.one_line(error)}."
        ) from None
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= MAX_ID:
        raise ValueError(
            f"{path} is not a tokenizer: its ids reach {largest}, expected less than "
            f"{MAX_ID}."
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
