"""A text to retrieve from, with its places in the order of what comes before them.

    key(i) = t[i], t[i - 1], t[i - 2], ..
    key(s[0]) <= key(s[1]) <= .. <= key(s[M - 1])

`s` is the suffix array of the text read backwards. The places that end with some given
tokens are neighbours in it, and those that agree with a context in most tokens are where
the context itself would stand: one binary search finds the longest match, two more all
its places (REST, He et al. 2023, sorts the text forwards and has a search per length).
Documents are kept apart by a token that no context has, so that no match reaches over the
end of one, and what is read behind a place stops there.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from flax import struct

from jaxspec import tensor_files

Array = jax.Array

SEPARATOR = -1
FORMAT = "1"


class Datastore(struct.PyTreeNode):
    """Documents, and where to look in them.

    Attributes:
        tokens: `[M]` int32, a `SEPARATOR` in front and after each document.
        suffix_array: `[M]` int32, the places in the order of their keys.
    """

    tokens: Array  # [M]
    suffix_array: Array  # [M]


def build(documents: Iterable[Sequence[int]]) -> Datastore:
    """Sorts documents, on the host.

    Args:
        documents: the tokens of each; what a tokenizer puts at a text's ends left out.

    Raises:
        ModuleNotFoundError: without the extra `retrieval`.
        ValueError: if a token is negative, or there are more than 2^31 - 1 of them.
    """
    try:
        import pydivsufsort
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "Datastores are sorted by pydivsufsort: pip install 'jaxspec[retrieval]'."
        ) from None
    end = np.array([SEPARATOR], np.int64)
    parts = [end]
    for document in documents:
        part = np.asarray(document, np.int64)
        if part.ndim != 1 or (part < 0).any() or (part >= 2**31 - 1).any():
            raise ValueError(
                "Expected a list of tokens in each document, none negative; document "
                f"{len(parts) // 2} has shape {part.shape} and begins {part[:4]}."
            )
        parts += [part, end]
    tokens = np.concatenate(parts)
    if len(tokens) >= 2**31:
        raise ValueError(f"A datastore holds 2^31 - 1 tokens, not {len(tokens)}.")
    backwards = (tokens[::-1] + 1).astype(np.uint32)
    order = len(tokens) - 1 - pydivsufsort.divsufsort(backwards)
    return Datastore(jnp.asarray(tokens, jnp.int32), jnp.asarray(order, jnp.int32))


def backwards(store: Datastore, places: Array, length: int) -> Array:
    """The keys of places `[...]`, cut to `[..., length]`."""
    index = places[..., None] - _steps(places, length)
    return store.tokens[jnp.maximum(index, 0)]


def forwards(store: Datastore, places: Array, length: int) -> tuple[Array, Array]:
    """What follows places `[...]`: tokens `[..., length]`, and how many there are.

    They end with the document.
    """
    last = len(store.tokens) - 1
    index = places[..., None] + 1 + _steps(places, length)
    tokens = store.tokens[jnp.minimum(index, last)]
    inside = jnp.cumsum(tokens == SEPARATOR, axis=-1, dtype=jnp.int32) == 0
    return tokens, jnp.sum(inside, axis=-1, dtype=jnp.int32)


def rank(store: Datastore, keys: Array) -> Array:
    """How many places come before keys `[..., K]`, each by binary search.

    `log2 M` steps, one after the other, each of `K` reads for every key.
    """
    size = len(store.tokens)

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low) // 2
        key = backwards(store, store.suffix_array[middle], keys.shape[-1])
        at = jnp.argmax(key != keys, axis=-1)[..., None]
        here = jnp.take_along_axis(key, at, -1) < jnp.take_along_axis(keys, at, -1)
        before = here[..., 0] & (low < high)
        return jnp.where(before, middle + 1, low), jnp.where(before, high, middle)

    low = jnp.zeros(keys.shape[:-1], jnp.int32)
    bounds = low, jnp.full_like(low, size)
    return jax.lax.fori_loop(0, size.bit_length(), halve, bounds)[0]


def tokenizer_hash(tokenizer: tokenizers.Tokenizer) -> str:
    """The sha256 of what each token stands for."""
    vocab = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(vocab).encode()).hexdigest()


def save(
    path: str | os.PathLike, store: Datastore, tokenizer: tokenizers.Tokenizer
) -> None:
    """Writes a datastore as one safetensors file, atomically.

    Args:
        path: of the file.
        store: what to write.
        tokenizer: whose tokens these are.
    """
    arrays = {
        "tokens": np.asarray(store.tokens),
        "suffix_array": np.asarray(store.suffix_array),
    }
    metadata = _metadata(tokenizer) | {"sha256": _hash(arrays)}
    tensor_files.write(path, arrays, metadata)


def load(path: str | os.PathLike, tokenizer: tokenizers.Tokenizer) -> Datastore:
    """Reads a datastore.

    Args:
        path: of the file.
        tokenizer: of the model that will read what is retrieved.

    Raises:
        ValueError: if there is no such file, or it is damaged, of another format, or of
            another tokenizer.
    """
    if not pathlib.Path(path).is_file():
        raise ValueError(f"There is no datastore {path}.")
    arrays, metadata = tensor_files.read(path, "datastore")
    for name, expected in _metadata(tokenizer).items():
        if metadata.get(name) != expected:
            raise ValueError(
                f"{path} has {name} {metadata.get(name)!r}, expected {expected!r}."
            )
    if set(arrays) != {"tokens", "suffix_array"}:
        raise ValueError(f"{path} is not a datastore: it holds {sorted(arrays)}.")
    shapes = {(array.dtype.name, array.shape) for array in arrays.values()}
    if shapes != {("int32", (arrays["tokens"].size,))}:
        raise ValueError(f"{path} is not a datastore: its arrays are {sorted(shapes)}.")
    if metadata.get("sha256") != _hash(arrays):
        raise ValueError(f"{path} is damaged: its sha256 is another one.")
    return Datastore(**{name: jnp.asarray(array) for name, array in arrays.items()})


def _steps(places: Array, length: int) -> Array:
    """Counts to `length` on an axis behind those of `places`."""
    return jnp.arange(length).reshape(*[1] * places.ndim, length)


def _metadata(tokenizer: tokenizers.Tokenizer) -> dict[str, str]:
    return {
        "format": FORMAT,
        "vocab_size": str(tokenizer.get_vocab_size()),
        "tokenizer": tokenizer_hash(tokenizer),
    }


def _hash(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
