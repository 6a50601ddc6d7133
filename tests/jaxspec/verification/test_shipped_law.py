"""The shipped pair writes the target's law: what it emits looks uniform to the target.

With `F` the target's cumulative law given the text so far, `F(x - 1) + u p(x)` is uniform
and independent from token to token, if `x` is a sample of it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxspec
from jaxspec.drafting.model import draft_model
from jaxspec.drafting.static import static_tree
from jaxspec.verification.recursive_rejection import recursive_rejection
from jaxspec.verification.traversal import traversal

ROWS, TOKENS, LEVEL = 32, 32, 1e-3
BUILDER = static_tree((2, 1), "without_replacement")
VERIFIERS = {"recursive rejection": recursive_rejection(), "traversal": traversal()}
PROMPT = "def mean(values):\n"


@functools.cache
def pair():
    target = jaxspec.load("stdlib-8m", max_path=3)
    draft = jaxspec.load("stdlib-draft", max_path=3)
    return target, draft, draft_model(draft.model, BUILDER)


def start(**options):
    target, draft, _ = pair()
    params = jaxspec.Params(target.params, draft.params)
    prompt = jnp.array([target.tokenizer.encode(PROMPT).ids] * ROWS, jnp.int32)
    settings = {"temperature": 1.0, "max_new_tokens": TOKENS}
    state = jaxspec.init_state(
        params, prompt, target=target.model, **settings, **options
    )
    return params, state


@functools.cache
def baseline():
    params, state = start(keys=jax.random.key(1))
    return jaxspec.generate(params, state, target=pair()[0].model)


@functools.cache
def written(name):
    target, _, drafter = pair()
    params, state = start(keys=jax.random.key(2), drafter=drafter)
    return jaxspec.speculative_generate(
        params, state, target=target.model, drafter=drafter, verifier=VERIFIERS[name]
    )


@functools.cache
def uniforms(name):
    """`[ROWS, TOKENS]`, by a plain pass of the target over the texts."""
    target, _, _ = pair()
    state, _ = written(name)
    begin, size = int(state.prompt_lengths[0]), int(state.lengths[0])
    text = state.tokens[:, :size]
    carry = target.model.init_carry(target.params, ROWS, size, speculative=False)

    @jax.jit
    def laws(params, carry, text):
        lengths = jnp.full((ROWS,), size, jnp.int32)
        _, hidden = target.model.scan(params, carry, text, lengths)
        logits = target.model.logits(params, hidden[:, begin - 1 : -1])
        law = jax.nn.softmax(logits)
        token = text[:, begin:, None]
        tokens = jnp.arange(law.shape[-1])[None, None]
        below = jnp.where(tokens < token, law, 0.0).sum(-1)
        return below, jnp.take_along_axis(law, token, axis=-1)[..., 0]

    below, own = map(np.asarray, laws(target.params, carry, text))
    return below + np.random.default_rng(0).random(own.shape) * own


@pytest.mark.parametrize("name", VERIFIERS)
def test_what_is_emitted_is_uniform_under_the_target(name):
    found = uniforms(name)
    assert stats.kstest(found.ravel(), "uniform").pvalue > LEVEL
    assert (np.asarray(written(name)[1].kept).sum(0)[1:] > 0).all()  # all depths accept
    normal = stats.norm.ppf(np.clip(found, 1e-6, 1.0 - 1e-6))
    pairs = normal[:, :-1].ravel(), normal[:, 1:].ravel()
    assert stats.pearsonr(*pairs).pvalue > LEVEL


def test_a_colder_text_would_not_look_uniform():
    found = uniforms("traversal")
    colder = np.where(np.random.default_rng(1).random(found.shape) < 0.2, 0.5, found)
    assert stats.kstest(colder.ravel(), "uniform").pvalue < LEVEL


@pytest.mark.parametrize("name", VERIFIERS)
def test_texts_are_as_likely_as_autoregressive_ones(name):
    def means(state):
        begin, size = int(state.prompt_lengths[0]), int(state.lengths[0])
        return np.asarray(state.logprobs)[:, begin:size].mean(axis=1)

    found, expected = means(written(name)[0]), means(baseline())
    assert stats.ttest_ind(found, expected, equal_var=False).pvalue > LEVEL
