"""Recursive rejection: siblings are tested in turn, each against what is left to want.

At a node with the target's law `p`, and children `y_1 .. y_m` drawn in this order from
laws `D_1 .. D_m`,

    R = p;  for k = 1 .. m:  with probability min(1, R[y_k] / D_k[y_k]) go on at y_k,
                             else R = norm(max(R - D_k, 0));
    if no child is left, emit a token of R.

The emitted law is the target's for every tree in which the decision to draw another child,
and from which law, is made before that child is drawn (Yang et al. 2024 and Jeon et al.
2024: RSD; SpecInfer 2023 for draws with replacement). A deterministic child is a draw from
a law of one token.
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
    """A walk down one tree."""

    node: Array  # [] where it stands
    after: Array  # [] the child tested last
    depth: Array  # []
    wanted: Array  # [V] what is left of the target's law
    tested: Array  # [V] bool, tokens of the children tested
    path: Array  # [D]
    logprobs: Array  # [D]


def verify_row(
    key: Array,
    draft: Draft,
    logits: Array,
    settings: sampling.Sampling,
    needs: sampling.Needs,
) -> Verdict:
    """Verifies one tree (no batch axis), logits `[N, V]`."""
    places = jnp.arange(draft.max_path)
    key = sampling.noise_key(key, sampling.Role.VERIFY, settings.position)

    def arrive(node: Array) -> tuple[Array, Array]:
        raw = logits[node]
        return sampling.law(raw, settings, needs), jnp.zeros(raw.shape, bool)

    def going(walk: _Walk) -> Array:
        _, some = proposals.next_child(draft.tree.parents, walk.node, walk.after)
        return some & (walk.depth + 1 < draft.max_path)

    def test(walk: _Walk) -> _Walk:
        child, _ = proposals.next_child(draft.tree.parents, walk.node, walk.after)
        token = draft.tree.tokens[child]
        law = proposals.child_law(draft, child, walk.tested)
        kept = sampling.accept(
            jax.random.fold_in(key, child), walk.wanted[token], law[token]
        )
        here = kept & (places == walk.depth)
        down = _Walk(
            child,
            child,
            walk.depth + 1,
            *arrive(child),
            jnp.where(kept & (places == walk.depth + 1), child, walk.path),
            jnp.where(here, _logprob(logits[walk.node], token), walk.logprobs),
        )
        beside = walk._replace(
            after=child,
            wanted=sampling.residual(walk.wanted, law),
            tested=walk.tested.at[token].set(True),
        )
        return jax.tree.map(functools.partial(jnp.where, kept), down, beside)

    root, path = jnp.int32(0), jnp.where(places == 0, 0, -1)
    nothing = jnp.zeros((draft.max_path,), logits.dtype)
    walk = _Walk(root, root, root, *arrive(root), path, nothing)
    walk = jax.lax.while_loop(going, test, walk)
    last = sampling.draw(jax.random.fold_in(key, 0), jnp.log(walk.wanted))
    logprob = _logprob(logits[walk.node], last)
    logprobs = jnp.where(places == walk.depth, logprob, walk.logprobs)
    return Verdict(walk.path, walk.depth, last, logprobs)


def _logprob(raw: Array, token: Array) -> Array:
    return raw[token] - jax.nn.logsumexp(raw)


@functools.cache
def recursive_rejection() -> Verifier:
    """The verifier of SpecInfer, RSD, Sequoia and DySpec; uses the laws of the draft."""
    return Verifier(functools.partial(proposals.verify, verify_row))
