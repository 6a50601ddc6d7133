"""Texts in the making: the state of the loop, and how it begins."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxspec import checks, compilation, rows, sampling
from jaxspec.core import Drafter, LanguageModel

Array = jax.Array

SIZES = 64
"""Texts, and the room for them, are multiples of this, so that few are compiled for."""
STOPS = 8
"""The columns of `DecodeState.stops` are a multiple of this, for the same reason."""


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
            that fits, rounded up; the last `D` columns are room for one more path.
        logprobs: `[B, L + D]` float32, the target's raw log-probability of every emitted
            token; 0 for the prompt.
        lengths: `[B]` int32, tokens so far.
        prompt_lengths: `[B]` int32.
        limits: `[B]` int32, length at which a row is done.
        done: `[B]` bool.
        stops: `[B, K]` int32, tokens that end a row, -1 padded to a few sizes of `K`. A
            stop is emitted.
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
    Shapes are rounded up: the room for texts to multiples of 64, stops to multiples of 8.

    Args:
        params: of the target and the drafter.
        prompt: `[B, T]` int32, anything beyond `lengths`.
        lengths: `[B]` int32, `T` by default; at least 1.
        target: the model.
        drafter: `None` makes a state for `generate`, which carries nothing else.
        max_length: the most tokens that a row can hold; room for `T` and
            `max_new_tokens` by default.
        max_new_tokens: `[B]` or one for all.
        temperature: `[B]` or one for all; 0 is greedy.
        top_k: `[B]` or one for all; 0 keeps all tokens, 1 is greedy.
        top_p: `[B]` or one for all; 1 keeps all tokens.
        stops: `[K]` or `[B, K]` tokens that end a row, -1 padded.
        keys: `[B]` typed threefry keys, or one to derive them from; key 0 by default.

    Raises:
        ValueError: on an empty prompt, one that does not fit, tokens that the model does
            not have, settings out of range or of other shapes, or a drafter that does
            not fit the target.
        TypeError: on params that are not in `Params`, or a target or a drafter that is
            not a record.
    """
    check_machinery(params, target, drafter)
    checks.arrays("params", params)
    prompt = checks.prompt(prompt)
    batch, size = prompt.shape
    checks.tokens(prompt, lengths, target.vocab_size)
    stops = pad_stops(checks.stops(stops, batch, target.vocab_size), batch)
    budget = checks.setting("max_new_tokens", max_new_tokens, batch, jnp.int32)
    temperature = checks.setting("temperature", temperature, batch, jnp.float32)
    top_k = checks.setting("top_k", top_k, batch, jnp.int32)
    top_p = checks.setting("top_p", top_p, batch, jnp.float32)
    keys = _keys(None if keys is None else checks.array("keys", keys), batch)
    max_length = _max_length(max_length, size, lengths, budget)
    room = _round_up(max_length + target.max_path, SIZES) - target.max_path
    prompt = jnp.asarray(prompt)[:, :room]
    size = prompt.shape[1]
    lengths = size if lengths is None else lengths
    lengths = checks.per_row("lengths", lengths, batch, jnp.int32)
    live = jnp.arange(size)[None] < lengths[:, None]
    tokens = jnp.where(live, prompt, 0).astype(jnp.int32)
    carry, state = _prefill(
        params,
        tokens,
        lengths,
        target=target,
        drafter=drafter,
        max_length=room,
    )
    width = room + target.max_path
    limits = lengths + jnp.minimum(budget, max_length - lengths)
    return DecodeState(
        tokens=jnp.pad(tokens, ((0, 0), (0, width - size))),
        logprobs=jnp.zeros((batch, width), jnp.float32),
        lengths=lengths,
        prompt_lengths=lengths,
        limits=limits,
        done=lengths >= limits,
        stops=stops,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        keys=keys,
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
    with checks.drafter_errors(params.drafter):
        state = drafter.init(params.drafter, prompt, lengths, max_length, hidden)
    return carry, state


def pad_prompts(
    prompts: Sequence[Sequence[int]], multiple: int = SIZES
) -> tuple[Array, Array]:
    """Stacks token lists of any length: tokens `[B, T]` and lengths `[B]`.

    `T` is rounded up to a multiple, so that few lengths are compiled for.

    Raises:
        ValueError: if there is no prompt, an empty one, or one that is no list of tokens.
    """
    multiple = checks.integer("multiple", multiple, least=1)
    checks.require(
        not isinstance(prompts, str) and len(prompts) > 0,
        f"Expected at least one prompt, each a list of tokens, got {prompts!r}.",
    )
    texts = [_one_prompt(row, prompt) for row, prompt in enumerate(prompts)]
    lengths = np.array([len(text) for text in texts], np.int32)
    size = _round_up(int(lengths.max()), multiple)
    tokens = np.zeros((len(texts), size), np.int64)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
    checks.require(
        np.iinfo(np.int32).min <= tokens.min()
        and tokens.max() <= np.iinfo(np.int32).max,
        f"Tokens are int32, got {tokens.min()} to {tokens.max()}.",
    )
    return jnp.asarray(tokens.astype(np.int32)), jnp.asarray(lengths)


def _one_prompt(row: int, prompt: Any) -> np.ndarray:
    tokens = checks.array(f"prompt {row}", prompt)
    is_empty = 0 in tokens.shape
    checks.require(
        tokens.ndim == 1 and (is_empty or jnp.issubdtype(tokens.dtype, jnp.integer)),
        f"Expected prompt {row} as a list of tokens, got {type(prompt).__name__} of "
        f"{tokens.dtype} and shape {tokens.shape}; text is encoded first, as by "
        "tokenizer.encode(text).ids.",
    )
    checks.require(not is_empty, f"Prompt {row} is empty; expected at least one token.")
    return np.asarray(tokens)


def check_machinery(params: Any, target: Any, drafter: Any) -> None:
    """Refuses what is no `Params`, `LanguageModel`, or `Drafter` of its vocabulary."""
    checks.record("params", params, Params)
    checks.record("target", target, LanguageModel)
    if drafter is not None:
        checks.record("drafter", drafter, Drafter)
        checks.vocabulary(target, drafter)


def _max_length(max_length, size, lengths, budget) -> int:
    """The most tokens of a row; room for the widest prompt and the largest budget."""
    if max_length is None:
        checks.require(
            checks.is_known(budget), "Give max_length: max_new_tokens is traced."
        )
        return size + int(np.asarray(budget).max())
    max_length = checks.integer("max_length", max_length, least=1)
    is_known = lengths is not None and checks.is_known(lengths)
    longest = int(np.asarray(lengths).max()) if is_known else size
    checks.require(
        longest <= max_length,
        f"The prompt has {longest} tokens and the cache holds {max_length}; raise "
        "max_length.",
    )
    return max_length


def pad_stops(stops: Any, batch: int) -> Array:
    """`[B, K]` int32, -1 padded to a multiple of columns."""
    numpy = np if checks.is_known(stops) else jnp
    stops = numpy.atleast_2d(numpy.asarray(stops)).astype(jnp.int32)
    more = _round_up(stops.shape[1], STOPS) - stops.shape[1]
    stops = numpy.pad(stops, ((0, 0), (0, more)), constant_values=-1)
    return jnp.asarray(numpy.broadcast_to(stops, (batch, stops.shape[1])))


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _keys(keys: Array | None, batch: int) -> Array:
    """A key per row, derived from one if need be."""
    keys = sampling.key(0) if keys is None else keys
    checks.require(
        jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)
        and keys.shape in ((), (batch,)),
        f"Expected one typed key (jax.random.key) or {batch}, got {keys.dtype} of shape "
        f"{keys.shape}.",
    )
    sampling.check_keys(keys)
    if keys.ndim == 0:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(keys, jnp.arange(batch))
    return keys
