"""How a state begins: what counts of the prompts, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
import tiny
from jaxspec import checks
from texts import (
    MAX_LENGTH,
    PROMPTS,
    TARGET,
    autoregressive,
    baseline,
    check_same,
    make_drafter,
    speculative,
    start,
    target,
)

drafters = pytest.mark.parametrize("name", ["ngram-tree", "model-tree"])


@drafters
def test_only_what_counts_of_a_prompt_is_looked_at(name):
    tokens, lengths = jaxspec.pad_prompts(PROMPTS, multiple=16)
    live = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
    garbage = jnp.where(live, tokens, -7)
    check_same(autoregressive(tokens=garbage), baseline("greedy"))
    state, _ = speculative(*make_drafter(name), tokens=garbage)
    check_same(state, baseline("greedy"))


@drafters
def test_prompts_may_be_padded_beyond_the_cache(name):
    wide, _ = jaxspec.pad_prompts(PROMPTS, multiple=64)
    assert wide.shape[1] > MAX_LENGTH
    check_same(autoregressive(tokens=wide), baseline("greedy"))
    state, _ = speculative(*make_drafter(name), tokens=wide)
    check_same(state, baseline("greedy"))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": -0.1}, "temperature must not be negative"),
        ({"top_k": -1}, "top_k must not be negative"),
        ({"top_p": 0.0}, "top_p must be in"),
        ({"max_new_tokens": 0}, "max_new_tokens must be positive"),
        ({"temperature": jnp.ones(2)}, "Expected one temperature or 3"),
        ({"keys": jax.random.split(jax.random.key(0), 2)}, "one typed key .* or 3"),
        ({"keys": jnp.zeros(2, jnp.uint32)}, "one typed key .* or 3"),
        ({"max_length": 8}, "cache holds 8"),
        ({"prompts": [[1, tiny.VOCAB]]}, "tokens from 0 to 47, got 1 to 48"),
        ({"prompts": [[1, -1]]}, "got -1 to 1"),
        ({"prompts": [[1], []]}, "Prompt 1 is empty"),
        ({"prompts": []}, "at least one prompt"),
        ({"tokens": jnp.ones((3, 16))}, "Tokens are integers"),
    ],
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        start(**options)


def test_bad_prompt_shapes_are_refused():
    params, model = jaxspec.Params(tiny.params(TARGET)), tiny.model(TARGET)
    with pytest.raises(ValueError, match="got shape"):
        jaxspec.init_state(params, jnp.zeros((1, 0), jnp.int32), target=model)
    with pytest.raises(ValueError, match="Expected lengths from 1 to 2"):
        jaxspec.init_state(
            params, jnp.ones((1, 2), jnp.int32), jnp.array([3]), target=model
        )


def test_rows_that_are_done_have_no_budget_of_drafts():
    _, state = start(draft_budgets=[5, 0, 7], speculative=True)
    assert state.context.budget.tolist() == [5, 0, 7]
    state = state.replace(done=jnp.array([True, False, False]))
    assert state.context.budget.tolist() == [0, 0, 7]
    np.testing.assert_array_equal(
        state.context.root, [prompt[-1] for prompt in PROMPTS]
    )
    np.testing.assert_array_equal(state.context.sampling.position, state.lengths - 1)


def test_a_pool_is_of_rows_that_are_done():
    """It has the shapes of a state whose rows are live, and of its stops."""
    drafter, own = make_drafter("model-tree")
    params, state = start(drafter, own)
    pool = jaxspec.empty_state(
        params, 3, MAX_LENGTH, target=target(), drafter=drafter, num_stops=5
    )
    assert pool.done.all()
    assert checks.difference(pool, state) is None
    found, info = jaxspec.speculative_generate(
        params, pool, target=target(), drafter=drafter
    )
    assert not info.target_calls.any()
    np.testing.assert_array_equal(found.lengths, pool.lengths)
