"""The loop: autoregressive and speculative, every row at its own pace, on the device.

Between steps, in a row that is not done,

    the carry has absorbed all tokens but the last, and the last is the next root.

A speculative step proposes a tree below the root, runs the target over it once, lets the
verifier walk it, and keeps the walk. What is kept is cut by stop tokens and budgets after
verification, so that neither changes what would be accepted.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxspec import compilation, rows, sampling
from jaxspec.core import (
    Draft,
    Drafter,
    LanguageModel,
    Verdict,
    Verifier,
    emitted_tokens,
)
from jaxspec.trees import TokenTree
from jaxspec.verification.sample_and_match import sample_and_match

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


@struct.dataclass
class SpecInfo:
    """What is only worth reporting; adds up over steps.

    Attributes:
        target_calls: `[B]` int32, steps in which the row was not done.
        drafted: `[B]` int32, draft tokens proposed.
        kept: `[B, D]` int32, steps that emitted more than `d` tokens; column 0 is
            `target_calls`.
        from_draft: `[B, L + D]` int8, 1 where a draft supplied the token.
    """

    target_calls: Array
    drafted: Array
    kept: Array
    from_draft: Array

    def __add__(self, other: "SpecInfo") -> "SpecInfo":
        return jax.tree.map(jnp.add, self, other)


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
        max_length: `L`, the most tokens that a row can hold; room for the prompt and
            `max_new_tokens` by default.
        max_new_tokens: `[B]` or one for all.
        temperature, top_k, top_p: `[B]` or one for all.
        stops: `[K]` or `[B, K]` tokens that end a row, -1 padded.
        keys: `[B]` typed keys, or one to derive them from; key 0 by default.

    Raises:
        ValueError: on an empty prompt, one that does not fit, tokens that the model does
            not have, a negative temperature, or a drafter that does not fit the target.
    """
    prompt = jnp.asarray(prompt)
    _check_prompt(prompt, lengths, target, drafter)
    batch, size = prompt.shape
    lengths = _per_row(size if lengths is None else lengths, batch, jnp.int32)
    budget = _per_row(max_new_tokens, batch, jnp.int32)
    if max_length is None:
        _require(_known(max_new_tokens), "Give max_length: max_new_tokens is traced.")
        max_length = size + int(np.max(np.asarray(max_new_tokens)))
    _require(
        size <= max_length,
        f"The prompt has {size} tokens and the cache holds {max_length}; raise "
        "max_length.",
    )
    settings = {
        "temperature": _per_row(temperature, batch, jnp.float32),
        "top_k": _per_row(top_k, batch, jnp.int32),
        "top_p": _per_row(top_p, batch, jnp.float32),
    }
    _check_settings(budget=budget, **settings)
    stops = jnp.atleast_2d(jnp.asarray(stops, jnp.int32))
    if stops.size == 0:
        stops = jnp.full((1, 1), -1, jnp.int32)  # Orbax saves no empty arrays
    keys = jax.random.key(0) if keys is None else keys
    if keys.ndim == 0:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(keys, jnp.arange(batch))
    carry, state = _prefill(
        params,
        prompt.astype(jnp.int32),
        lengths,
        target=target,
        drafter=drafter,
        max_length=max_length,
    )
    width = max_length + target.max_path
    live = jnp.arange(size)[None] < lengths[:, None]
    tokens = jnp.where(live, prompt, 0).astype(jnp.int32)
    limits = jnp.minimum(lengths + budget, max_length)
    return DecodeState(
        tokens=jnp.pad(tokens, ((0, 0), (0, width - size))),
        logprobs=jnp.zeros((batch, width), jnp.float32),
        lengths=lengths,
        prompt_lengths=lengths,
        limits=limits,
        done=lengths >= limits,
        stops=jnp.broadcast_to(stops, (batch, stops.shape[1])),
        **settings,
        keys=keys,
        carry=carry,
        drafter=state,
    )


@functools.partial(compilation.jit, static_argnames=("target", "drafter", "max_length"))
def _prefill(params, prompt, lengths, *, target, drafter, max_length):
    """Absorbs `prompt[:-1]`: the last token is the first root."""
    speculative = drafter is not None
    carry = target.init_carry(params.target, len(prompt), max_length, speculative)
    carry, _ = target.scan(params.target, carry, prompt, lengths - 1)
    if not speculative:
        return carry, None
    return carry, drafter.init(params.drafter, prompt, lengths, max_length)


