"""A draft model proposes its own likeliest tokens, and its past follows the text."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import contexts
import tiny
from jaxspec.core import Verdict
from jaxspec.drafting.model import draft_model
from jaxspec.models.rollback import ROLLBACKS

NAME, MAX_PATH = "small-hybrid", 4
PROMPTS = [[3, 1, 4, 1, 5], [9]]
KEYS = jax.random.split(jax.random.key(0), 2)
SETTINGS = tiny.settings(2, temperature=0.0)


def setup(branching, rollback="replay"):
    model = tiny.model(NAME, rollback=rollback, max_path=MAX_PATH)
    drafter = draft_model(model, branching)
    tokens = np.zeros((2, 5), np.int32)
    for row, prompt in enumerate(PROMPTS):
        tokens[row, : len(prompt)] = prompt
    params, lengths = tiny.params(NAME), jnp.array([5, 1])

    @jax.jit
    def read(params, tokens):
        state = drafter.init(params, 2, 40)
        return drafter.absorb(params, state, tokens, None, lengths - 1)

    return drafter, params, read(params, jnp.asarray(tokens))


def likeliest(text, count):
    return np.argsort(-tiny.oracle_logits(NAME, text)[-1], kind="stable")[:count]


@pytest.mark.parametrize("branching", [(1, 1, 1), (3,), (2, 2), (2, 1, 2)])
def test_children_are_the_likeliest_tokens(branching):
    drafter, params, state = setup(branching)
    context = contexts.of_texts(PROMPTS, None, KEYS, SETTINGS)
    _, draft = jax.jit(drafter.propose)(params, state, context)
    assert draft.max_path == len(branching) + 1
    tree = draft.tree
    for row, prompt in enumerate(PROMPTS):
        for node in range(tree.num_nodes):
            children = np.flatnonzero(np.asarray(tree.parents)[row] == node)
            if len(children):
                path = np.asarray(tree.tokens)[row, tiny.path_of(tree, row, node)]
                expected = likeliest([*prompt[:-1], *path], len(children))
                np.testing.assert_array_equal(tree.tokens[row, children], expected)


@functools.cache
def compiled(branching, rollback):
    drafter, params, state = setup(branching, rollback)

    @jax.jit
    def turn(params, state, root, path, next_token):
        context = contexts.of_roots(root, KEYS, SETTINGS)
        state, draft = drafter.propose(params, state, context)
        count = jnp.sum(path >= 0, axis=1)
        nothing = jnp.zeros(path.shape)
        verdict = Verdict(path, jnp.maximum(count - 1, 0), next_token, nothing)
        outcome = contexts.outcome(draft.tree, verdict)
        return drafter.observe(params, state, outcome), draft

    return turn, params, state


@pytest.mark.parametrize("rollback", ROLLBACKS)
def test_its_past_follows_what_was_accepted(rollback):
    """Leaves, inner nodes, nothing, and rows that are done, in turn."""
    turn, params, state = compiled((2, 1), rollback)
    texts = [list(prompt) for prompt in PROMPTS]
    rng = np.random.default_rng(0)
    choices = [[0, 2, 4], [0, 1], [0], [0, 1, 3], [], [0, 2, 4], [0, 1, 3], [0, 2]]
    for i in range(len(choices)):
        root = jnp.array([text[-1] for text in texts])
        picked = [choices[i], choices[(i + 3) % len(choices)]]
        path = jnp.array([tiny.pad_path(p, 3) for p in picked])
        next_token = tiny.random_tokens(rng, 2)
        state, draft = turn(params, state, root, path, next_token)
        for row, text in enumerate(texts):
            if picked[row]:
                text += np.asarray(draft.tree.tokens)[row, picked[row][1:]].tolist()
                text.append(int(next_token[row]))
    root = jnp.array([text[-1] for text in texts])
    none = jnp.full((2, 3), -1, jnp.int32)
    _, draft = turn(params, state, root, none, root)
    for row, text in enumerate(texts):
        np.testing.assert_array_equal(draft.tree.tokens[row, 1:3], likeliest(text, 2))


@pytest.mark.parametrize(
    "branching, message",
    [
        ((), "at least one level"),
        ((0, 1), "at least 1"),
        ((tiny.VOCAB + 1,), "draws 49 children.*has 48 tokens"),
        ((1, 1, 1, 1), "paths of 4 nodes.*paths of 5"),
    ],
)
def test_bad_branchings_are_refused(branching, message):
    with pytest.raises(ValueError, match=message):
        draft_model(tiny.model(NAME, max_path=MAX_PATH), branching)


def test_an_outcome_without_a_draft_is_refused():
    drafter, params, state = setup((1,))
    with pytest.raises(
        ValueError, match="between propose and observe, got one without"
    ):
        drafter.observe(params, state, None)


def test_equal_settings_give_equal_drafters():
    model = tiny.model("mamba2", max_path=4)
    assert draft_model(model, [2, 1]) == draft_model(model, builder=(2, 1))
    assert draft_model(model, [2, 1]) != draft_model(model, (1, 2))
