"""Metrics of a run made by hand, and of texts that differ where they are made to."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
import tiny
from jaxspec import metrics, sampling
from jaxspec.spec_info import SpecInfo

# Row 0 took four steps and emitted 1, 1, 2 and 3 tokens, row 1 one step and 3 tokens.
INFO = SpecInfo(
    target_calls=jnp.array([4, 1]),
    drafted=jnp.array([8, 2]),
    kept=jnp.array([[4, 2, 1], [1, 1, 1]]),
    from_draft=jnp.zeros((2, 12), jnp.int8),
    non_finite=jnp.array([0, 2]),
)
NOTHING = SpecInfo(
    jnp.zeros(2, jnp.int32),
    jnp.zeros(2, jnp.int32),
    jnp.zeros((2, 3), jnp.int32),
    jnp.zeros((2, 12), jnp.int8),
    jnp.zeros(2, jnp.int32),
)


def test_block_efficiency_is_tokens_per_call():
    assert metrics.block_efficiency(INFO) == pytest.approx((7 + 3) / 5)


def test_accepted_per_step_is_drafts_per_call():
    assert metrics.accepted_per_step(INFO) == pytest.approx((3 + 2) / 5)


def test_acceptance_by_depth_is_a_share_of_the_calls():
    np.testing.assert_allclose(metrics.acceptance_by_depth(INFO), [3 / 5, 2 / 5])


def test_a_call_emits_one_token_more_than_it_accepts():
    difference = metrics.block_efficiency(INFO) - metrics.accepted_per_step(INFO)
    assert difference == pytest.approx(1)


def test_a_run_without_calls_has_accepted_nothing():
    assert metrics.block_efficiency(NOTHING) == 0
    assert metrics.accepted_per_step(NOTHING) == 0
    np.testing.assert_array_equal(metrics.acceptance_by_depth(NOTHING), [0, 0])


def test_infos_add_up():
    twice = INFO + INFO
    assert twice.kept.tolist() == [[8, 4, 2], [2, 2, 2]]
    assert twice.non_finite.tolist() == [0, 4]
    assert metrics.block_efficiency(twice) == metrics.block_efficiency(INFO)


@pytest.mark.parametrize("text", ["abc", "größer", "x" * 1000])
def test_zlib_ratio_is_compressed_bytes_over_bytes(text):
    raw = text.encode()
    assert metrics.zlib_ratio(text) == len(zlib.compress(raw, 9)) / len(raw)


def test_a_repetitive_text_has_a_smaller_ratio():
    letters = np.random.default_rng(0).integers(97, 123, 500).astype(np.uint8)
    text = letters.tobytes().decode()
    assert metrics.zlib_ratio("speculate " * 50) < 0.1 < 0.5 < metrics.zlib_ratio(text)


# --- Whether two texts agree ---

TEXT = [3, 1, 4, 1, 5, 9, 2, 6]


def text_state(params, **options):
    prompt, model = jnp.array([TEXT]), tiny.model("mamba2")
    options = {"max_new_tokens": 1} | options
    return jaxspec.init_state(jaxspec.Params(params), prompt, target=model, **options)


def compare(first, second, params):
    return metrics.compare(tiny.model("mamba2"), params, first, second, 0)


def test_equal_texts_are_identical():
    params = tiny.params("mamba2")
    state = text_state(params)
    assert compare(state, state, params) == (True, False, -1, 0.0)
    beyond = state.replace(tokens=state.tokens.at[0, len(TEXT)].set(7))
    assert compare(state, beyond, params).identical  # does not count


def test_a_text_that_goes_on_differs_where_the_other_ends():
    params = tiny.params("mamba2")
    state = text_state(params)
    longer = state.replace(lengths=state.lengths + 1)
    for pair in ((state, longer), (longer, state)):
        found = compare(*pair, params)
        assert not found.identical and not found.near_tie
        assert found.position == len(TEXT)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_difference_is_judged_by_the_scores_where_texts_part(temperature):
    params, place = tiny.params("mamba2"), 5
    state = text_state(params, temperature=temperature)
    other = state.replace(tokens=state.tokens.at[0, place].set(30).at[0, 7].set(0))
    logits = tiny.oracle_logits("mamba2", TEXT[:place])[-1]
    scores = logits
    if temperature:
        key = sampling.noise_key(state.keys[0], sampling.Role.EMIT, place)
        noise = np.asarray(jax.random.gumbel(key, (tiny.VOCAB,)), np.float64)
        scores = logits / temperature + noise
    gap = abs(scores[TEXT[place]] - scores[30]) / np.abs(logits).max()
    found = compare(state, other, params)
    assert (found.identical, found.near_tie, found.position) == (False, False, place)
    assert found.gap == pytest.approx(gap, rel=1e-3)


@pytest.mark.parametrize("temperature", [0.0, 1e-3])
def test_tokens_of_equal_scores_are_a_near_tie(temperature):
    """The model is tied, so that two tokens of one embedding have one logit."""
    place, twin = 5, 30
    table = tiny.params("mamba2")["embed"]["embedding"]
    table = table.at[twin].set(table[TEXT[place]])
    params = tiny.params("mamba2") | {"embed": {"embedding": table}}
    state = text_state(params, temperature=temperature)
    other = state.replace(tokens=state.tokens.at[0, place].set(twin))
    found = compare(state, other, params)
    assert (found.identical, found.position) == (False, place)
    assert found.near_tie == (temperature == 0.0)  # the noise tells them apart


@pytest.mark.parametrize(
    "head, tokens_per_call, published",
    [
        (128256, 3.63, 1.70),
        (65536, 3.54, 1.83),
        (32960, 3.43, 1.95),
        (16384, 3.25, 1.90),
    ],
)
def test_memory_bound_speedup_of_a_trimmed_head(head, tokens_per_call, published):
    """VocabTrim (2025), Llama-3.2-3B: an EAGLE layer, its table, its head; four drafts.

    Sizes of the published model; the figures have three digits, sizes of heads fewer.
    """
    width, hidden, keys = 3072, 8192, 1024
    layer = 2 * width * width + 2 * width * keys + 3 * width * hidden
    rest = 2 * width * width + layer + 128256 * width
    target = 28 * layer + 128256 * width
    found = metrics.memory_bound_speedup(
        tokens_per_call, 4, 2 * (rest + head * width), 2 * target
    )
    assert found == pytest.approx(published, rel=0.03)


def test_drafts_that_cost_nothing_are_all_gain():
    assert metrics.memory_bound_speedup(2.5, 7, 0, 10) == 2.5
    assert metrics.memory_bound_speedup(2.5, 4, 5, 10) == pytest.approx(2.5 / 3)
    with pytest.raises(ValueError, match="moves something"):
        metrics.memory_bound_speedup(2.5, 4, 5, 0)
