"""Attention where blocks of queries end, and with the narrowest window."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from jaxspec.models import attention
from rounds import (
    LENGTHS,
    MAX_PATH,
    NO_PATH,
    NUM_NODES,
    TOLERANCE,
    check_nodes,
    commit_at_random,
    compiled_round,
    model_and_params,
    read_prompt,
    rollbacks,
)

WINDOWS = ["attention", "attention-window", "attention-itself"]


@pytest.mark.parametrize("name", WINDOWS)
def test_a_prompt_may_be_several_blocks_of_queries(name, monkeypatch):
    monkeypatch.setattr(attention, "_QUERY_BLOCK", 4)
    model, params = model_and_params(name)
    tokens = tiny.random_tokens(np.random.default_rng(22), 3, max(LENGTHS))
    carry = model.init_carry(params, 3, 40)
    scan = jax.jit(lambda *args: model.scan(*args))  # not one that is compiled already
    _, hidden = scan(params, carry, tokens, jnp.array(LENGTHS))
    logits = model.logits(params, hidden)
    for row, length in enumerate(LENGTHS[:2]):
        expected = tiny.oracle_logits(name, np.asarray(tokens[row, :length]))
        assert tiny.relative_error(logits[row, :length], expected) < TOLERANCE


@pytest.mark.parametrize("name", ["attention-itself"])
@rollbacks
def test_a_window_of_one_sees_the_token_itself(name, rollback):
    """In a tree and after commits; `scan` and `step` are with all other models."""
    carry, texts, _ = read_prompt(name, rollback, max_length=60)
    round_ = compiled_round(name, rollback)
    carry = commit_at_random(round_, carry, texts, NUM_NODES, 3, seed=28)
    tree = tiny.random_tree(np.random.default_rng(29), 3, NUM_NODES, MAX_PATH)
    _, logits = round_(carry, tree, NO_PATH)
    nodes = functools.partial(tiny.real_nodes, tree)
    check_nodes(name, texts, tree, logits, nodes)
