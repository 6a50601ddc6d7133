"""Texts in the making: the state of the loop, and how it begins."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxspec import compilation, rows, sampling
from jaxspec.core import Drafter, LanguageModel

Array = jax.Array


class Params(NamedTuple):
    """Parameters of the target, and of the drafter if it has any."""

    target: Any
    drafter: Any = None


@struct.dataclass
class DecodeState:
    """A batch of texts in the making: all there is to know, in one pytree.

    Save it between any two steps and go on in another process.

    Attributes:
        tokens: `[B, L + D]` int32, prompt and output, 0 beyond `lengths`. `L` is the most
            that fits; the last `D` columns are room for one more path.
        logprobs: `[B, L + D]` float32, the target's raw log-probability of every emitted
            token; 0 for the prompt.
        lengths: `[B]` int32, tokens so far.
        prompt_lengths: `[B]` int32.
        limits: `[B]` int32, length at which a row is done.
        done: `[B]` bool.
        stops: `[B, K]` int32, tokens that end a row, -1 padded. A stop is emitted.
        temperature, top_k, top_p: `[B]`, see `sampling.Sampling`.
        keys: `[B]` typed keys, one per text, never consumed.
        carry: the target's past.
        drafter: the drafter's state.
    """

    tokens: Array
    logprobs: Array
    lengths: Array
    prompt_lengths: Array
    limits: Array
    done: Array
    stops: Array
    temperature: Array
    top_k: Array
    top_p: Array
    keys: Array
    carry: Any
    drafter: Any

    @property
    def root(self) -> Array:
        """`[B]` int32, the last token of every row."""
        return rows.take_one(self.tokens, self.lengths - 1)

    @property
    def sampling(self) -> sampling.Sampling:
        """How to sample what comes after the root."""
        return sampling.Sampling(
            self.temperature, self.top_k, self.top_p, self.lengths - 1
        )


def init_state(
    params: Params,
    prompt: Array,
    lengths: Array | None = None,
    *,
    target: LanguageModel,
    drafter: Drafter | None = None,
    max_length: int | None = None,
    max_new_tokens: int | Array = 128,
    temperature: float | Array = 0.0,
    top_k: int | Array = 0,
    top_p: float | Array = 1.0,
    stops: Sequence[int] | Array = (),
    keys: Array | None = None,
) -> DecodeState:
    """Reads the prompts and makes a state from which to decode.

    Everything but shapes is data: other temperatures, stops or budgets never recompile.

    Args:
        params: of the target and the drafter.
        prompt: `[B, T]` int32, anything beyond `lengths`.
        lengths: `[B]` int32, `T` by default; at least 1.
        target: the model.
        drafter: `None` makes a state for `generate`, which carries nothing else.
        max_length: `L`, the most tokens that a row can hold; room for `T` and
            `max_new_tokens` by default.
        max_new_tokens: `[B]` or one for all.
        temperature: `[B]` or one for all; 0 is greedy.
        top_k: `[B]` or one for all; 0 keeps all tokens.
        top_p: `[B]` or one for all; 1 keeps all tokens.
        stops: `[K]` or `[B, K]` tokens that end a row, -1 padded.
        keys: `[B]` typed keys, or one to derive them from; key 0 by default.

    Raises:
        ValueError: on an empty prompt, one that does not fit, tokens that the model does
            not have, a negative temperature, or a drafter that does not fit the target.
    """
    batch, size = _check_prompt(prompt, lengths, target, drafter)
    if max_length is None:
        _require(_known(max_new_tokens), "Give max_length: max_new_tokens is traced.")
        max_length = size + int(np.max(max_new_tokens))
    is_known = lengths is not None and _known(lengths)
    longest = int(np.asarray(lengths).max()) if is_known else size
    _require(
        longest <= max_length,
        f"The prompt has {longest} tokens and the cache holds {max_length}; raise "
        "max_length.",
    )
    prompt = jnp.asarray(prompt)[:, :max_length]
    size = prompt.shape[1]
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    _check_settings(batch, max_new_tokens, **settings)
    lengths = _per_row(size if lengths is None else lengths, batch, jnp.int32)
    budget = _per_row(max_new_tokens, batch, jnp.int32)
    live = jnp.arange(size)[None] < lengths[:, None]
    tokens = jnp.where(live, prompt, 0).astype(jnp.int32)
    stops = jnp.atleast_2d(jnp.asarray(stops, jnp.int32))
    if stops.size == 0:
        stops = jnp.full((1, 1), -1, jnp.int32)  # Orbax saves no empty arrays
    carry, state = _prefill(
        params,
        tokens,
        lengths,
        target=target,
        drafter=drafter,
        max_length=max_length,
    )
    width = max_length + target.max_path
    limits = jnp.minimum(lengths + budget, max_length)
    return DecodeState(
        tokens=jnp.pad(tokens, ((0, 0), (0, width - size))),
        logprobs=jnp.zeros((batch, width), jnp.float32),
        lengths=lengths,
        prompt_lengths=lengths,
        limits=limits,
        done=lengths >= limits,
        stops=jnp.broadcast_to(stops, (batch, stops.shape[1])),
        temperature=_per_row(temperature, batch, jnp.float32),
        top_k=_per_row(top_k, batch, jnp.int32),
        top_p=_per_row(top_p, batch, jnp.float32),
        keys=_keys(keys, batch),
        carry=carry,
        drafter=state,
    )


@functools.partial(compilation.jit, static_argnames=("target", "drafter", "max_length"))
def _prefill(params, prompt, lengths, *, target, drafter, max_length):
    """Absorbs `prompt[:-1]`: the last token is the first root."""
    speculative = drafter is not None
    carry = target.init_carry(params.target, len(prompt), max_length, speculative)
    carry, hidden = target.scan(params.target, carry, prompt, lengths - 1)
    if not speculative:
        return carry, None
    return carry, drafter.init(params.drafter, prompt, lengths, max_length, hidden)


def pad_prompts(
    prompts: Sequence[Sequence[int]], multiple: int = 64
) -> tuple[Array, Array]:
    """Stacks token lists of any length: tokens `[B, T]` and lengths `[B]`.

    `T` is rounded up to a multiple, so that few lengths are compiled for.

    Raises:
        ValueError: if there is no prompt, or an empty one.
    """
    _require(len(prompts) > 0, "Expected at least one prompt.")
    for row, prompt in enumerate(prompts):
        _require(
            len(prompt) > 0, f"Prompt {row} is empty; expected at least one token."
        )
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    size = -(-int(lengths.max()) // multiple) * multiple
    tokens = np.zeros((len(prompts), size), np.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    _require(
        np.iinfo(np.int32).min <= tokens.min()
        and tokens.max() <= np.iinfo(np.int32).max,
        f"Tokens are int32, got {tokens.min()} to {tokens.max()}.",
    )
    return jnp.asarray(tokens.astype(np.int32)), jnp.asarray(lengths)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _per_row(value: Any, batch: int, dtype: Any) -> Array:
    return jnp.broadcast_to(jnp.asarray(value, dtype), (batch,))


def _known(*arrays: Any) -> bool:
    """Whether the values are here: not being traced, nor held by other processes too."""
    arrays = [array for array in arrays if isinstance(array, jax.Array)]
    return not any(
        isinstance(array, jax.core.Tracer) or not array.is_fully_addressable
        for array in arrays
    )


def _keys(keys: Array | None, batch: int) -> Array:
    """A key per row, derived from one if need be."""
    keys = jax.random.key(0) if keys is None else keys
    _require(
        jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)
        and keys.shape in ((), (batch,)),
        f"Expected one typed key (jax.random.key) or {batch}, got {keys.dtype} of shape "
        f"{keys.shape}.",
    )
    if keys.ndim == 0:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(keys, jnp.arange(batch))
    return keys


def _check_prompt(prompt, lengths, target, drafter) -> tuple[int, int]:
    """Returns the prompt's shape; looks at values only where they are known."""
    shape, dtype = np.shape(prompt), jax.dtypes.result_type(prompt)
    _require(
        len(shape) == 2 and min(shape) > 0,
        f"Expected a prompt [B, T] of at least one token, got shape {shape}.",
    )
    _require(jnp.issubdtype(dtype, jnp.integer), f"Tokens are integers, got {dtype}.")
    live = np.True_
    if lengths is not None and _known(lengths):
        each = np.broadcast_to(np.asarray(lengths), shape[:1])
        _require(
            1 <= each.min() and each.max() <= shape[1],
            f"Expected lengths from 1 to {shape[1]}, got {each.min()} to {each.max()}.",
        )
        live = np.arange(shape[1])[None] < each[:, None]
    if _known(prompt, lengths):
        tokens = np.asarray(prompt)[np.broadcast_to(live, shape)]
        _require(
            0 <= tokens.min() and tokens.max() < target.vocab_size,
            f"Expected tokens from 0 to {target.vocab_size - 1}, got {tokens.min()} to "
            f"{tokens.max()}.",
        )
    if drafter is not None and drafter.vocab_size not in (None, target.vocab_size):
        raise ValueError(
            f"The drafter has {drafter.vocab_size} tokens and the target "
            f"{target.vocab_size}; where tables of one tokenizer are padded to different "
            f"sizes, draft with with_vocab_size(model, {target.vocab_size})."
        )
    return shape


def _check_settings(batch, max_new_tokens, **settings) -> None:
    settings = {"max_new_tokens": max_new_tokens, **settings}
    for name, value in settings.items():
        _require(
            np.shape(value) in ((), (batch,)),
            f"Expected one {name} or {batch}, got shape {np.shape(value)}.",
        )
    allowed = {
        "max_new_tokens": (lambda x: x >= 1, "must be positive"),
        "temperature": (
            lambda x: (x >= 0) & np.isfinite(x),
            "must not be negative or infinite",
        ),
        "top_k": (lambda x: (x >= 0) & (x < 2**31), "must not be negative or huge"),
        "top_p": (lambda x: (x > 0) & (x <= 1), "must be in (0, 1]"),
    }
    for name, (is_allowed, words) in allowed.items():
        if _known(settings[name]):
            value = np.asarray(settings[name])
            _require(is_allowed(value).all(), f"{name} {words}, got {value}.")
