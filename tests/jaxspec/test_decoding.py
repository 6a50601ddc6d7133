"""The loop: the same text with and without speculation, however it is drafted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
import scripted
import tiny
from jaxspec import metrics
from jaxspec.drafting.ngram import ngram
from texts import (
    BUDGETS,
    DRAFTERS,
    GREEDY,
    MAX_PATH,
    PROMPTS,
    SAMPLED,
    SCRIPTED,
    SETTINGS,
    TARGET,
    autoregressive,
    baseline,
    check_same,
    follow,
    make_drafter,
    oracle_scores,
    rollbacks,
    settings,
    speculative,
    start,
    target,
)

MARGIN = 1e-3  # of the largest logit: far more than float32 rounds


# --- What the tests compare with ---


def test_the_baseline_varies_enough_to_be_a_test():
    texts = [np.asarray(baseline(setting).tokens) for setting in SETTINGS]
    assert (texts[0] != texts[1]).any()
    for text in texts:
        assert min(len(set(row.tolist())) for row in text) > 5


@settings
def test_the_baseline_is_the_oracles_choice_by_a_margin(setting):
    for row in range(len(PROMPTS)):
        for token, logits, scores in oracle_scores(baseline(setting), row):
            assert token == np.argmax(scores)
            second, best = np.sort(scores)[-2:]
            assert best - second > MARGIN * np.abs(logits).max()


@settings
def test_logprobs_are_the_raw_targets(setting):
    """Temperature 1 and unfiltered, whatever the sampling."""
    state, _ = follow(scripted.MIXED, setting)
    for row, prompt in enumerate(PROMPTS):
        length = int(state.lengths[row])
        text = np.asarray(state.tokens[row, :length])
        logits = tiny.oracle_logits(TARGET, text[:-1])[len(prompt) - 1 :]
        laws = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        expected = laws[np.arange(len(laws)), text[len(prompt) :]]
        logprobs = np.asarray(state.logprobs[row])
        np.testing.assert_allclose(logprobs[len(prompt) : length], expected, atol=1e-4)
        assert (logprobs[: len(prompt)] == 0).all()


# --- The same text ---


@settings
@pytest.mark.parametrize("name", DRAFTERS)
def test_text_is_the_same_with_every_drafter(name, setting):
    state, _ = speculative(*make_drafter(name), **SETTINGS[setting])
    check_same(state, baseline(setting))


@rollbacks
@pytest.mark.parametrize("name", ["ngram-chain", "model-tree"])
def test_drafts_may_be_shorter_than_the_target_keeps(name, rollback):
    drafter, params = make_drafter(name)
    assert drafter.max_path < target(rollback).max_path
    state, _ = speculative(drafter, params, rollback)
    check_same(state, baseline("greedy"))


@settings
@rollbacks
@pytest.mark.parametrize(
    "script", [scripted.EVERYTHING, scripted.NOTHING, scripted.NO_DRAFT, scripted.MIXED]
)
def test_text_is_the_same_whatever_is_accepted(script, rollback, setting):
    state, info = follow(script, setting, rollback)
    check_same(state, baseline(setting))
    emitted = np.asarray(state.lengths - state.prompt_lengths)
    np.testing.assert_array_equal(info.kept.sum(1), emitted)
    exact = {
        scripted.EVERYTHING: -(-emitted // MAX_PATH),
        scripted.NOTHING: emitted,
        scripted.NO_DRAFT: emitted,
    }
    if script in exact:
        np.testing.assert_array_equal(info.target_calls, exact[script])
    else:
        assert (np.asarray(info.target_calls) < emitted).all()


def test_a_draft_that_is_the_target_is_always_accepted():
    _, info = speculative(*make_drafter("itself"), **GREEDY)
    assert metrics.block_efficiency(info) > 4.0


@settings
def test_a_row_is_the_same_alone(setting):
    for row, prompt in enumerate(PROMPTS):
        options = jax.tree.map(
            lambda x, row=row: x[row] if jnp.ndim(x) else x, SETTINGS[setting]
        )
        keys = jax.random.fold_in(jax.random.key(0), row)[None]
        alone = autoregressive(
            prompts=[prompt], max_new_tokens=BUDGETS[row], keys=keys, **options
        )
        np.testing.assert_array_equal(alone.tokens[0], baseline(setting).tokens[row])


@rollbacks
def test_a_row_is_the_same_alone_with_speculation(rollback):
    """A batch of one has programs of its own."""
    alone = {"prompts": PROMPTS[:1], "max_new_tokens": BUDGETS[0]}
    state, _ = speculative(*make_drafter("model-tree"), rollback, **alone)
    np.testing.assert_array_equal(state.tokens[0], baseline("greedy").tokens[0])


def test_noise_is_of_the_position_whatever_was_prompted():
    expected = baseline("sampled")
    prompts = [
        np.asarray(expected.tokens[row, : len(prompt) + 3]).tolist()
        for row, prompt in enumerate(PROMPTS)
    ]
    rest = {"prompts": prompts, "max_new_tokens": BUDGETS - 3}
    again = autoregressive(**rest, **SAMPLED)
    np.testing.assert_array_equal(again.tokens, expected.tokens)


def test_keys_make_texts():
    one = autoregressive(temperature=1.0, keys=jax.random.key(1))
    same = autoregressive(temperature=1.0, keys=jax.random.key(1))
    other = autoregressive(temperature=1.0, keys=jax.random.key(2))
    np.testing.assert_array_equal(one.tokens, same.tokens)
    assert (one.tokens != other.tokens).any()
    twice = autoregressive(temperature=1.0, prompts=[[5, 6]] * 3, max_new_tokens=20)
    assert (twice.tokens[0] != twice.tokens[1]).any()  # each row has its own noise


# --- A few steps at a time ---


@settings
@rollbacks
def test_a_few_steps_at_a_time_is_the_same(setting, rollback):
    model = target(rollback)
    drafter, known = SCRIPTED, (baseline(setting).tokens, jnp.int32(scripted.MIXED))
    params, state = start(drafter, known, model, **SETTINGS[setting])
    whole, expected = follow(scripted.MIXED, setting, rollback)
    reports, lengths = [], [state.lengths]
    while not state.done.all():
        state, info = jaxspec.speculative_generate(
            params, state, target=model, drafter=drafter, max_steps=2
        )
        reports.append(info)
        lengths.append(state.lengths)
    check_same(state, whole)
    assert len(lengths) > 5
    assert (jnp.diff(jnp.stack(lengths), axis=0) >= 0).all()
    summed = functools.reduce(lambda a, b: a + b, reports)
    jax.tree.map(np.testing.assert_array_equal, summed, expected)


def test_generate_a_few_steps_at_a_time_is_the_same():
    params, state = start(**SAMPLED)
    calls = 0
    while not state.done.all():
        state = jaxspec.generate(params, state, target=target(), max_steps=7)
        calls += 1
    assert calls == -(-int(BUDGETS.max()) // 7)
    check_same(state, baseline("sampled"))


# --- What does not fit together ---


def test_a_drafter_of_another_vocabulary_is_refused():
    drafter = make_drafter("ngram-tree")[0]._replace(vocab_size=tiny.VOCAB + 1)
    with pytest.raises(ValueError, match=r"with_vocab_size\(model, 48\)"):
        start(drafter)


def test_a_drafter_of_longer_paths_is_refused():
    drafter = ngram(12, 9)
    params, state = start(drafter)
    with pytest.raises(ValueError, match="raise the target's max_path"):
        jaxspec.speculative_generate(params, state, target=target(), drafter=drafter)


def test_a_state_that_was_made_without_a_drafter_is_refused():
    params, state = start()
    drafter, _ = make_drafter("ngram-tree")
    with pytest.raises(ValueError, match="made without a drafter"):
        jaxspec.speculative_generate(params, state, target=target(), drafter=drafter)
