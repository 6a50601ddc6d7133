"""Traversal verification: leaves are tested first, with all that leads to them.

Depth first, a leaf `c` below the node `n` is kept, with its whole path, with probability

    a(c) = min(1, a(n) R_n[y] / D[y]),    a(root) = 1,

where `R_n` is the target's law at `n` and `D` the law that the token `y` of `c` was drawn
from. A leaf that is refused is taken away, and its parent goes on with

    left = sum(max(a R - D, 0));  R = norm(max(a R - D, 0));  a = left / (left + 1 - a),

and becomes a leaf itself when no child is left. The kept path is followed by a token of
`R` at its end (Weng et al. 2025). A path is judged as a whole, so that a token unlikely in
itself may be kept for what comes after it. On a chain it is block verification and never
keeps fewer tokens than recursive rejection on average (Sun et al. 2024). Where a node below
the root has several children it nearly always keeps more, but not by necessity: with a
weight below 1 the first child takes another part of `R`, and what is left may suit the next
one less.
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
    one, false = jnp.ones((), logits.dtype), jnp.bool_(False)

    def step(walk: _Walk) -> _Walk:
        """Goes down to a child, or tests the leaf and goes up if it is refused."""
        node, above = walk.path[walk.depth], jnp.maximum(walk.depth - 1, 0)
        child, down = proposals.next_child(
            draft.tree.parents, node, walk.after[walk.depth]
        )
        down &= walk.depth + 1 < draft.max_path
        down &= ~jnp.isnan(walk.wanted[walk.depth, 0])  # no law is no reason to refuse
        is_leaf = ~down & (walk.depth > 0)
        chance = jax.random.fold_in(key, node), walk.weight[walk.depth], one
        accepted = jax.lax.cond(is_leaf, sampling.accept, lambda *_: false, *chance)
        kept = accepted | (~down & ~is_leaf)  # an empty path is always kept

        # The token in question is the child's, or the leaf's, below the node at `at`.
        at = jnp.where(down, walk.depth, above)
        slot = jnp.where(down, child, node)
        token = draft.tree.tokens[slot]
        law = proposals.child_law(draft, slot, walk.tested[at])
        share = walk.weight[at] * walk.wanted[at]

        # Down: the child's weight.
        possible = (share[token] > 0.0) & (law[token] > 0.0)
        most = jnp.where(possible, jnp.maximum(share[token], law[token]), 1.0)
        reach = jnp.where(possible, share[token] / most, 0.0)
        # Up: what is left at the parent. With nothing left to want and nothing to lose,
        # only rounding refused the leaf.
        left = jnp.sum(jnp.maximum(share - law, 0.0))
        rest = left + (1.0 - walk.weight[at])
        weight = jnp.where(rest > 0.0, left / jnp.where(rest > 0.0, rest, 1.0), 1.0)
        wanted = jnp.where(left > 0.0, sampling.residual(share, law), walk.wanted[at])

        to = jnp.where(down, walk.depth + 1, above)

        def put(table: Array, if_down: Array, if_up: Array) -> Array:
            new = jnp.where(down, if_down, jnp.where(kept, table[to], if_up))
            return table.at[to].set(new)

        return _Walk(
            depth=jnp.where(kept, walk.depth, to),
            path=put(walk.path, child, walk.path[to]),
            after=put(walk.after, jnp.int32(0), node),
            weight=put(walk.weight, reach, weight),
            wanted=put(
                walk.wanted, sampling.law(logits[child], settings, needs), wanted
            ),
            tested=put(walk.tested, false, walk.tested[at].at[token].set(True)),
            kept=kept,
        )

    none = jnp.zeros((draft.max_path,), jnp.int32)
    table = jnp.zeros((draft.max_path, size), logits.dtype)
    wanted = table.at[0].set(sampling.law(logits[0], settings, needs))
    weight = jnp.ones((draft.max_path,), logits.dtype)
    walk = _Walk(jnp.int32(0), none, none, weight, wanted, table > 0.0, false)
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


@functools.cache
def traversal() -> Verifier:
    """The verifier that keeps most; uses the laws of the draft."""
    return Verifier(functools.partial(proposals.verify, verify_row))
