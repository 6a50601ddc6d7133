"""Trees that are given: what was put into the state before the step is proposed.

A structure that lives on the host, a suffix tree say, drives a jitted step with it:

    state = state.replace(drafter=TokenTree(tokens, parents))
    state, info = jaxspec.speculative_step(params, state, ...)

A tree is proposed once. Its nodes count as chosen without chance, whatever chose them, so
that a drafter that draws from laws must not be driven this way.
"""

import functools

import jax
import jax.numpy as jnp

from jaxspec import rows, trees
from jaxspec.core import Draft, Drafter, Verdict, deterministic_draft
from jaxspec.trees import TokenTree

Array = jax.Array


def given(num_nodes: int = 16, max_path: int = 8) -> Drafter:
    """Makes a drafter whose state is the next tree, `[B, num_nodes]`.

    The root's token is filled in, and what is deeper than `max_path` is dropped. The host
    answers for the rest (`trees.check`).

    Args:
        num_nodes: slots of the tree, the root included.
        max_path: nodes on its longest path, the root included.

    Raises:
        ValueError: on sizes out of range; in a step, if the tree has other slots.
    """
    if num_nodes < 1 or max_path < 2:
        raise ValueError(
            f"Expected num_nodes >= 1 and max_path >= 2, got {num_nodes} and {max_path}."
        )
    return _given(num_nodes, max_path)


@functools.cache
def _given(num_nodes: int, max_path: int) -> Drafter:
    def init(
        params, prompt: Array, lengths: Array, max_length: int, hidden
    ) -> TokenTree:
        del params, lengths, max_length, hidden
        return _nothing(len(prompt), num_nodes)

    def propose(
        params, keys: Array, state: TokenTree, root: Array, settings
    ) -> tuple[TokenTree, Draft]:
        del params, keys, settings
        if state.parents.shape != (len(root), num_nodes):
            raise ValueError(
                f"Expected a tree of {len(root)} x {num_nodes} slots, got "
                f"{state.parents.shape}."
            )
        tree = trees.check(state)
        fits = trees.depth(tree) < max_path
        tokens = tree.tokens.at[:, 0].set(root)
        parents = jnp.where(fits, tree.parents, TokenTree.NO_PARENT)
        return state, deterministic_draft(TokenTree(tokens, parents), max_path)

    def observe(
        params, state: TokenTree, draft: Draft, verdict: Verdict, hidden, logits
    ) -> TokenTree:
        del params, draft, hidden, logits
        done = verdict.path[:, 0] < 0
        nothing = _nothing(len(done), num_nodes)
        keep = functools.partial(rows.select, done)
        return jax.tree.map(keep, state, nothing)

    return Drafter(init, propose, observe, max_path, None)


def _nothing(batch: int, num_nodes: int) -> TokenTree:
    """Trees of roots alone."""
    tokens = jnp.zeros((batch, num_nodes), jnp.int32)
    return TokenTree(tokens, jnp.full_like(tokens, TokenTree.NO_PARENT))
