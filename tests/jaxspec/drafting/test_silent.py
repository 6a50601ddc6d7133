"""A drafter without drafts: one token per step, and room for the drafts of others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import contexts
import texts
from jaxspec.drafting.silent import silent


def test_nothing_is_proposed():
    context = contexts.of_texts([[3, 1], [7], [2, 7, 1]])
    state, draft = jax.jit(silent(3).propose)(
        None, silent(3).init(None, 3, 10), context
    )
    assert state == () and draft.max_path == 3
    assert draft.tree.tokens.tolist() == [[1], [7], [1]]
    assert (draft.tree.parents == -1).all()


@pytest.mark.parametrize("setting", ["sampled"])
def test_the_text_is_the_autoregressive_one(setting):
    state, info = texts.speculative(silent(texts.MAX_PATH), **texts.SETTINGS[setting])
    texts.check_same(state, texts.baseline(setting))
    np.testing.assert_array_equal(info.target_calls, texts.BUDGETS)
    assert not info.drafted.any() and not jnp.any(info.from_draft)


@pytest.mark.parametrize("max_path", [0, -1])
def test_bad_sizes_are_refused(max_path):
    with pytest.raises(ValueError, match="max_path must be positive"):
        silent(max_path)


def test_equal_sizes_give_equal_drafters():
    assert silent(4) == silent(max_path=4) != silent(5)
