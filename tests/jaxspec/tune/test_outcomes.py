"""Outcomes of drafts are those of the verdict, and of the draws that led there."""

import jax.numpy as jnp
import numpy as np
import pytest

import texts
import tiny
from jaxspec.core import Draft, Params
from jaxspec.drafting.model import draft_model
from jaxspec.drafting.static import static_tree
from jaxspec.trees import TokenTree
from jaxspec.tune import outcomes
from jaxspec.verification.recursive_rejection import recursive_rejection

WITHOUT, FREE = Draft.WITHOUT_REPLACEMENT, Draft.DETERMINISTIC


def test_outcomes_of_a_tree_by_hand():
    """The root's children 1, 2 and 3, of which 2 was kept; 4 and 5 hang from it."""
    tree = TokenTree(jnp.array([[9, 2, 0, 1, 1, 3]]), jnp.array([[-1, 0, 0, 0, 2, 2]]))
    logits = jnp.log(jnp.array([[[0.1, 0.2, 0.3, 0.4], [0.25, 0.5, 0.125, 0.125]]]))
    draft = Draft(
        tree=tree,
        kind=jnp.array([[FREE, *[WITHOUT] * 4, FREE]]),
        draft_logits=logits,
        logits_row=jnp.array([[0, 0, 1, 0, 0, 0]]),
        score=jnp.array([[1.0, 0.4, 0.3, 0.2, 0.1, 0.05]]),
        vocab_ids=None,
        max_path=3,
    )
    kept = jnp.array([[False, False, True, False, False, True]])
    found = outcomes.outcomes(draft, kept, 4)
    assert found.score is draft.score and found.kept is kept
    assert found.rank[0, 1:].tolist() == [0, 1, 2, 0, 1]
    assert found.reached[0, 1:].tolist() == [True, True, False, True, True]
    expected = [0.3, 0.1 / 0.7, 0.2 / 0.6, 0.5, 0.0]
    np.testing.assert_allclose(found.probability[0, 1:], expected, rtol=1e-5)


@pytest.fixture(scope="module")
def measured():
    drafter = draft_model(
        tiny.model(texts.DRAFT), static_tree((2, 1), "without_replacement")
    )
    params = Params(tiny.params(texts.TARGET), tiny.params(texts.DRAFT))
    setup = outcomes.Setup(
        params, tiny.model(texts.TARGET), drafter, recursive_rejection()
    )
    written = []
    found = outcomes.measure(
        setup,
        texts.PROMPTS,
        temperature=1.0,
        max_new_tokens=24,
        batch=2,
        seed=1,
        advance=written.append,
    )
    return found, written


def test_every_draft_counts_once(measured):
    found, written = measured
    assert sum(written) == len(texts.PROMPTS)
    assert len({len(part) for part in found}) == 1 and len(found.kept) % 4 == 0
    assert found.kept.any() and not found.kept.all()
    assert not (found.kept & ~found.reached).any()  # what is kept was reached


def test_each_rank_is_kept_as_the_laws_say(measured):
    """First children of a reached node are tested, and each is kept or not."""
    found, _ = measured
    assert set(found.rank.tolist()) == {0, 1}
    assert (found.score <= 1.0).all() and (found.score > 0.0).all()
    assert ((found.probability > 0.0) & (found.probability <= 1.0)).all()
