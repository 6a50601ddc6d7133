"""A drafter that proposes nothing: every step emits one token, by a pass over the root.

A state that is made with it can be verified with drafts from anywhere, and goes on without
any. It is the least drafter there is.
"""

import functools

import jax.numpy as jnp

from jaxspec import checks
from jaxspec.core import Context, Draft, Drafter, deterministic_draft
from jaxspec.drafting.stateless import stateless
from jaxspec.trees import TokenTree


def silent(max_path: int = 1) -> Drafter:
    """Makes a drafter without drafts.

    Args:
        max_path: nodes on the longest path that it claims to propose, the root included.

    Raises:
        ValueError: if it is not positive.
    """
    return _silent(checks.integer("max_path", max_path, least=1))


@functools.cache
def _silent(max_path: int) -> Drafter:
    def propose(params, context: Context) -> Draft:
        del params
        root = context.root[:, None]
        tree = TokenTree(root, jnp.full_like(root, TokenTree.NO_PARENT))
        return deterministic_draft(tree, max_path)

    return stateless(propose, max_path)
