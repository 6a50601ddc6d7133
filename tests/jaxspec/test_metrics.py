"""Metrics of a run made by hand."""

import zlib

import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec import metrics
from jaxspec.decoding import SpecInfo

# Row 0 took four steps and emitted 1, 1, 2 and 3 tokens, row 1 one step and 3 tokens.
INFO = SpecInfo(
    target_calls=jnp.array([4, 1]),
    drafted=jnp.array([8, 2]),
    kept=jnp.array([[4, 2, 1], [1, 1, 1]]),
    from_draft=jnp.zeros((2, 12), jnp.int8),
)
NOTHING = SpecInfo(
    jnp.zeros(2, jnp.int32),
    jnp.zeros(2, jnp.int32),
    jnp.zeros((2, 3), jnp.int32),
    jnp.zeros((2, 12), jnp.int8),
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
    assert metrics.block_efficiency(twice) == metrics.block_efficiency(INFO)


@pytest.mark.parametrize("text", ["abc", "größer", "x" * 1000])
def test_zlib_ratio_is_compressed_bytes_over_bytes(text):
    raw = text.encode()
    assert metrics.zlib_ratio(text) == len(zlib.compress(raw, 9)) / len(raw)


def test_a_repetitive_text_has_a_smaller_ratio():
    letters = np.random.default_rng(0).integers(97, 123, 500).astype(np.uint8)
    text = letters.tobytes().decode()
    assert metrics.zlib_ratio("speculate " * 50) < 0.1 < 0.5 < metrics.zlib_ratio(text)