@functools.partial(compilation.jit, static_argnames=("target",))
def generate(
    params: Params,
    state: DecodeState,
    *,
    target: LanguageModel,
    max_steps: int | Array | None = None,
) -> DecodeState:
    """Decodes one token per target call: the baseline, in one `lax.while_loop`.

    Args:
        params: of the target.
        state: made by `init_state` without a drafter.
        target: the model.
        max_steps: stop after as many steps, if not all rows are done before.

    Returns:
        The state after; call again to go on.
    """

    def body(loop):
        steps, state = loop
        carry, hidden = target.step(params.target, state.carry, state.root)
        logits = target.logits(params.target, hidden)
        needs = sampling.needs(state.sampling)
        emit = jax.vmap(sampling.emit, (0, 0, 0, None))
        token = emit(state.keys, logits, state.sampling, needs)
        logprob = rows.take_one(logits, token) - jax.nn.logsumexp(logits, axis=-1)
        count = 1 - state.done.astype(jnp.int32)
        state = _append(state, token[:, None], logprob[:, None], count)
        return steps + 1, state.replace(carry=carry)

    return _loop(body, (jnp.int32(0), state), max_steps)[1]


def speculative_step(
    params: Params,
    state: DecodeState,
    *,
    target: LanguageModel,
    drafter: Drafter,
    verifier: Verifier,
) -> tuple[DecodeState, SpecInfo]:
    """Emits between one token and a whole path per row, for one call of the target.

    Args:
        params: of the target and the drafter.
        state: made by `init_state` with the same target and drafter.
        target: the model whose law is kept.
        drafter: what proposes.
        verifier: what decides.
    """
    drafting, draft = drafter.propose(
        params.drafter, state.keys, state.drafter, state.root
    )
    draft = _silence(draft, state.done)
    carry, tape, hidden = target.scan_tree(params.target, state.carry, draft.tree)
    logits = target.logits(params.target, hidden)
    verdict = verifier.verify(state.keys, draft, logits, state.sampling)
    verdict = _cut(state, draft.tree, verdict)
    tokens, count = emitted_tokens(draft.tree, verdict)
    info = _report(state, draft, verdict, count)
    state = _append(state, tokens, verdict.logprobs, count).replace(
        carry=target.commit(carry, tape, verdict.path),
        drafter=drafter.observe(
            params.drafter, drafting, draft, verdict, hidden, logits
        ),
    )
    return state, info


@functools.partial(compilation.jit, static_argnames=("target", "drafter", "verifier"))
def speculative_generate(
    params: Params,
    state: DecodeState,
    *,
    target: LanguageModel,
    drafter: Drafter,
    verifier: Verifier | None = None,
    max_steps: int | Array | None = None,
) -> tuple[DecodeState, SpecInfo]:
    """Decodes speculatively until all rows are done: one `lax.while_loop`.

    Args:
        params: of the target and the drafter.
        state: made by `init_state` with the same target and drafter.
        target: the model whose law is kept.
        drafter: what proposes.
        verifier: what decides; `sample_and_match` by default.
        max_steps: stop after as many steps, if not all rows are done before. To stream,
            call again and again with a few.

    Returns:
        The state after, and the report of the steps of this call.
    """
    _require(
        drafter.max_path <= target.max_path,
        f"The drafter proposes paths of {drafter.max_path} nodes and the target keeps "
        f"paths of {target.max_path}; raise the target's max_path.",
    )
    verifier = sample_and_match() if verifier is None else verifier

    def body(loop):
        steps, state, report = loop
        state, info = speculative_step(
            params, state, target=target, drafter=drafter, verifier=verifier
        )
        return steps + 1, state, report + info

    batch, width = state.tokens.shape
    report = SpecInfo(
        target_calls=jnp.zeros((batch,), jnp.int32),
        drafted=jnp.zeros((batch,), jnp.int32),
        kept=jnp.zeros((batch, drafter.max_path), jnp.int32),
        from_draft=jnp.zeros((batch, width), jnp.int8),
    )
    loop = _loop(body, (jnp.int32(0), state, report), max_steps)
    return loop[1], loop[2]


def _loop(body, loop: tuple, max_steps: int | Array | None) -> tuple:
    """Runs `body` on `(steps, state, ...)`."""

    def keep_going(loop):
        going = ~jnp.all(loop[1].done)  # some row has a token to go
        if max_steps is not None:
            going &= loop[0] < max_steps  # the caller wants to look in between
        return going

    return jax.lax.while_loop(keep_going, body, loop)


def _silence(draft: Draft, done: Array) -> Draft:
    """Takes the drafts from rows that are done."""
    parents = rows.select(
        done, jnp.full_like(draft.tree.parents, -1), draft.tree.parents
    )
    return draft.replace(tree=draft.tree.replace(parents=parents))


