"""Tokenizers on disk, whatever is in their files, and whether two are the same."""

import hashlib
import json
import os
import pathlib

import tokenizers

from jaxspec import digests, files

NAME = "tokenizer.json"
"""Of the file, in every folder of a model, ours or published."""

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


def load(folder: str | pathlib.Path) -> tokenizers.Tokenizer:
    """Reads the tokenizer of a folder, to encode whole texts.

    Some files hold how texts were clipped and padded in training (`truncation`, `padding`);
    a prompt is neither, so both are off here.

    Raises:
        ValueError: if there is none, or it is damaged.
    """
    folder = pathlib.Path(folder)
    path = folder / NAME
    if not path.is_file():
        raise ValueError(f"There is no tokenizer {path}.")
    if (folder / digests.TABLE).is_file():
        digests.check(folder, [path.name])
    return read(path)


def tokenizer_hash(tokenizer: tokenizers.Tokenizer) -> str:
    """SHA-256 of what every token stands for."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()


def check_same_tokenizer(
    target: tokenizers.Tokenizer, draft: tokenizers.Tokenizer
) -> None:
    """Refuses a draft model that means other text by the same tokens.

    Raises:
        ValueError: with the first token that differs.
    """
    ours, theirs = target.get_vocab(), draft.get_vocab()
    if ours == theirs:
        return
    by_id = {i: text for text, i in theirs.items()}
    for text, i in sorted(ours.items(), key=lambda item: item[1]):
        if by_id.get(i) != text:
            raise ValueError(
                "The draft model's tokenizer is not the target's: token "
                f"{i} is {text!r} for the target and {by_id.get(i)!r} for the draft."
            )
    raise ValueError(
        f"The draft model's tokenizer has {len(theirs)} tokens, the target's {len(ours)}."
    )
