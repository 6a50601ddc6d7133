"""The loop: autoregressive and speculative, every row at its own pace, on the device.

Between steps, in a row that is not done,

    the carry has absorbed all tokens but the last, and the last is the next root.

A speculative step proposes a tree below the root, runs the target over it once, lets the
verifier walk it, and keeps the walk. What is kept is cut by stop tokens and budgets after
verification, so that neither changes what would be accepted.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxspec import checks, compilation, loop_checks, mesh, rows, sampling, trees
from jaxspec.core import (
    Draft,
    Drafter,
    LanguageModel,
    Verdict,
    Verifier,
    emitted_tokens,
)
from jaxspec.decode_state import DecodeState, Params
from jaxspec.trees import TokenTree
from jaxspec.verification.sample_and_match import sample_and_match

Array = jax.Array


@struct.dataclass
class SpecInfo:
    """What is only worth reporting; adds up over steps.

    Attributes:
        target_calls: `[B]` int32, steps in which the row was not done.
        drafted: `[B]` int32, draft tokens proposed.
        kept: `[B, D]` int32, steps that emitted more than `d` tokens; column 0 is
            `target_calls`.
        from_draft: `[B, L + D]` int8, 1 where a draft supplied the token. That may be
            the last of a text too: a stop or a budget can cut inside an accepted path.
        non_finite: `[B]` int32, tokens emitted by logits that were not finite: NaN or plus
            infinity among them, or minus infinity alone. A sound model has none;
            `metrics.first_non_finite` finds the first.
    """

    target_calls: Array
    drafted: Array
    kept: Array
    from_draft: Array
    non_finite: Array

    def __add__(self, other: "SpecInfo") -> "SpecInfo":
        return jax.tree.map(jnp.add, self, other)


def generate(
    params: Params,
    state: DecodeState,
    *,
    target: LanguageModel,
    max_steps: int | Array | None = None,
    check_every: int = 1,
) -> DecodeState:
    """Decodes one token per target call: the baseline, in one `lax.while_loop`.

    Args:
        params: of the target.
        state: made by `init_state` without a drafter.
        target: the model.
        max_steps: stop after as many steps, if not all rows are done before.
        check_every: steps between two looks at whether all rows are done. On a mesh a
            look is an exchange between all devices; steps after the end are wasted, and
            change nothing.

    Returns:
        The state after; call again to go on. In a row that is done the carry is dead.

    Raises:
        TypeError: on params that are not in `Params`, or something else than a state.
        ValueError: if the state was made with another target, or a setting is out of
            range.
    """
    loop_checks.records(target=target)
    return _generate(
        params,
        loop_checks.one_per_row(state, target),
        loop_checks.steps(max_steps),
        target=target,
        check_every=checks.integer("check_every", check_every, least=1),
    )


@functools.partial(compilation.jit, static_argnames=("target", "check_every"))
def _generate(params, state, max_steps, *, target, check_every):
    """`generate` of arguments of one form each."""
    loop_checks.fits(params, state, target, None)

    def body(loop):
        steps, state = loop
        carry, hidden = target.step(params.target, state.carry, state.root)
        logits = target.logits(params.target, hidden)
        checks.logits(logits, state.lengths.shape, target.vocab_size)
        args = state.keys, logits, state.sampling
        token, logprob = mesh.by_rows(_emit, *args, over=mesh.AXES)
        count = 1 - state.done.astype(jnp.int32)
        state = _append(state, token[:, None], logprob[:, None], count)
        return steps + 1, state.replace(carry=carry)

    return _loop(body, (jnp.int32(0), state), max_steps, check_every)[1]


def _emit(keys: Array, logits: Array, settings: sampling.Sampling):
    """One token per row, and its log-probability."""
    needs = sampling.needs(settings)
    emit = jax.vmap(sampling.emit, (0, 0, 0, None))
    token = emit(keys, logits, settings, needs)
    return token, rows.take_one(logits, token) - jax.nn.logsumexp(logits, axis=-1)


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

    Raises:
        TypeError: on params that are not in `Params`, or something else than a state, a
            drafter or a verifier.
        ValueError: if the state was made with another target or drafter.
    """
    loop_checks.records(target=target, drafter=drafter, verifier=verifier)
    state = loop_checks.one_per_row(state, target)
    loop_checks.fits(params, state, target, drafter)
    return _step(params, state, target=target, drafter=drafter, verifier=verifier)


def _step(params, state, *, target, drafter, verifier):
    """`speculative_step` of arguments that fit each other."""
    with checks.drafter_errors(params.drafter):
        drafting, draft = drafter.propose(
            params.drafter, state.keys, state.drafter, state.root, state.sampling
        )
    loop_checks.draft(draft, drafter, len(state.lengths))
    draft = _root(_silence(draft, state.done), state.root)
    carry, tape, hidden = target.scan_tree(params.target, state.carry, draft.tree)
    logits = _logits(target, params.target, draft.tree, hidden)
    checks.logits(logits, draft.tree.parents.shape, target.vocab_size)
    whole = _verify(verifier, state, draft, logits)
    verdict = _cut(state, draft.tree, whole)
    tokens, count = emitted_tokens(draft.tree, verdict)
    info = _report(state, draft, whole, count)
    state = _append(state, tokens, verdict.logprobs, count).replace(
        carry=target.commit(carry, tape, verdict.path),
        drafter=drafter.observe(
            params.drafter, drafting, draft, verdict, hidden, logits
        ),
    )
    return state, info


