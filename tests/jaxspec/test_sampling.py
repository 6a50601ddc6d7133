"""Filters against sorting, noise against its two rules."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec import sampling
from jaxspec.sampling import Needs, Role, Sampling

INF = np.inf
RANDOM = np.random.default_rng(0).normal(size=(4, 33)).astype(np.float32) * 3
LOGITS = {
    "random": RANDOM[0],
    "negative": -np.abs(RANDOM[1]) - 1,
    "rounded, so that many tie": np.round(RANDOM[2]),
    "all equal": np.full(33, -2.5, np.float32),
    "one far above": np.where(np.arange(33) == 20, 80, RANDOM[3]).astype(np.float32),
    "some impossible": np.where(np.arange(33) % 3 == 1, -INF, RANDOM[0]),
    "all but one impossible": np.where(np.arange(33) == 5, 1, -INF),
    "a large range": RANDOM[1] * 1e4,
    "tiny": RANDOM[2] * 1e-30,
}


def setting(temperature=1.0, top_k=0, top_p=1.0, position=0):
    return Sampling(
        jnp.float32(temperature),
        jnp.int32(top_k),
        jnp.float32(top_p),
        jnp.int32(position),
    )


def kept_by_sorting(logits, temperature, top_k, top_p):
    """Which tokens stay, in float64, with a sort for either filter."""
    logits = logits.astype(np.float64)
    kept = np.ones(len(logits), bool)
    if 0 < top_k < len(logits):
        kept = logits >= np.sort(logits)[-top_k]
    if top_p < 1:
        weights = np.where(kept, np.exp((logits - logits.max()) / temperature), 0)
        levels = np.unique(logits)[::-1]  # tied tokens come together
        mass = np.array([weights[logits >= t].sum() for t in levels]) / weights.sum()
        assert np.abs(mass - top_p).min() > 1e-5  # or rounding would decide
        kept &= logits >= levels[np.argmax(mass >= top_p)]
    return kept & (logits > -INF)


filter_logits = jax.jit(sampling.filter_logits)
filter_by_each = jax.jit(jax.vmap(sampling.filter_logits, in_axes=(None, 0)))


@pytest.mark.parametrize("logits", LOGITS.values(), ids=LOGITS.keys())
def test_filters_keep_what_sorting_keeps(logits):
    logits = logits.astype(np.float32)
    grid = itertools.product(
        [0.3, 1.0, 2.0], [0, 1, 5, 32, 33, 100], [1.0, 0.93, 0.51, 1e-6]
    )
    grid = list(grid)  # temperature, top_k, top_p
    settings = [jnp.array(column) for column in zip(*grid, strict=True)]
    position = jnp.zeros(len(grid), jnp.int32)
    found = filter_by_each(logits, Sampling(*settings, position))
    for row, setting in zip(found, grid, strict=True):
        kept = kept_by_sorting(logits, *setting)
        expected = np.where(kept, logits, -INF)
        np.testing.assert_array_equal(row, expected, err_msg=str(setting))


def test_tokens_that_tie_with_the_last_one_kept_are_kept():
    logits = jnp.array([1.0, 3.0, 2.0, 2.0, 2.0])
    found = filter_logits(logits, setting(top_k=2))
    assert found.tolist() == [-INF, 3.0, 2.0, 2.0, 2.0]
    found = filter_logits(logits, setting(top_p=0.5))  # 3.0 has 0.45
    assert found.tolist() == [-INF, 3.0, 2.0, 2.0, 2.0]


def test_zeros_of_either_sign_tie():
    found = filter_logits(jnp.array([-0.0, 0.0, -1.0]), setting(top_k=1))
    assert found.tolist() == [0.0, 0.0, -INF]


def test_top_p_counts_what_top_k_leaves():
    logits = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1]))  # of the first two, 0.57 and 0.43
    found = filter_logits(logits, setting(top_k=2, top_p=0.5))
    assert (found > -INF).tolist() == [True, False, False, False]
    found = filter_logits(logits, setting(top_k=0, top_p=0.5))
    assert (found > -INF).tolist() == [True, True, False, False]


def test_top_p_is_of_the_law_at_its_temperature():
    logits = jnp.log(jnp.array([0.6, 0.4]))
    hot = filter_logits(logits, setting(temperature=4.0, top_p=0.55))  # 0.525
    cold = filter_logits(logits, setting(temperature=0.5, top_p=0.55))  # 0.69
    assert (hot > -INF).tolist() == [True, True]
    assert (cold > -INF).tolist() == [True, False]


def assert_follows(tokens, law, quantile):
    """A chi-square test; the quantile is that of 0.999."""
    expected = np.asarray(law, np.float64) * len(tokens)
    counts = np.bincount(tokens, minlength=len(law))
    possible = expected > 0
    assert not counts[~possible].any()
    assert ((counts - expected)[possible] ** 2 / expected[possible]).sum() < quantile


@pytest.mark.parametrize("top_p", [1.0, 0.5])
@pytest.mark.parametrize("temperature", [1e-8, 1e-10, 1e-37])
def test_no_temperature_is_too_low(temperature, top_p):
    """Compiled: a product and a difference may then be rounded as one."""
    logits = jax.random.normal(jax.random.key(5), (3, 4))
    row = setting(temperature, top_p=top_p)
    needs = sampling.Needs(jnp.bool_(True), jnp.bool_(top_p < 1.0))
    law = jax.jit(jax.vmap(sampling.law, (0, None, None)))(logits, row, needs)
    best = jax.nn.one_hot(jnp.argmax(logits, axis=1), 4)
    np.testing.assert_allclose(law, best, atol=1e-6)


def test_draw_follows_the_softmax():
    logits = jnp.array([0.5, -1.0, 1.5, -0.2, 0.0])
    keys = jax.random.split(jax.random.key(0), 20_000)
    tokens = jax.jit(jax.vmap(sampling.draw, in_axes=(0, None)))(keys, logits)
    assert_follows(tokens, jax.nn.softmax(logits), 18.5)  # 4 degrees of freedom


def test_draw_never_takes_what_is_impossible():
    logits = jnp.array([-INF, 0.0, -INF, 1.0, -1.0])
    keys = jax.random.split(jax.random.key(1), 20_000)
    tokens = jax.jit(jax.vmap(sampling.draw, in_axes=(0, None)))(keys, logits)
    assert_follows(tokens, jax.nn.softmax(logits), 13.9)  # 2 degrees of freedom


WIDE = jnp.array([-1e7, 0.0, -1e7 - 1.0, -3e7, -INF, -3e7 - 2.0], jnp.float32)


@pytest.mark.parametrize("how", ["draw_without_replacement", "perturb", "draw"])
def test_draws_after_a_sure_one_keep_their_digits(how):
    """Logits of -1e7 are 1 apart in float32, too coarse for noise to be added to."""

    def row(key):
        if how == "perturb":
            zero = jnp.float32(0.0)
            tokens, values = sampling.perturb(key, WIDE, zero, zero, 6)
            return tokens, values > -jnp.inf
        if how == "draw":
            rest = jnp.where(WIDE == 0.0, -jnp.inf, WIDE)
            second = sampling.draw(key, rest)
            return jnp.array([1, second, 0, 0, 0, 0]), jnp.ones(6, bool)
        return sampling.draw_without_replacement(key, WIDE, 6)

    keys = jax.random.split(jax.random.key(6), 20_000)
    tokens, exists = jax.jit(jax.vmap(row))(keys)
    tokens = np.asarray(tokens)
    assert (tokens[:, 0] == 1).all()
    share = 1 / (1 + np.exp(-1))
    assert abs((tokens[:, 1] == 0).mean() - share) < 4 * np.sqrt(share / 4 / 2e4)
    if how != "draw":
        assert (np.asarray(exists) == [True] * 5 + [False]).all()
        share = 1 / (1 + np.exp(-2))
        assert abs((tokens[:, 3] == 3).mean() - share) < 4 * np.sqrt(share / 4 / 2e4)


def test_what_is_drawn_with_values_is_what_is_drawn_without():
    logits, zero = jax.random.normal(jax.random.key(1), (7,)), jnp.float32(0.0)
    key = jax.random.key(8)
    tokens, values = sampling.perturb(key, logits, zero, zero, 4)
    plain, _ = sampling.draw_without_replacement(key, logits, 4)
    np.testing.assert_array_equal(tokens, plain)
    assert (np.diff(values) <= 0.0).all() and values[0] == 0.0


def test_no_chance_accepts_what_was_not_proposed():
    keys = jax.random.split(jax.random.key(0), 100)
    accept = jax.vmap(sampling.accept, (0, None, None))
    assert not accept(keys, jnp.float32(0.5), jnp.float32(0.0)).any()
    assert not accept(keys, jnp.float32(0.0), jnp.float32(0.5)).any()
    assert accept(keys, jnp.float32(0.5), jnp.float32(0.5)).all()


# --- Emission ---

emit = jax.jit(sampling.emit)
ALL = Needs(jnp.bool_(True), jnp.bool_(True))
FLAT = jnp.zeros(1000)  # so that the token tells the noise


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize(
    "logits, token", [([0.0, 2.0, 1.0, 2.0], 1), ([-3.0, -3.0], 0), ([-INF, 0.0], 1)]
)
def test_temperature_zero_emits_the_first_of_the_largest(logits, token, noise):
    """Whether or not another row of the batch needs noise."""
    needs = Needs(jnp.bool_(noise), jnp.bool_(noise))
    found = emit(jax.random.key(0), jnp.array(logits), setting(temperature=0), needs)
    assert found == token


@pytest.mark.parametrize("position", range(3))
def test_one_token_kept_is_emitted_at_any_temperature(position):
    logits = jnp.array([0.0, 0.1, 0.3, 0.2])
    row = setting(temperature=50, top_k=1, position=position)
    assert emit(jax.random.key(0), logits, row, ALL) == 2


@pytest.mark.parametrize("position", range(3))
@pytest.mark.parametrize("filters", [False, True])
def test_the_likeliest_token_alone_is_greedy(position, filters):
    """Of equal ones the first, as at temperature 0, and in verifiers that use laws."""
    logits = jnp.array([0.0, 0.3, 0.1, 0.3])
    row = setting(temperature=2.0, top_k=1, position=position)
    needs = Needs(jnp.bool_(True), jnp.bool_(filters))
    assert emit(jax.random.key(position), logits, row, needs) == 1
    law = jax.jit(sampling.law)(logits, row, needs)
    np.testing.assert_array_equal(law, [0.0, 1.0, 0.0, 0.0])


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_emission_follows_the_filtered_law_at_its_temperature(temperature):
    logits = jnp.array([0.5, -1.0, 1.5, -0.2, 0.0])
    kept = jnp.array([0.5, -INF, 1.5, -INF, 0.0])
    keys = jax.random.split(jax.random.key(4), 20_000)
    rows = jax.jit(jax.vmap(sampling.emit, in_axes=(0, None, None, None)))
    tokens = rows(keys, logits, setting(temperature, top_k=3), ALL)
    assert_follows(tokens, jax.nn.softmax(kept / temperature), 13.9)


def test_emission_noise_is_of_the_key_and_the_position_only():
    key, other = jax.random.split(jax.random.key(0))
    token = emit(key, FLAT, setting(0.7, position=4), ALL)
    unfiltered = Needs(jnp.bool_(True), jnp.bool_(False))
    assert emit(key, FLAT, setting(1.3, position=4), ALL) == token
    assert emit(key, FLAT, setting(1.3, 500, 0.4, position=4), ALL) == token
    assert emit(key, FLAT, setting(0.7, position=4), unfiltered) == token
    assert emit(key, FLAT, setting(0.7, position=5), ALL) != token
    assert emit(other, FLAT, setting(0.7, position=4), ALL) != token


def test_the_noise_is_that_of_the_position_that_is_emitted():
    key = jax.random.key(3)
    noise = sampling.noise_key(key, Role.EMIT, 8)
    token = sampling.draw(noise, FLAT)
    assert emit(key, FLAT, setting(position=7), ALL) == token


def test_a_row_emits_the_same_alone_and_in_a_batch():
    keys = jax.random.split(jax.random.key(1), 4)
    logits = jax.random.normal(jax.random.key(2), (4, 50))
    batch = Sampling(
        jnp.array([0.0, 1.0, 0.8, 2.0]),
        jnp.array([0, 0, 20, 5]),
        jnp.array([1.0, 1.0, 0.9, 0.7]),
        jnp.array([3, 0, 3, 90]),
    )
    rows = jax.jit(jax.vmap(sampling.emit, in_axes=(0, 0, 0, None)))
    together = rows(keys, logits, batch, sampling.needs(batch))
    for i in range(4):
        row = jax.tree.map(lambda x, i=i: x[i], batch)
        alone = emit(keys[i], logits[i], row, sampling.needs(row))
        assert together[i] == alone


@pytest.mark.parametrize(
    "temperature, top_k, top_p, noise, filters",
    [
        ([0.0, 0.0], [0, 5], [1.0, 0.5], False, False),  # greedy rows filter nothing
        ([0.0, 1.0], [5, 0], [0.5, 1.0], True, False),
        ([0.0, 1.0], [0, 5], [1.0, 1.0], True, True),
        ([0.7, 1.0], [1, 1], [1.0, 0.5], False, False),
        ([0.0, 1.0], [0, 0], [1.0, 0.5], True, True),
    ],
)
def test_a_batch_needs_what_a_row_needs(temperature, top_k, top_p, noise, filters):
    settings = map(jnp.array, (temperature, top_k, top_p, [0, 0]))
    found = sampling.needs(Sampling(*settings))
    assert (bool(found.noise), bool(found.filters)) == (noise, filters)


def test_no_two_of_sequence_role_and_position_share_a_key():
    sequences = jax.random.split(jax.random.key(0), 3)
    keys = [
        tuple(jax.random.key_data(sampling.noise_key(key, role, position)).tolist())
        for key, role, position in itertools.product(sequences, Role, range(5))
    ]
    assert len(set(keys)) == 3 * 3 * 5
