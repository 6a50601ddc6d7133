"""Checks of arguments: one readable line in place of an error from inside JAX.

Types and shapes are checked while tracing, values only where they are known, so that a
compiled program holds none of it.
"""

import contextlib
import operator
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.core import Drafter, LanguageModel, Params

Array = jax.Array

_HINTS = {
    "Builder": "(3, 2, 1), chain(4) or dyspec(8) is one",
    "Datastore": "datastore.build or datastore.load makes one",
    "DraftHead": "load_mtp(target) gives one and its params",
    "DecodeState": "init_state makes one, and the loops return it (first of a pair)",
    "Drafter": "ngram(8) or draft_model(model, builder) makes one",
    "Pair": "fusion.Pair(first, second) holds those of both",
    "LanguageModel": "take apart what was loaded: model, params, tokenizer = load(...)",
    "Outcome": "verify returns one (second of a pair)",
    "Draft": "propose makes one (second of a pair), or deterministic_draft of a tree",
    "Past": "init_past makes one",
    "Params": "wrap the parameters: Params(target=params)",
    "Verifier": "traversal() or sample_and_match() makes one",
}


def require(condition: bool, message: str) -> None:
    """Raises a `ValueError` unless the condition holds."""
    if not condition:
        raise ValueError(message)


def is_known(*arrays: Any) -> bool:
    """Tells whether the values are here: neither traced nor shared with other processes."""
    arrays = [array for array in arrays if isinstance(array, jax.Array)]
    return not any(
        isinstance(array, jax.core.Tracer) or not array.is_fully_addressable
        for array in arrays
    )


def record(name: str, value: Any, kind: type) -> None:
    """Refuses a value of another type than a contract's record.

    Raises:
        TypeError: saying what makes such a record.
    """
    if isinstance(value, kind):
        return
    found, hint = type(value).__name__, _HINTS.get(kind.__name__, "")
    if callable(value) and hasattr(value, "__name__"):
        found, hint = value.__name__, f"call it: {value.__name__}(...)"
    hint = f"; {hint}" if hint else ""
    raise TypeError(f"Expected {name} to be a {kind.__name__}, got {found}{hint}.")


def arrays(name: str, tree: Any) -> None:
    """Refuses a pytree with leaves that are no arrays.

    Raises:
        TypeError: naming the first such leaf.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not (hasattr(leaf, "dtype") or isinstance(leaf, (int, float, complex))):
            raise TypeError(
                f"Expected a pytree of arrays as {name}, got a {type(leaf).__name__} at "
                f"{jax.tree_util.keystr(path)}; {_HINTS['LanguageModel']}."
            )


def integer(name: str, value: Any, least: int) -> int:
    """A Python integer, at least `least`.

    Raises:
        ValueError: if it is none, or smaller.
    """
    try:
        number = operator.index(None if isinstance(value, bool) else value)
    except TypeError:
        raise ValueError(f"Expected an integer {name}, got {value!r}.") from None
    words = "positive" if least == 1 else f"at least {least}"
    require(number >= least, f"{name} must be {words}, got {number}.")
    return number


def array(name: str, value: Any) -> Any:
    """The value as an array: itself if it is one, else NumPy's of a list or a number.

    Raises:
        ValueError: if the rows of a list are not of one length.
    """
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return value
    try:
        return np.asarray(value)
    except ValueError:
        hint = "; pad_prompts stacks texts of any length" if name == "prompt" else ""
        raise ValueError(f"Expected rows of one length in {name}{hint}.") from None


def prompt(value: Any) -> Any:
    """A prompt `[B, T]` of integers.

    Raises:
        ValueError: if it has another shape, or holds anything but integers.
    """
    value = array("prompt", value)
    require(
        value.dtype.kind not in "US",
        "Expected tokens as the prompt, got text; tokenizer.encode(text).ids are tokens.",
    )
    require(
        len(value.shape) == 2 and min(value.shape) > 0,
        "Expected a prompt [B, T] of at least one token, got shape "
        f"{tuple(value.shape)}; one text is a batch of one.",
    )
    _require_kind("Tokens are", value, jnp.integer)
    return value


def tokens(prompt: Any, lengths: Any, vocab_size: int) -> None:
    """Refuses lengths that do not fit `[B, T]`, and tokens that a model does not have."""
    batch, size = prompt.shape
    live = np.True_
    if lengths is not None:
        lengths = array("lengths", lengths)
        rows("lengths", lengths, batch, jnp.int32)
        if is_known(lengths):
            each = np.broadcast_to(np.asarray(lengths), (batch,))
            require(
                1 <= each.min() and each.max() <= size,
                f"Expected lengths from 1 to {size}, got {each.min()} to {each.max()}.",
            )
            live = np.arange(size)[None] < each[:, None]
    if is_known(prompt, lengths):
        found = np.asarray(prompt)[np.broadcast_to(live, prompt.shape)]
        require(
            0 <= found.min() and found.max() < vocab_size,
            f"Expected tokens from 0 to {vocab_size - 1}, got {found.min()} to "
            f"{found.max()}.",
        )


def machinery(params: Any, target: Any, drafter: Any = None) -> None:
    """Refuses what is no `Params`, `LanguageModel`, or `Drafter` of its vocabulary.

    Raises:
        TypeError: naming what is not.
        ValueError: if the drafter has another vocabulary.
    """
    record("params", params, Params)
    record("target", target, LanguageModel)
    if drafter is not None:
        record("drafter", drafter, Drafter)
        vocabulary(target, drafter)


def vocabulary(target: LanguageModel, drafter: Drafter) -> None:
    """Refuses a drafter of another vocabulary than the target's."""
    require(
        drafter.vocab_size in (None, target.vocab_size),
        f"The drafter has {drafter.vocab_size} tokens and the target "
        f"{target.vocab_size}; where tables of one tokenizer are padded to different "
        f"sizes, draft with with_vocab_size(model, {target.vocab_size}).",
    )