def _logits(target: LanguageModel, params: Any, tree: TokenTree, hidden: Array):
    """The logits of all nodes; on a CPU, where no row has a draft, the roots' and zeros.

    An accelerator reads the head once for any number of nodes, a CPU computes.
    """

    def of_all(hidden):
        return target.logits(params, hidden)

    def of_roots(hidden):
        logits = target.logits(params, hidden[:, :1])
        return jnp.pad(logits, ((0, 0), (0, tree.num_nodes - 1), (0, 0)))

    def of_some(hidden):
        return jax.lax.cond(trees.has_draft(tree), of_all, of_roots, hidden)

    if tree.num_nodes == 1:
        return of_all(hidden)
    return jax.lax.platform_dependent(hidden, cpu=of_some, default=of_all)


def _verify(
    verifier: Verifier, state: DecodeState, draft: Draft, logits: Array
) -> Verdict:
    """Has every device walk trees of its own."""

    def verify(keys, draft, logits, settings, vocab_ids):
        draft = draft.replace(vocab_ids=vocab_ids)
        return verifier.verify(keys, draft, logits, settings)

    args = state.keys, draft.replace(vocab_ids=None), logits, state.sampling
    shared = (draft.vocab_ids,)
    return mesh.by_rows(verify, *args, shared=shared, over=mesh.AXES)


def speculative_generate(
    params: Params,
    state: DecodeState,
    *,
    target: LanguageModel,
    drafter: Drafter,
    verifier: Verifier | None = None,
    max_steps: int | Array | None = None,
    check_every: int = 1,
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
        check_every: steps between two looks at whether all rows are done, as in
            `generate`.

    Returns:
        The state after, and the report of the steps of this call.

    Raises:
        TypeError: on params that are not in `Params`, or something else than a state, a
            drafter or a verifier.
        ValueError: if the state was made with another target or drafter, or a setting is
            out of range.
    """
    verifier = sample_and_match() if verifier is None else verifier
    loop_checks.records(target=target, drafter=drafter, verifier=verifier)
    return _speculate(
        params,
        loop_checks.one_per_row(state, target),
        loop_checks.steps(max_steps),
        target=target,
        drafter=drafter,
        verifier=verifier,
        check_every=checks.integer("check_every", check_every, least=1),
    )


@functools.partial(
    compilation.jit, static_argnames=("target", "drafter", "verifier", "check_every")
)
def _speculate(params, state, max_steps, *, target, drafter, verifier, check_every):
    """`speculative_generate` of arguments of one form each."""
    loop_checks.fits(params, state, target, drafter)

    def body(loop):
        steps, state, report = loop
        state, info = _step(
            params, state, target=target, drafter=drafter, verifier=verifier
        )
        return steps + 1, state, report + info

    start = jnp.int32(0), state, empty_report(state, drafter)
    loop = _loop(body, start, max_steps, check_every)
    return loop[1], loop[2]


def empty_report(state: DecodeState, drafter: Drafter) -> SpecInfo:
    """The report of no steps."""
    batch, width = state.tokens.shape
    return SpecInfo(
        target_calls=jnp.zeros((batch,), jnp.int32),
        drafted=jnp.zeros((batch,), jnp.int32),
        kept=jnp.zeros((batch, drafter.max_path), jnp.int32),
        from_draft=jnp.zeros((batch, width), jnp.int8),
        non_finite=jnp.zeros((batch,), jnp.int32),
    )


def _loop(body, loop: tuple, max_steps: Array, check_every: int) -> tuple:
    """Runs `body` on `(steps, state, ...)`, and looks who is done every few steps."""

    def advance(loop):
        if check_every == 1:
            return body(loop)
        count = jnp.minimum(check_every, max_steps - loop[0])
        return jax.lax.fori_loop(0, count, lambda _, loop: body(loop), loop)

    def keep_going(loop):
        return (
            ~jnp.all(loop[1].done)  # some row has a token to go
            & (loop[0] < max_steps)  # the caller wants to look in between
        )

    return jax.lax.while_loop(keep_going, advance, loop)


def _silence(draft: Draft, done: Array) -> Draft:
    """Takes the drafts from rows that are done."""
    parents = rows.select(
        done, jnp.full_like(draft.tree.parents, -1), draft.tree.parents
    )
    return draft.replace(tree=draft.tree.replace(parents=parents))


def _root(draft: Draft, root: Array) -> Draft:
    """Makes slot 0 the root, whatever the drafter has put there."""
    tree = TokenTree(
        tokens=draft.tree.tokens.at[:, 0].set(root),
        parents=draft.tree.parents.at[:, 0].set(TokenTree.NO_PARENT),
    )
    return draft.replace(tree=tree)


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


def _report(state: DecodeState, draft: Draft, whole: Verdict, count: Array) -> SpecInfo:
    """What became of a draft: the whole verdict, of which `count` tokens were kept."""
    slots = jnp.arange(whole.path.shape[1])[None]
    emitted = slots < count[:, None]
    accepted = slots < jnp.minimum(whole.num_accepted, count)[:, None]
    lost = emitted & ~jnp.isfinite(whole.logprobs)
    nothing = jnp.zeros(state.tokens.shape, jnp.int8)
    return SpecInfo(
        target_calls=(~state.done).astype(jnp.int32),
        drafted=jnp.sum(draft.tree.parents >= 0, axis=1, dtype=jnp.int32),
        kept=emitted.astype(jnp.int32),
        from_draft=rows.write(nothing, accepted, state.lengths),
        non_finite=jnp.sum(lost, axis=1, dtype=jnp.int32),
    )
