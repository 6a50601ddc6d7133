"""Traversal verification: leaves are tested first, with all that leads to them.

Depth first, a leaf `c` below the node `n` is kept, with its whole path, with probability

    a(c) = min(1, a(n) R_n[y] / D[y]),    a(root) = 1,

where `R_n` is the target's law at `n` and `D` the law that the token `y` of `c` was drawn
from. A leaf that is refused is taken away, and its parent goes on with

    left = sum(max(a R - D, 0));  R = norm(max(a R - D, 0));  a = left / (left + 1 - a),

and becomes a leaf itself when no child is left. The kept path is followed by a token of
`R` at its end (Weng et al. 2025). A path is judged as a whole, so that a token unlikely in
itself may be kept for what comes after it: never fewer tokens per call than recursive
rejection on average. On a chain it is block verification (Sun et al. 2024).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxspec import sampling
from jaxspec.core import Draft, Verdict, Verifier
from jaxspec.verification import proposals

Array = jax.Array


class _Walk(NamedTuple):
    """A walk over one tree: the node where it stands, and all that lead there."""

    depth: Array  # [] of the node
    path: Array  # [D] slots down to the node; beyond it, leftovers
    after: Array  # [D] the child of each that was taken away last
    weight: Array  # [D] `a`
    wanted: Array  # [D, V] `R`
    tested: Array  # [D, V] bool, tokens of the children taken away
    kept: Array  # [] bool


def verify_row(
    key: Array,
    draft: Draft,
    logits: Array,
    settings: sampling.Sampling,
    needs: sampling.Needs,
) -> Verdict:
    """Verifies one tree (no batch axis), logits `[N, V]`."""
    places, size = jnp.arange(draft.max_path), logits.shape[1]
    key = sampling.noise_key(key, sampling.Role.VERIFY, settings.position)

    def arrive(walk: _Walk, depth: Array, node: Array, weight: Array) -> _Walk:
        wanted = sampling.law(logits[node], settings, needs)
        return _Walk(
            depth,
            walk.path.at[depth].set(node),
            walk.after.at[depth].set(0),
            walk.weight.at[depth].set(weight),
            walk.wanted.at[depth].set(wanted),
            walk.tested.at[depth].set(jnp.zeros((size,), bool)),
            walk.kept,
        )

    def descend(walk: _Walk, child: Array) -> _Walk:
        here = walk.depth
        token = draft.tree.tokens[child]
        law = proposals.child_law(draft, child, walk.tested[here])
        share = walk.weight[here] * walk.wanted[here, token]
        proposed = jnp.where(share < law[token], law[token], share)
        weight = jnp.where(share > 0.0, share / proposed, 0.0)
        return arrive(walk, here + 1, child, weight)

    def test(walk: _Walk) -> _Walk:
        leaf, above = walk.path[walk.depth], walk.depth - 1
        one = jnp.ones((), logits.dtype)
        chance = sampling.accept(
            jax.random.fold_in(key, leaf), walk.weight[walk.depth], one
        )
        law = proposals.child_law(draft, leaf, walk.tested[above])
        share = walk.weight[above] * walk.wanted[above]
        left = jnp.sum(jnp.maximum(share - law, 0.0))
        rest = left + (1.0 - walk.weight[above])
        # With nothing left to want and nothing to lose, only rounding refused the leaf.
        weight = jnp.where(rest > 0.0, left / jnp.where(rest > 0.0, rest, 1.0), 1.0)
        wanted = jnp.where(
            left > 0.0, sampling.residual(share, law), walk.wanted[above]
        )
        token = draft.tree.tokens[leaf]
        without = walk._replace(
            depth=above,
            after=walk.after.at[above].set(leaf),
            weight=walk.weight.at[above].set(weight),
            wanted=walk.wanted.at[above].set(wanted),
            tested=walk.tested.at[above, token].set(True),
        )
        kept = walk._replace(kept=jnp.bool_(True))
        return jax.tree.map(functools.partial(jnp.where, chance), kept, without)

    def step(walk: _Walk) -> _Walk:
        node, after = walk.path[walk.depth], walk.after[walk.depth]
        child, some = proposals.next_child(draft.tree.parents, node, after)
        some &= walk.depth + 1 < draft.max_path

        def at_leaf(walk, _):  # an empty path is always kept
            kept = walk._replace(kept=jnp.bool_(True))
            return jax.lax.cond(walk.depth == 0, lambda _: kept, test, walk)

        return jax.lax.cond(some, descend, at_leaf, walk, child)

    zero = jnp.int32(0)
    none = jnp.zeros((draft.max_path,), jnp.int32)
    table = jnp.zeros((draft.max_path, size), logits.dtype)
    false = jnp.bool_(False)
    walk = _Walk(zero, none, none, table[:, 0], table, table > 0.0, false)
    walk = arrive(walk, zero, zero, jnp.ones((), logits.dtype))
    walk = jax.lax.while_loop(lambda walk: ~walk.kept, step, walk)

    path = jnp.where(places <= walk.depth, walk.path, -1)
    wanted = jnp.log(walk.wanted[walk.depth])
    last = sampling.draw(jax.random.fold_in(key, 0), wanted)
    below = draft.tree.tokens[jnp.maximum(jnp.roll(path, -1), 0)]
    emitted = jnp.where(places < walk.depth, below, last)
    raw = logits[jnp.maximum(path, 0)]
    logprobs = jnp.take_along_axis(raw, emitted[:, None], axis=1)[:, 0]
    logprobs -= jax.nn.logsumexp(raw, axis=1)
    logprobs = jnp.where(places <= walk.depth, logprobs, 0.0)
    return Verdict(path, walk.depth, last, logprobs)


def traversal() -> Verifier:
    """The verifier that keeps most; uses the laws of the draft."""
    return Verifier(functools.partial(proposals.verify, verify_row))
