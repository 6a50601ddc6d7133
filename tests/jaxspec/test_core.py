"""What a verdict emits."""

import jax
import jax.numpy as jnp
import pytest

import contexts
from jaxspec import trees
from jaxspec.core import Draft, Verdict, deterministic_draft, emitted_tokens
from jaxspec.trees import TokenTree

# Two children of the root, and a chain of two below the second.
TREE = TokenTree(jnp.array([[9, 3, 4, 5, 6]]), jnp.array([[-1, 0, 0, 2, 3]]))
CASES = {
    "a done row": ([-1, -1, -1, -1], [0, 0, 0, 0], 0),
    "the root alone": ([0, -1, -1, -1], [7, 0, 0, 0], 1),
    "one draft": ([0, 1, -1, -1], [3, 7, 0, 0], 2),
    "the other branch": ([0, 2, 3, -1], [4, 5, 7, 0], 3),
    "a full path": ([0, 2, 3, 4], [4, 5, 6, 7], 4),
}


def verdict(paths):
    path = jnp.array(paths)
    count = jnp.sum(path >= 0, axis=1, dtype=jnp.int32)
    next_token = jnp.full(len(paths), 7, jnp.int32)
    return Verdict(path, jnp.maximum(count - 1, 0), next_token, jnp.zeros(path.shape))


@pytest.mark.parametrize("path, tokens, count", CASES.values(), ids=CASES.keys())
def test_a_row_emits_its_path_below_the_root_and_the_next_token(path, tokens, count):
    found, number = emitted_tokens(TREE, verdict([path]))
    assert found.tolist() == [tokens]
    assert number.tolist() == [count]


def test_rows_emit_on_their_own():
    paths, tokens, counts = zip(*CASES.values(), strict=True)
    batch = jax.tree.map(lambda x: jnp.repeat(x, len(paths), axis=0), TREE)
    found, number = jax.jit(emitted_tokens)(batch, verdict(list(paths)))
    assert found.tolist() == list(tokens)
    assert number.tolist() == list(counts)


def test_a_deterministic_draft_has_no_laws():
    draft = deterministic_draft(trees.chain(jnp.zeros((3, 4), jnp.int32)), 4)
    assert (draft.kind == Draft.DETERMINISTIC).all() and draft.kind.shape == (3, 4)
    assert draft.draft_logits.shape[:2] == (3, 0)
    assert draft.max_path == 4


def test_the_root_of_a_context_is_the_last_token_of_each_text():
    context = contexts.of_texts([[3, 1, 4], [7], [2, 8]])
    assert context.root.tolist() == [4, 7, 8]
    assert contexts.of_roots(jnp.array([5, 6])).root.tolist() == [5, 6]
