"""How a state begins: what counts of the prompts, and what is refused."""

import jax
import jax.numpy as jnp
import pytest

import jaxspec
import tiny
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
