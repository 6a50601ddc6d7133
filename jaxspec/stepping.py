"""A speculative step and its halves, which may run in different places.

    state, draft = propose(params, state, drafter=drafter)
    state, outcome = verify(params, state, draft, target=target, verifier=verifier)
    state = observe(params, state, outcome, drafter=drafter)

Between steps, in a row that is not done,

    the carry has absorbed all tokens but the last, and the last is the next root.

`verify` runs the target over a tree below the root once, lets the verifier walk it, and
keeps the walk. What is kept is cut by stop tokens and budgets after verification, so that
neither changes what would be accepted. The draft may come from a drafter in the same loop,
from the host, or from another mesh.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxspec import budgets, checks, loop_checks, mesh, ragged, spec_info, trees
from jaxspec.core import (
    Draft,
    Drafter,
    LanguageModel,
    Outcome,
    Params,
    Verdict,
    Verifier,
    deterministic_draft,
    emitted_tokens,
)
from jaxspec.decode_state import DecodeState, append, is_stop
from jaxspec.spec_info import SpecInfo
from jaxspec.trees import TokenTree

Array = jax.Array


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
    return step(params, state, target=target, drafter=drafter, verifier=verifier)


def step(params, state, *, target, drafter, verifier) -> tuple[DecodeState, SpecInfo]:
    """`speculative_step` of arguments that fit each other."""
    before = state
    state, draft = _propose(params, state, drafter)
    state, outcome = _verify(params, state, draft, target, verifier)
    past = drafter.observe(params.drafter, state.drafter, outcome)
    return state.replace(drafter=past), spec_info.report(before, outcome)


def propose(
    params: Params, state: DecodeState, *, drafter: Drafter
) -> tuple[DecodeState, Draft]:
    """The drafter's half: drafts for every row that is not done.

    Args:
        params: of the target, which is not used, and the drafter.
        state: made by `init_state` with the same drafter.
        drafter: what proposes.

    Returns:
        The state, whose drafter is between `propose` and `observe`, and the draft.

    Raises:
        TypeError: on params that are not in `Params`, or what is not a record.
        ValueError: if the state was made without a drafter, or the drafter proposes other
            shapes than it announces.
    """
    checks.record("params", params, Params)
    checks.record("state", state, DecodeState)
    loop_checks.records(drafter=drafter)
    loop_checks.drafts(state)
    return _propose(params, state, drafter)


def _propose(params, state, drafter) -> tuple[DecodeState, Draft]:
    with checks.drafter_errors(params.drafter):
        past, draft = drafter.propose(params.drafter, state.drafter, state.context)
    loop_checks.draft(draft, len(state.lengths), drafter.max_path)
    return state.replace(drafter=past), draft


def verify(
    params: Params,
    state: DecodeState,
    draft: Draft,
    *,
    target: LanguageModel,
    verifier: Verifier,
) -> tuple[DecodeState, Outcome]:
    """The target's half: judges drafts, from wherever they come, and emits tokens.

    Slot 0 of a tree is taken for the row's root, whatever is in it. `trees.check` tells
    whether the rest is a tree.

    Args:
        params: of the target; the drafter's are not used.
        state: made by `init_state` with the same target and a drafter, or with
            `speculative`; what it holds of the drafter is not touched.
        draft: trees below the roots of the state, of paths no longer than the target
            keeps, and the laws that they were drawn from, if they were drawn.
        target: the model whose law is kept.
        verifier: what decides.

    Raises:
        TypeError: on params that are not in `Params`, or what is not a record.
        ValueError: if the state was made with another target, or the draft is of another
            batch, or of longer paths than the target keeps.
    """
    loop_checks.records(target=target, verifier=verifier)
    state = loop_checks.one_per_row(state, target)
    loop_checks.fits(params, state, target, None, speculative=True)
    loop_checks.draft(draft, len(state.lengths), None)
    loop_checks.paths(draft.max_path, target)
    return _verify(params, state, draft, target, verifier)


def step_without_drafts(
    params: Params,
    state: DecodeState,
    *,
    target: LanguageModel,
    drafter: Drafter,
    verifier: Verifier,
) -> tuple[DecodeState, Outcome]:
    """Emits one token per row by `LanguageModel.step`, the cheapest pass there is.

    The drafter absorbs what the target has read, so that it can propose in the next step.
    In rows that are done the carry is dead afterwards.

    Args:
        params: of the target and the drafter.
        state: made by `init_state` with the same target and drafter.
        target: the model whose law is kept.
        drafter: what proposes in other steps.
        verifier: what decides which token is emitted.

    Raises:
        TypeError: on params that are not in `Params`, or what is not a record.
        ValueError: if the state was made with another target or drafter.
    """
    loop_checks.records(target=target, drafter=drafter, verifier=verifier)
    state = loop_checks.one_per_row(state, target)
    loop_checks.fits(params, state, target, drafter)
    root, live = state.root[:, None], (~state.done).astype(jnp.int32)
    tree = TokenTree(root, jnp.full_like(root, TokenTree.NO_PARENT))
    carry, hidden = target.step(params.target, state.carry, root[:, 0])
    logits, hidden = target.logits(params.target, hidden)[:, None], hidden[:, None]
    draft = deterministic_draft(tree, max_path=1)
    state, outcome = _settle(state, draft, hidden, logits, target, verifier)
    with checks.drafter_errors(params.drafter):
        past = drafter.absorb(params.drafter, state.drafter, root, hidden, live)
    return state.replace(carry=carry, drafter=past), outcome


def _verify(params, state, draft, target, verifier) -> tuple[DecodeState, Outcome]:
    draft = _admit(draft, state)
    carry, tape, hidden = target.scan_tree(params.target, state.carry, draft.tree)
    logits = _logits(target, params.target, draft.tree, hidden)
    state, outcome = _settle(state, draft, hidden, logits, target, verifier)
    carry = target.commit(carry, tape, outcome.verdict.path)
    return state.replace(carry=carry), outcome


def _settle(
    state: DecodeState,
    draft: Draft,
    hidden: Array,
    logits: Array,
    target: LanguageModel,
    verifier: Verifier,
) -> tuple[DecodeState, Outcome]:
    """Judges a draft that was read, and emits tokens; the carry is not touched."""
    checks.logits(logits, draft.tree.parents.shape, target.vocab_size)
    whole = _judge(verifier, state, draft, logits)
    verdict, tokens = _cut(state, draft.tree, whole)
    count = jnp.sum(verdict.path >= 0, axis=1, dtype=jnp.int32)
    shown, kept = _fates(draft.tree, whole, state.done)
    return append(state, tokens, verdict.logprobs, count), Outcome(
        tree=draft.tree,
        verdict=verdict,
        tokens=tokens,
        count=count,
        hidden=hidden,
        logits=logits,
        shown=shown,
        kept=kept,
    )


def observe(
    params: Params, state: DecodeState, outcome: Outcome, *, drafter: Drafter
) -> DecodeState:
    """The drafter's second half: it learns what became of its draft.

    Args:
        params: of the target, which is not used, and the drafter.
        state: after `propose` and `verify`.
        outcome: from `verify`.
        drafter: what proposed.

    Raises:
        TypeError: on params that are not in `Params`, or what is not a record.
        ValueError: if the state was made without a drafter.
    """
    checks.record("params", params, Params)
    checks.record("state", state, DecodeState)
    checks.record("outcome", outcome, Outcome)
    loop_checks.records(drafter=drafter)
    loop_checks.drafts(state)
    past = drafter.observe(params.drafter, state.drafter, outcome)
    return state.replace(drafter=past)


def _admit(draft: Draft, state: DecodeState) -> Draft:
    """The draft below the roots of the state, within the budgets; nothing in rows done."""
    tree = TokenTree(
        tokens=draft.tree.tokens.at[:, 0].set(state.root),
        parents=draft.tree.parents.at[:, 0].set(TokenTree.NO_PARENT),
    )
    draft = draft.replace(tree=tree)
    return budgets.limit(draft, state.context.budget) if tree.num_nodes > 1 else draft


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


def _judge(
    verifier: Verifier, state: DecodeState, draft: Draft, logits: Array
) -> Verdict:
    """Has every device walk trees of its own."""

    def judge(keys, draft, logits, settings, vocab_ids):
        draft = draft.replace(vocab_ids=vocab_ids)
        return verifier.verify(keys, draft, logits, settings)

    return mesh.by_rows(
        judge,
        state.keys,
        draft.replace(vocab_ids=None),
        logits,
        state.sampling,
        shared=(draft.vocab_ids,),
        over=mesh.AXES,
    )


def _cut(
    state: DecodeState, tree: TokenTree, verdict: Verdict
) -> tuple[Verdict, Array]:
    """Cuts a verdict after the first stop and at the limit, and all of it in rows done.

    Returns:
        The verdict, and the emitted tokens `[B, D]`, 0 padded.
    """
    tokens, count = emitted_tokens(tree, verdict)
    slots = jnp.arange(tokens.shape[1])[None]
    emitted = slots < count[:, None]
    stop = emitted & is_stop(state, tokens)
    count = jnp.where(jnp.any(stop, axis=1), jnp.argmax(stop, axis=1) + 1, count)
    count = jnp.minimum(count, state.limits - state.lengths)
    count = jnp.where(state.done, 0, count).astype(jnp.int32)
    kept = slots < count[:, None]
    verdict = Verdict(
        path=jnp.where(kept, verdict.path, -1),
        num_accepted=jnp.maximum(count - 1, 0),
        next_token=ragged.take_one(tokens, jnp.maximum(count - 1, 0)),
        logprobs=jnp.where(kept, verdict.logprobs, 0.0),
    )
    return verdict, jnp.where(kept, tokens, 0)


def _fates(tree: TokenTree, whole: Verdict, done: Array) -> tuple[Array, Array]:
    """Which drafts `[B, N]` the verifier reached, and which it accepted."""
    slots = jnp.arange(tree.num_nodes)[None, None]
    on_path = jnp.any(whole.path[:, :, None] == slots, axis=1) & ~done[:, None]
    above = jnp.take_along_axis(on_path, jnp.maximum(tree.parents, 0), axis=1)
    is_draft = tree.parents >= 0
    return is_draft & above, is_draft & on_path
