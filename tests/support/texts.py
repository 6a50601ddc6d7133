"""Texts that a tiny model writes, and the ways in which tests have it write them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
import scripted
import tiny
from jaxspec import sampling
from jaxspec.drafting.head import draft_head
from jaxspec.drafting.model import draft_model
from jaxspec.drafting.ngram import ngram
from jaxspec.models import joint, mtp
from jaxspec.models.rollback import ROLLBACKS

TARGET, DRAFT = "small-hybrid", "mamba2"
MAX_PATH, MAX_LENGTH = 5, 48
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8], [7], [2, 7, 1, 8, 2, 8, 1, 8]]
BUDGETS = jnp.array([30, 41, 23])
GREEDY = {"temperature": 0.0}
SAMPLED = {
    "temperature": jnp.array([0.8, 0.8, 1.3]),
    "top_k": jnp.array([0, 12, 20]),
    "top_p": jnp.array([1.0, 0.95, 0.9]),
}
SETTINGS = {"greedy": GREEDY, "sampled": SAMPLED}
DRAFTERS = ("ngram-tree", "ngram-chain", "model-chain", "model-tree", "itself")
SCRIPTED = scripted.scripted(MAX_PATH, tiny.VOCAB)
HEADED = dataclasses.replace(tiny.CONFIGS[TARGET], mtp="*-")
HEAD = mtp.mtp_head(HEADED)

rollbacks = pytest.mark.parametrize("rollback", ROLLBACKS)
filter_logits = jax.jit(sampling.filter_logits)
settings = pytest.mark.parametrize("setting", SETTINGS)


def target(rollback="replay"):
    return tiny.model(TARGET, rollback=rollback, max_path=MAX_PATH)


@functools.cache
def head_params():
    made = jax.jit(HEAD.init)(jax.random.key(3))
    return mtp.share(made, tiny.params(TARGET))


def make_drafter(name):
    """A drafter and its params; not all have paths as long as the target keeps."""
    draft = tiny.model(DRAFT, max_path=MAX_PATH)
    return {
        "ngram-tree": lambda: (ngram(8, MAX_PATH, min_match=1), None),
        "ngram-chain": lambda: (ngram(4, 4, num_matches=1, min_match=2), None),
        "model-chain": lambda: (draft_model(draft, (1, 1, 1)), tiny.params(DRAFT)),
        "model-tree": lambda: (draft_model(draft, (3, 2)), tiny.params(DRAFT)),
        "head": lambda: (draft_head(HEAD, (2, 1)), head_params()),
        "itself": lambda: (draft_model(target(), (2, 1, 1, 1)), tiny.params(TARGET)),
    }[name]()


def start(drafter=None, drafter_params=None, model=None, **options):
    """A state, and the params to go on with."""
    params = jaxspec.Params(tiny.params(TARGET), drafter_params)
    padded = jaxspec.pad_prompts(options.pop("prompts", PROMPTS), multiple=16)
    tokens, lengths = options.pop("tokens", padded[0]), padded[1]
    options = {"max_length": MAX_LENGTH, "max_new_tokens": BUDGETS} | options
    state = jaxspec.init_state(
        params, tokens, lengths, target=model or target(), drafter=drafter, **options
    )
    return params, state


def autoregressive(**options):
    params, state = start(**options)
    return jaxspec.generate(params, state, target=target())


@functools.cache
def baseline(setting):
    return autoregressive(**SETTINGS[setting])


def speculative(drafter, drafter_params=None, rollback="replay", steps=None, **options):
    model = target(rollback)
    params, state = start(drafter, drafter_params, model, **options)
    return jaxspec.speculative_generate(
        params, state, target=model, drafter=drafter, max_steps=steps
    )


def follow(script, setting, rollback="replay", **options):
    """Drafts what the baseline wrote, as far as the script says."""
    known = baseline(setting).tokens, jnp.int32(script)
    return speculative(SCRIPTED, known, rollback, **SETTINGS[setting], **options)


def check_same(state, expected):
    np.testing.assert_array_equal(state.lengths, expected.lengths)
    np.testing.assert_array_equal(state.tokens, expected.tokens)
    np.testing.assert_allclose(state.logprobs, expected.logprobs, atol=2e-5)
    assert state.done.all()


def held(carry):
    """`[B]`: tokens that a carry has absorbed, or keeps to absorb."""
    if isinstance(carry, joint.Carry):
        return np.asarray(carry.past.position + carry.num_pending)
    return np.asarray(carry.position)


def oracle_scores(state, row):
    """What each token of a row was chosen by: raw logits and scores, both float64."""
    text = np.asarray(state.tokens[row, : int(state.lengths[row])])
    begin = int(state.prompt_lengths[row])
    laws = tiny.oracle_logits(TARGET, text[:-1])
    own = jax.tree.map(lambda leaf: leaf[row], state.sampling)
    for place in range(begin, len(text)):
        logits = laws[place - 1]
        scores = logits
        if own.temperature > 0:
            key = sampling.noise_key(state.keys[row], sampling.Role.EMIT, place)
            noise = np.asarray(jax.random.gumbel(key, logits.shape), np.float64)
            kept = np.asarray(filter_logits(jnp.float32(logits), own))
            scores = np.where(np.isfinite(kept), logits, -np.inf)
            scores = scores / float(own.temperature) + noise
        yield text[place], logits, scores
