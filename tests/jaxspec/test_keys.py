"""Keys are threefry's, whatever implementation JAX makes by default."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
from jaxspec import sampling
from texts import (
    PROMPTS,
    autoregressive,
    check_same,
    make_drafter,
    speculative,
    start,
    target,
)

OTHERS = ["rbg", "unsafe_rbg"]
others = pytest.mark.parametrize("impl", OTHERS)
HOT = {"temperature": 1.0}


@others
@pytest.mark.parametrize("count", [None, len(PROMPTS)])
def test_keys_of_another_implementation_are_refused(impl, count):
    keys = jax.random.key(0, impl=impl)
    keys = keys if count is None else jax.random.split(keys, count)
    with pytest.raises(ValueError, match=f"threefry2x32, got {impl}, .* impl='three"):
        autoregressive(keys=keys, **HOT)


@others
def test_they_are_refused_in_a_state_too(impl):
    params, state = start(**HOT)
    keys = jax.random.split(jax.random.key(0, impl=impl), len(PROMPTS))
    with pytest.raises(ValueError, match=f"threefry2x32, got {impl}"):
        jaxspec.generate(params, state.replace(keys=keys), target=target())


def test_raw_keys_are_refused_wherever_they_come_in():
    """Their implementation would be the one that JAX makes by default."""
    params, state = start(**HOT)
    raw = jax.random.key_data(state.keys)
    with pytest.raises(ValueError, match="Expected typed keys"):
        jaxspec.generate(params, state.replace(keys=raw), target=target())
    with pytest.raises(ValueError, match="Expected typed keys"):
        sampling.noise_key(raw[0], sampling.Role.EMIT, jnp.int32(0))


@others
def test_because_a_batch_would_share_its_noise(impl):
    """If this fails, JAX has changed, and the refusal may go."""
    keys = jax.random.split(jax.random.key(0, impl=impl), 3)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, (4,)))(keys)
    alone = jnp.stack([jax.random.gumbel(key, (4,)) for key in keys])
    assert not np.array_equal(noise, alone)


@others
@pytest.mark.parametrize("name", ["ngram-tree", "model-tree"])
def test_the_default_of_jax_changes_no_text(name, impl):
    plain = autoregressive(**HOT)
    drafted, _ = speculative(*make_drafter(name), **HOT)
    with jax.default_prng_impl(impl):
        check_same(autoregressive(**HOT), plain)
        check_same(speculative(*make_drafter(name), **HOT)[0], drafted)


@others
def test_the_default_of_jax_changes_no_seed(impl):
    expected = jax.random.key_data(sampling.key(3))
    with jax.default_prng_impl(impl):
        np.testing.assert_array_equal(jax.random.key_data(sampling.key(3)), expected)


def test_every_key_that_the_package_makes_names_its_implementation():
    package = pathlib.Path(jaxspec.__file__).parent
    made = re.compile(r"random\.(key|PRNGKey)\((?![^)]*impl=)")
    for path in package.rglob("*.py"):
        assert not made.search(path.read_text()), path
