"""Logits that are not finite: what is refused does not matter, what emits is reported."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
import spoiled
import tiny
from jaxspec import metrics, spec_info
from jaxspec.core import deterministic_draft
from jaxspec.models import hybrid
from jaxspec.trees import TokenTree
from spoiled import BAD

VERIFIERS = {
    "sample_and_match": jaxspec.sample_and_match(),
    "recursive_rejection": jaxspec.recursive_rejection(),
    "traversal": jaxspec.traversal(),
}
verifiers = pytest.mark.parametrize("verifier", VERIFIERS.values(), ids=list(VERIFIERS))
MODEL = hybrid.language_model(
    tiny.CONFIGS["small-hybrid"], rollback="replay", max_path=3
)
DRAFTER = jaxspec.silent(3)
NEW = 8


@functools.cache
def params():
    return jaxspec.Params(target=spoiled.params("small-hybrid", "nan"))


def start(first=(11, 5), drafter=DRAFTER):
    """Two rows, one greedy and one sampled, each from one token."""
    return jaxspec.init_state(
        params(),
        jnp.array(first, jnp.int32)[:, None],
        jnp.ones(2, jnp.int32),
        target=MODEL,
        drafter=drafter,
        max_new_tokens=NEW,
        temperature=jnp.array([0.0, 0.7]),
        keys=jax.random.split(jax.random.key(5), 2),
    )


def decode(verifier, state, text):
    """Proposes in every step a token that is not finite beside the one to come."""

    @jax.jit
    def step(params, state, tree):
        after, outcome = jaxspec.verify(
            params,
            state,
            deterministic_draft(tree, 3),
            target=MODEL,
            verifier=verifier,
        )
        return after, spec_info.report(state, outcome)

    parents = jnp.broadcast_to(jnp.array([[-1, 0, 0, 1]]), (2, 4))
    total = None
    while not state.done.all():
        ahead = jnp.take_along_axis(text, state.lengths[:, None], axis=1)
        bad = jnp.full_like(ahead, BAD)
        tokens = jnp.concatenate([bad, bad, ahead, ahead], axis=1)
        state, info = step(params(), state, TokenTree(tokens, parents))
        total = info if total is None else total + info
    return state, total


@verifiers
def test_refused_drafts_that_are_not_finite_change_no_text(verifier):
    right = jaxspec.generate(params(), start(drafter=None), target=MODEL)
    assert np.isfinite(right.logprobs).all() and not (right.tokens == BAD).any()
    text = jnp.pad(right.tokens, ((0, 0), (0, 4)))
    state, info = decode(verifier, start(), text)
    np.testing.assert_array_equal(
        state.tokens[0, : NEW + 1], right.tokens[0, : NEW + 1]
    )
    if verifier is VERIFIERS["sample_and_match"]:  # with equal noise
        width = right.tokens.shape[1]
        np.testing.assert_array_equal(state.tokens[:, :width], right.tokens)
    assert np.isfinite(state.logprobs).all()
    assert info.non_finite.tolist() == [0, 0]
    assert info.from_draft.any() and metrics.first_non_finite(state) is None


def test_tokens_of_logits_that_are_not_finite_are_counted_and_found():
    state = start(first=(11, BAD))
    state, info = jaxspec.speculative_generate(
        params(), state, target=MODEL, drafter=DRAFTER
    )
    assert info.non_finite.tolist() == [0, NEW]
    assert metrics.first_non_finite(state) == (1, 1)
    plain = jaxspec.generate(params(), start((11, BAD), None), target=MODEL)
    assert metrics.first_non_finite(plain) == (1, 1)


LOGITS = {
    "one NaN": [0.0, np.nan, 1.0, 2.0],
    "plus infinity": [0.0, np.inf, 1.0, 2.0],
    "two infinities": [np.inf, -np.inf, 1.0, np.inf],
    "nothing": [-np.inf] * 4,
    "sound": [-np.inf, 0.0, -np.inf, 2.0],
}


@verifiers
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("top_k", [0, 2])
def test_the_logprob_tells_whether_the_logits_were_finite(verifier, temperature, top_k):
    batch, nodes = len(LOGITS), 3
    logits = jnp.array(list(LOGITS.values()), jnp.float32)
    logits = jnp.broadcast_to(logits[:, None], (batch, nodes, 4))
    tokens = jnp.broadcast_to(jnp.array([[0, 1, 3]]), (batch, nodes))
    parents = jnp.broadcast_to(jnp.array([[-1, 0, 0]]), (batch, nodes))
    draft = deterministic_draft(TokenTree(tokens, parents), 2)
    settings = tiny.settings(batch, temperature, top_k)
    keys = jax.random.split(jax.random.key(0), batch)
    verdict = jax.jit(verifier.verify)(keys, draft, logits, settings)
    emitted = np.arange(2)[None] <= np.asarray(verdict.num_accepted)[:, None]
    finite = np.isfinite(verdict.logprobs) | ~emitted
    assert finite.all(axis=1).tolist() == [name == "sound" for name in LOGITS]
    assert (finite[:-1] <= ~emitted[:-1]).all()