def _cut(state: DecodeState, tree: TokenTree, verdict: Verdict) -> Verdict:
    """Cuts a verdict after the first stop and at the budget; nothing in rows done."""
    tokens, count = emitted_tokens(tree, verdict)
    slots = jnp.arange(tokens.shape[1])[None]
    emitted = slots < count[:, None]
    stop = emitted & _is_stop(state, tokens)
    count = jnp.where(jnp.any(stop, axis=1), jnp.argmax(stop, axis=1) + 1, count)
    count = jnp.minimum(count, state.limits - state.lengths)
    count = jnp.where(state.done, 0, count).astype(jnp.int32)
    kept = slots < count[:, None]
    return Verdict(
        path=jnp.where(kept, verdict.path, -1),
        num_accepted=jnp.maximum(count - 1, 0),
        next_token=rows.take_one(tokens, jnp.maximum(count - 1, 0)),
        logprobs=jnp.where(kept, verdict.logprobs, 0.0),
    )


def _append(
    state: DecodeState, tokens: Array, logprobs: Array, count: Array
) -> DecodeState:
    """Appends the first `count` `[B]` of tokens `[B, D]`, and sees who is done."""
    new = jnp.arange(tokens.shape[1])[None] < count[:, None]
    lengths = state.lengths + count
    stopped = jnp.any(new & _is_stop(state, tokens), axis=1)
    tokens, logprobs = jnp.where(new, tokens, 0), jnp.where(new, logprobs, 0.0)
    return state.replace(
        tokens=rows.write(state.tokens, tokens, state.lengths),
        logprobs=rows.write(state.logprobs, logprobs, state.lengths),
        lengths=lengths,
        done=state.done | stopped | (lengths >= state.limits),
    )


def _is_stop(state: DecodeState, tokens: Array) -> Array:
    return jnp.any(tokens[:, :, None] == state.stops[:, None], axis=-1)


def _report(
    state: DecodeState, draft: Draft, verdict: Verdict, count: Array
) -> SpecInfo:
    slots = jnp.arange(verdict.path.shape[1])[None]
    accepted = slots < verdict.num_accepted[:, None]
    nothing = jnp.zeros(state.tokens.shape, jnp.int8)
    return SpecInfo(
        target_calls=(~state.done).astype(jnp.int32),
        drafted=jnp.sum(draft.tree.parents >= 0, axis=1, dtype=jnp.int32),
        kept=(slots < count[:, None]).astype(jnp.int32),
        from_draft=rows.write(nothing, accepted, state.lengths),
    )


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
    tokens = np.zeros((len(prompts), size), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    return jnp.asarray(tokens), jnp.asarray(lengths)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _per_row(value: Any, batch: int, dtype: Any) -> Array:
    return jnp.broadcast_to(jnp.asarray(value, dtype), (batch,))


def _known(*arrays: Any) -> bool:
    """Whether the values are there to be looked at, and not being traced."""
    return not any(isinstance(array, jax.core.Tracer) for array in arrays)


def _check_prompt(prompt, lengths, target, drafter) -> None:
    _require(
        prompt.ndim == 2 and prompt.size > 0,
        f"Expected a prompt [B, T] of at least one token, got shape {prompt.shape}.",
    )
    if lengths is not None and _known(lengths):
        low, high = np.min(lengths), np.max(lengths)
        _require(
            1 <= low and high <= prompt.shape[1],
            f"Expected lengths from 1 to {prompt.shape[1]}, got {low} to {high}.",
        )
    if _known(prompt):
        low, high = int(jnp.min(prompt)), int(jnp.max(prompt))
        _require(
            0 <= low and high < target.vocab_size,
            f"Expected tokens from 0 to {target.vocab_size - 1}, got {low} to {high}.",
        )
    if drafter is not None and drafter.vocab_size not in (None, target.vocab_size):
        raise ValueError(
            f"The drafter has {drafter.vocab_size} tokens and the target "
            f"{target.vocab_size}; they must share one vocabulary."
        )


def _check_settings(budget, temperature, top_k, top_p) -> None:
    if not _known(budget, temperature, top_k, top_p):
        return
    _require(bool((budget >= 1).all()), f"max_new_tokens must be positive: {budget}.")
    _require(
        bool((temperature >= 0).all()),
        f"The temperature must not be negative, got {temperature}.",
    )
    _require(bool((top_k >= 0).all()), f"top_k must not be negative, got {top_k}.")
    _require(
        bool(((top_p > 0) & (top_p <= 1)).all()),
        f"top_p must be in (0, 1], got {top_p}.",
    )
