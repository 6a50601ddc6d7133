"""Sample and match: emit as the target would alone, and follow the tree while it agrees.

At each node the target draws its own next token, with the emission noise of that position.
If a child carries that token the walk goes on there, otherwise it ends. No draft law
enters, so the output law is the target's for any tree whatever built it ("NSS" of the
SpecInfer and Sequoia papers), and with equal keys the text is the one `generate` writes.
At temperature 0 this is greedy verification.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxspec import sampling
from jaxspec.core import Draft, Verdict, Verifier
from jaxspec.trees import TokenTree

Array = jax.Array


class _Walk(NamedTuple):
    """A walk down one tree."""

    node: Array  # [] where it stands
    depth: Array  # []
    path: Array  # [D]
    logprobs: Array  # [D]
    token: Array  # [] emitted last
    going: Array  # [] bool


def verify_row(
    key: Array,
    tree: TokenTree,
    logits: Array,
    settings: sampling.Sampling,
    needs: sampling.Needs,
    max_path: int,
) -> Verdict:
    """Verifies one tree (no batch axis): tokens and parents `[N]`, logits `[N, V]`."""
    slots = jnp.arange(tree.parents.shape[0])

    def step(walk: _Walk) -> _Walk:
        raw = logits[walk.node]
        here = settings._replace(position=settings.position + walk.depth)
        token = sampling.emit(key, raw, here, needs)
        logprob = raw[token] - jax.nn.logsumexp(raw)
        match = (tree.parents == walk.node) & (tree.tokens == token) & (slots > 0)
        child = jnp.argmax(match).astype(jnp.int32)
        depth = walk.depth + 1
        going = jnp.any(match) & (depth < max_path)
        path = jnp.where((jnp.arange(max_path) == depth) & going, child, walk.path)
        logprobs = jnp.where(jnp.arange(max_path) == walk.depth, logprob, walk.logprobs)
        return _Walk(child, depth, path, logprobs, token, going)

    root, true = jnp.int32(0), jnp.bool_(True)
    path = jnp.full((max_path,), -1, jnp.int32).at[0].set(0)
    walk = _Walk(root, root, path, jnp.zeros((max_path,), logits.dtype), root, true)
    walk = jax.lax.while_loop(lambda walk: walk.going, step, walk)
    return Verdict(walk.path, walk.depth - 1, walk.token, walk.logprobs)


def _verify(
    keys: Array, draft: Draft, logits: Array, settings: sampling.Sampling
) -> Verdict:
    needs = sampling.needs(settings)
    verify = functools.partial(verify_row, max_path=draft.max_path)
    rows = jax.vmap(verify, in_axes=(0, 0, 0, 0, None))
    return rows(keys, draft.tree, logits, settings, needs)


def sample_and_match() -> Verifier:
    """The verifier for any drafter: lossless, and text equal to `generate`'s."""
    return Verifier(_verify)
