"""The tokens that a draft model is asked for: the most frequent ones, few but enough.

A small model spends much of its time in the head. Of tokens counted in text that the
target wrote, keep the `n` most frequent (VocabTrim, Goel et al. 2025; FR-Spec, Zhao et
al. 2025):

    keep = the ids of the n largest counts, special tokens first;   W' = W[:, keep]

The draft's law is then 0 elsewhere, and the target's stays what it is: what is cut can
still be emitted, only never be drafted, so that no more than `coverage` is accepted. The
head is cut by `forms.trim_head`, and `model.Trimmed` says to the drafter which tokens
its columns mean. `n` is not padded: a compiler lays columns out in whole tiles itself (128
on a TPU), and a padded column would have to be kept from being drawn. Ask for a multiple
of 128, times the size of the `tensor` axis of a mesh.
"""

import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxspec import digests, files

_FORMAT = "jaxspec vocabulary 2"


class Vocabulary(NamedTuple):
    """What is kept, and why.

    Attributes:
        keep: `[n]` int32, ids, ascending.
        counts: `[V]` int64, how often each id was seen.
        tokenizer_hash: whose ids they are (`tokenizer_files.tokenizer_hash`).
    """

    keep: np.ndarray
    counts: np.ndarray
    tokenizer_hash: str


def count(texts: Iterable[Sequence[int]], vocab_size: int) -> np.ndarray:
    """`[V]` int64: how often each token occurs.

    Raises:
        ValueError: if a token is not one of the vocabulary.
    """
    counts = np.zeros((vocab_size,), np.int64)
    for text in texts:
        text = np.asarray(text, np.int64)
        if text.size and not 0 <= text.min() <= text.max() < vocab_size:
            raise ValueError(
                f"Expected tokens from 0 to {vocab_size - 1}, got {text.min()} to "
                f"{text.max()}."
            )
        counts += np.bincount(text, minlength=vocab_size)
    return counts


def select(counts: np.ndarray, size: int, always: Sequence[int] = ()) -> np.ndarray:
    """The ids to keep, ascending: some always, then the most frequent.

    Of equal counts the lower id goes first. What was never seen is not kept, so that
    there may be fewer than `size`.

    Args:
        counts: `[V]`.
        size: ids at most.
        always: ids that are kept whatever their counts: stops and special tokens.

    Raises:
        ValueError: if those alone are too many or not of the vocabulary, or nothing is
            left to keep.
    """
    counts, kept = np.asarray(counts), np.unique(np.asarray(always, np.int64))
    if kept.size and not 0 <= kept[0] <= kept[-1] < len(counts):
        raise ValueError(
            f"Expected ids from 0 to {len(counts) - 1}, got {kept.tolist()}."
        )
    if not len(kept) <= size <= len(counts) or size < 1:
        raise ValueError(
            f"Expected a size from {max(len(kept), 1)} (the tokens that are always "
            f"kept) to {len(counts)}, got {size}."
        )
    order = np.argsort(-counts, kind="stable")
    order = order[(counts[order] > 0) & ~np.isin(order, kept)]
    keep = np.sort(np.concatenate([kept, order[: size - len(kept)]]))
    if not len(keep):
        raise ValueError("No token was seen, and none is always kept.")
    return keep.astype(np.int32)


def coverage(counts: np.ndarray, keep: np.ndarray) -> float:
    """The share of the counted tokens that are kept.

    Raises:
        ValueError: if nothing was counted.
    """
    total = int(np.sum(counts))
    if total == 0:
        raise ValueError("No token was counted.")
    return float(np.sum(np.asarray(counts)[keep]) / total)


def save(path: str | os.PathLike, vocabulary: Vocabulary, **more: Any) -> None:
    """Writes a file that `load` reads.

    Args:
        path: of the JSON file.
        vocabulary: what to keep.
        **more: anything else worth knowing, which `load` does not look at.
    """
    record = {
        "format": _FORMAT,
        "tokenizer_hash": vocabulary.tokenizer_hash,
        "size": len(vocabulary.keep),
        **more,
        "keep": np.asarray(vocabulary.keep).tolist(),
        "counts": np.asarray(vocabulary.counts).tolist(),
    }
    files.write_text(path, digests.seal(record))


def load(path: str | os.PathLike, tokenizer_hash: str | None = None) -> Vocabulary:
    """Reads what `save` or `jaxspec tune vocabulary` wrote.

    Args:
        path: of the JSON file.
        tokenizer_hash: what the ids must belong to; None does not ask.

    Raises:
        ValueError: if the file is damaged, or of another tokenizer.
    """
    record = digests.unseal(path, _FORMAT)
    try:
        keep, counts = _integers(record["keep"]), _integers(record["counts"])
        _require(record["size"] == len(keep) > 0, "its size is not that of its list")
        _require(bool((np.diff(keep) > 0).all()), "its ids are not ascending")
        _require(0 <= keep[0] and keep[-1] < len(counts), "an id has no count")
        _require(bool((counts >= 0).all()), "a count is negative")
        found = str(record["tokenizer_hash"])
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        raise ValueError(f"{path} is no vocabulary: {files.one_line(error)}.") from None
    if tokenizer_hash is not None and tokenizer_hash != found:
        raise ValueError(
            f"{path} was made for another tokenizer: {found[:12]}.., expected "
            f"{tokenizer_hash[:12]}..."
        )
    return Vocabulary(keep.astype(np.int32), counts, found)


def _integers(values: Any) -> np.ndarray:
    array = np.asarray(values)
    _require(array.ndim == 1 and array.dtype.kind == "i", "it holds no list of numbers")
    return array.astype(np.int64)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
