"""How texts begin: the state after the prompts, and the state without any."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec import checks, padding, pasts, sampling
from jaxspec.core import Drafter, LanguageModel, Params
from jaxspec.decode_state import NO_BUDGET, DecodeState
from jaxspec.pasts import Past

Array = jax.Array

CHUNK = 512
"""Tokens of a prompt that are absorbed at a time."""


def init_state(
    params: Params,
    prompt: Array,
    lengths: Array | None = None,
    *,
    target: LanguageModel,
    drafter: Drafter | None = None,
    speculative: bool = False,
    past: Past | None = None,
    chunk_size: int = CHUNK,
    max_length: int | None = None,
    max_new_tokens: int | Array = 128,
    temperature: float | Array = 0.0,
    top_k: int | Array = 0,
    top_p: float | Array = 1.0,
    stops: Sequence[int] | Array = (),
    draft_budgets: int | Array = NO_BUDGET,
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
        speculative: makes room for paths also without a drafter, so that `verify` can judge
            drafts that come from elsewhere.
        past: what is known of the beginning of each prompt: that many of its tokens are not
            absorbed again. It is not changed.
        chunk_size: tokens that are absorbed at a time, so that no more of the target's
            hidden is held at once. Pieces of another size round differently.
        max_length: the most tokens that a row can hold; room for `T` and
            `max_new_tokens` by default, or what the past has.
        max_new_tokens: `[B]` or one for all.
        temperature: `[B]` or one for all; 0 is greedy.
        top_k: `[B]` or one for all; 0 keeps all tokens, 1 is greedy.
        top_p: `[B]` or one for all; 1 keeps all tokens.
        stops: `[K]` or `[B, K]` tokens that end a row, -1 padded.
        draft_budgets: `[B]` or one for all, draft nodes that a step verifies at most; all
            by default.
        keys: `[B]` typed threefry keys, or one to derive them from; key 0 by default.

    Raises:
        ValueError: on an empty prompt, one that does not fit, tokens that the model does
            not have, settings out of range or of other shapes, or a drafter or a past
            that does not fit the target.
        TypeError: on params that are not in `Params`, or a target or a drafter that is
            not a record.
    """
    checks.machinery(params, target, drafter)
    checks.arrays("params", params)
    if past is not None:
        checks.record("past", past, Past)
    chunk_size = checks.integer("chunk_size", chunk_size, least=1)
    prompt = checks.prompt(prompt)
    batch, size = prompt.shape
    checks.tokens(prompt, lengths, target.vocab_size)
    settings = _settings(
        batch,
        target.vocab_size,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        draft_budgets=draft_budgets,
        stops=stops,
        keys=keys,
    )
    budget = checks.setting("max_new_tokens", max_new_tokens, batch, jnp.int32)
    if max_length is None and past is not None:
        max_length = past.max_length
    max_length = _max_length(max_length, size, lengths, budget)
    prompt = jnp.asarray(prompt)[:, : pasts.room(max_length, target)]
    whole = prompt.shape[1] if lengths is None else lengths
    lengths = checks.per_row("lengths", whole, batch, jnp.int32)
    live = jnp.arange(prompt.shape[1])[None] < lengths[:, None]
    tokens = jnp.where(live, prompt, 0).astype(jnp.int32)
    records = {"target": target, "drafter": drafter}
    speculative = speculative or drafter is not None
    if past is None:
        past = pasts.init_past(
            params, batch, max_length, speculative=speculative, **records
        )
    else:
        pasts.check(
            params, past, lengths, max_length, speculative=speculative, **records
        )
        past = pasts.copied(past)
    past = pasts.absorb_rest(
        params, past, tokens, lengths - 1, chunk_size=chunk_size, **records
    )
    limits = lengths + jnp.minimum(budget, max_length - lengths)
    return begin(past, tokens, lengths, limits, settings, target.max_path)


def empty_state(
    params: Params,
    batch_size: int,
    max_length: int,
    *,
    target: LanguageModel,
    drafter: Drafter | None = None,
    speculative: bool = False,
    num_stops: int = padding.STOPS,
) -> DecodeState:
    """Makes a state whose rows are all done: a pool, into which `rows.put` puts texts.

    Args:
        params: of the target and the drafter.
        batch_size: `B`.
        max_length: the most tokens that a row can hold, as in `init_state`.
        target: the model.
        drafter: what will propose, if anything does.
        speculative: makes room for paths also without a drafter.
        num_stops: stops of a row at most.

    Raises:
        ValueError: on sizes that are not positive, or a drafter that does not fit.
        TypeError: on params that are not in `Params`, or what is not a record.
    """
    past = pasts.init_past(
        params,
        batch_size,
        max_length,
        target=target,
        drafter=drafter,
        speculative=speculative,
    )
    stops = np.full((checks.integer("num_stops", num_stops, least=1),), -1, np.int32)
    settings = _settings(
        batch_size,
        target.vocab_size,
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        draft_budgets=NO_BUDGET,
        stops=stops,
        keys=None,
    )
    one = jnp.ones((batch_size,), jnp.int32)
    return begin(
        past, jnp.zeros_like(one)[:, None], one, one, settings, target.max_path
    )


def _settings(batch: int, vocab_size: int, *, stops, keys, **each) -> dict[str, Array]:
    """The settings of a state, `[B]` each, of the caller's in any form."""
    dtypes = {"top_k": jnp.int32, "draft_budgets": jnp.int32}
    found = {
        name: checks.setting(name, value, batch, dtypes.get(name, jnp.float32))
        for name, value in each.items()
    }
    stops = checks.stops(stops, batch, vocab_size)
    keys = None if keys is None else checks.array("keys", keys)
    return found | {
        "stops": padding.pad_stops(stops, batch),
        "keys": _keys(keys, batch),
    }


def begin(
    past: Past,
    tokens: Array,
    lengths: Array,
    limits: Array,
    settings: dict[str, Array],
    max_path: int,
) -> DecodeState:
    """Makes the state after the prompts: no two of its leaves, and none of others, are one.

    Args:
        past: of all tokens of the prompts but the last; its leaves are not copied.
        tokens: `[B, T]` int32, 0 beyond the lengths.
        lengths: `[B]` int32.
        limits: `[B]` int32, lengths at which rows are done.
        settings: the other fields of a `DecodeState`, by name.
        max_path: of the target.
    """
    batch, size = tokens.shape
    width = past.max_length + max_path
    state = DecodeState(
        tokens=jnp.pad(tokens, ((0, 0), (0, width - size))),
        logprobs=jnp.zeros((batch, width), jnp.float32),
        lengths=lengths,
        prompt_lengths=lengths,
        limits=limits,
        done=lengths >= limits,
        **settings,
        carry=None,
        drafter=None,
    )
    state = pasts.copied(state)
    return state.replace(carry=past.carry, drafter=past.drafter)


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
