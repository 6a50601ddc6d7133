"""The compiled, batched loop by its samples: the law of three tokens across steps.

Enumeration looks at one step of one row; here are many rows and consecutive steps, so that
noise that is used again in the next step would show.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxspec
import lossless
import markov
from jaxspec import sampling
from jaxspec.core import Verifier
from jaxspec.drafting.model import draft_model
from jaxspec.drafting.static import static_tree
from jaxspec.verification import proposals, traversal
from jaxspec.verification.recursive_rejection import recursive_rejection

VOCAB, TOKENS, ROWS, RUNS = 4, 3, 2**14, 12
LEVEL = 1e-3  # of the test: a right program fails once in a thousand seeds
VERIFIERS = {
    "recursive rejection": recursive_rejection(),
    "traversal": traversal.traversal(),
}
BUILDERS = {
    "chain": static_tree((1, 1), "iid"),
    "RSD-C": static_tree((2, 1), "without_replacement"),
}


@functools.cache
def tables():
    pair = lossless.tables(VOCAB, 3)
    return tuple(jnp.asarray(np.asarray(table), jnp.float32) for table in pair)


@functools.cache
def expected():
    """Probabilities of all texts of three tokens, in order."""
    law = lossless.target_law(TOKENS, np.asarray(tables()[0], np.float64))
    return np.array([law[text] for text in sorted(law)])


def samples(builder, verifier):
    """How often each text of three tokens was written."""
    target = markov.language_model(VOCAB)
    drafter = draft_model(target, builder)
    params = jaxspec.Params(*tables())
    prompt = jnp.broadcast_to(jnp.array([[lossless.BEFORE, lossless.ROOT]]), (ROWS, 2))
    counts = np.zeros(VOCAB**TOKENS)
    for run in range(RUNS):
        state = jaxspec.init_state(
            params,
            prompt,
            target=target,
            drafter=drafter,
            max_new_tokens=TOKENS,
            temperature=1.0,
            keys=jax.random.key(run),
        )
        machinery = {"target": target, "drafter": drafter, "verifier": verifier}
        state, info = jaxspec.speculative_generate(params, state, **machinery)
        text = np.asarray(state.tokens)[:, 2 : 2 + TOKENS]
        counts += np.bincount(
            text @ VOCAB ** np.arange(TOKENS)[::-1], minlength=VOCAB**TOKENS
        )
    assert (np.asarray(info.target_calls) > 1).any()  # steps follow each other
    return counts


def p_value(counts):
    return stats.chisquare(counts, expected() * counts.sum()).pvalue


@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("builder", BUILDERS)
def test_three_tokens_have_the_targets_law(builder, verifier):
    assert p_value(samples(BUILDERS[builder], VERIFIERS[verifier])) > LEVEL


def test_a_bias_of_one_percent_would_be_seen():
    """Of as many samples of a law at a total variation of 0.01."""
    law, rng = expected(), np.random.default_rng(0)
    other = rng.permutation(law)
    share = 0.01 / (0.5 * np.abs(law - other).sum())
    biased = (1.0 - share) * law + share * other
    assert abs(0.5 * np.abs(law - biased).sum() - 0.01) < 1e-9
    found = [p_value(rng.multinomial(ROWS * RUNS, biased)) for _ in range(20)]
    assert np.mean(np.array(found) < LEVEL) >= 0.9
    right = [p_value(rng.multinomial(ROWS * RUNS, law)) for _ in range(20)]
    assert np.mean(np.array(right) < LEVEL) <= 0.1


def by_position(key, draft, logits, settings, needs):
    """Traversal, whose nodes draw with the noise of their place in the text."""
    fold_in = jax.random.fold_in

    def at_node(key, slot):  # on a chain slots are depths; 0 is the last draw's
        position = settings.position
        return fold_in(key, jnp.where(slot == 0, -1 - position, position + slot))

    def without_position(key, role, position):
        return fold_in(key, int(role))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "noise_key", without_position)
        patch.setattr(traversal.jax.random, "fold_in", at_node)
        return traversal.verify_row(key, draft, logits, settings, needs)


def test_noise_that_belongs_to_a_place_in_the_text_is_seen():
    """A node refused in one step would be tested with the same noise in the next."""
    wrong = Verifier(functools.partial(proposals.verify, by_position))
    assert p_value(samples(BUILDERS["chain"], wrong)) < LEVEL