def setting(name: str, value: Any, batch: int, dtype: Any) -> Array:
    """`per_row`, of a value that is in range where it is known.

    Raises:
        ValueError: if it is not, or as `per_row`.
    """
    value = array(name, value)
    rows(name, value, batch, dtype)
    is_allowed, words = _RANGES[name]
    if is_known(value):
        known = np.asarray(value)
        require(bool(is_allowed(known).all()), f"{name} {words}, got {known}.")
    return per_row(name, value, batch, dtype)


_RANGES = {
    "max_new_tokens": (lambda x: (x >= 1) & (x < 2**31), "must be positive, not huge"),
    "draft_budgets": (lambda x: (x >= 0) & (x < 2**31), "must not be negative or huge"),
    "temperature": (
        lambda x: (x >= 0) & (x <= float(np.finfo(np.float32).max)),
        "must not be negative or infinite",
    ),
    "top_k": (lambda x: (x >= 0) & (x < 2**31), "must not be negative or huge"),
    "top_p": (lambda x: (x > 0) & (x <= 1), "must be in (0, 1]"),
}


def per_row(name: str, value: Any, batch: int, dtype: Any) -> Array:
    """The value as `[B]` of a dtype, from one for all rows or one for each.

    Whatever form a known value has, nothing is compiled for it.

    Raises:
        ValueError: if it has another shape, or is of another kind than the dtype.
    """
    value = array(name, value)
    rows(name, value, batch, dtype)
    is_row = value.shape == (batch,) and value.dtype == dtype
    if is_row and isinstance(value, jax.Array) and not value.weak_type:
        return value
    if not is_known(value):
        return jnp.broadcast_to(jnp.asarray(value, dtype), (batch,))
    return jnp.asarray(np.broadcast_to(np.asarray(value).astype(dtype), (batch,)))


def rows(name: str, value: Any, batch: int, dtype: Any) -> None:
    """Refuses an array that is neither one value nor one per row, or of another kind."""
    require(
        tuple(value.shape) in ((), (batch,)),
        f"Expected one {name} or {batch}, got shape {tuple(value.shape)}.",
    )
    kinds = {jnp.int32: jnp.integer, jnp.bool_: jnp.bool_}
    _require_kind(f"Expected {name} to be", value, kinds.get(dtype, jnp.number))


def stops(value: Any, batch: int, vocab_size: int) -> Any:
    """Stops `[K]` or `[B, K]` as an array, one number as a single stop.

    Raises:
        ValueError: on another shape, anything but integers, or tokens that the model does
            not have, which no text would ever meet.
    """
    value = array("stops", value)
    if 0 in value.shape:
        return np.full((1,), -1, np.int32)
    shape = tuple(value.shape)
    require(
        len(shape) < 2 or (len(shape) == 2 and shape[0] in (1, batch)),
        f"Expected stops [K] or [{batch}, K], got shape {shape}.",
    )
    _require_kind("Stops are", value, jnp.integer)
    if is_known(value):
        found = np.asarray(value)
        require(
            bool(((found >= -1) & (found < vocab_size)).all()),
            f"Expected stops from 0 to {vocab_size - 1}, or -1 for none, got "
            f"{found.min()} to {found.max()}.",
        )
    return value


def logits(values: Array, rows: tuple[int, ...], vocab_size: int) -> None:
    """Refuses logits of another width than the model's vocabulary."""
    expected = (*rows, vocab_size)
    require(
        values.shape == expected,
        f"Expected logits of shape {expected}, got {values.shape}; the model's vocab_size "
        f"is {vocab_size}.",
    )


def difference(found: Any, expected: Any) -> str | None:
    """The first leaf in which two pytrees of arrays differ in shape or dtype, in words."""
    mine, other = map(_leaves, (found, expected))
    for name in [*other, *mine]:
        if mine.get(name) != other.get(name):
            return (
                f"{name or 'it'} is {mine.get(name, 'missing')}, expected "
                f"{other.get(name, 'none')}"
            )
    return None


@contextlib.contextmanager
def drafter_errors(params: Any) -> Iterator[None]:
    """Says of errors in a drafter that was given no params that it may need some."""
    try:
        yield
    except (TypeError, AttributeError, KeyError) as error:
        if params is not None:
            raise
        raise ValueError(
            "The drafter failed without params of its own; if it needs some, as a draft "
            "model does, pass Params(target=..., drafter=...). The error was "
            f"{type(error).__name__}: {error}"
        ) from error


def _leaves(tree: Any) -> dict[str, str]:
    return {
        jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _require_kind(words: str, value: Any, kind: Any) -> None:
    names = {jnp.integer: "integers", jnp.bool_: "booleans", jnp.number: "numbers"}
    require(
        jnp.issubdtype(value.dtype, kind),
        f"{words} {names[kind]}, got {value.dtype}.",
    )
