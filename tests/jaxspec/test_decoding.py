"""The loop: same text with and without speculation, each row at its own pace."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
import scripted
import tiny
from jaxspec import decode_state, metrics
from jaxspec.drafting.model import draft_model
from jaxspec.drafting.ngram import ngram
from jaxspec.models.rollback import ROLLBACKS
from jaxspec.verification.sample_and_match import sample_and_match

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

rollbacks = pytest.mark.parametrize(
    "rollback", [pytest.param(r, marks=pytest.mark.xdist_group(r)) for r in ROLLBACKS]
)
settings = pytest.mark.parametrize("setting", SETTINGS)


def target(rollback="replay"):
    return tiny.model(TARGET, rollback=rollback, max_path=MAX_PATH)


def drafters():
    draft = tiny.model(DRAFT, max_path=MAX_PATH)
    itself = target()
    return {
        "ngram-tree": (ngram(8, MAX_PATH), None),
        "ngram-chain": (ngram(4, 4, num_matches=1, min_match=2), None),
        "model-chain": (draft_model(draft, (1, 1, 1)), tiny.params(DRAFT)),
        "model-tree": (draft_model(draft, (3, 2)), tiny.params(DRAFT)),
        "itself": (draft_model(itself, (2, 1, 1, 1)), tiny.params(TARGET)),
    }


def start(drafter=None, drafter_params=None, model=None, prompts=PROMPTS, **options):
    """A state, and the params to go on with."""
    params = jaxspec.Params(tiny.params(TARGET), drafter_params)
    tokens, lengths = jaxspec.pad_prompts(prompts, multiple=16)
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


SCRIPTED = scripted.scripted(MAX_PATH, tiny.VOCAB)


def follow(script, setting, rollback="replay", **options):
    drafter = SCRIPTED
    known = baseline(setting).tokens, jnp.int32(script)
    return speculative(drafter, known, rollback, **SETTINGS[setting], **options)


def check_same(state, expected):
    np.testing.assert_array_equal(state.lengths, expected.lengths)
    np.testing.assert_array_equal(state.tokens, expected.tokens)
    np.testing.assert_allclose(state.logprobs, expected.logprobs, atol=2e-5)
    assert state.done.all()


def test_the_baseline_varies_enough_to_be_a_test():
    texts = [np.asarray(baseline(setting).tokens) for setting in SETTINGS]
    assert (texts[0] != texts[1]).any()
    for text in texts:
        assert min(len(set(row.tolist())) for row in text) > 5


@settings
@pytest.mark.parametrize("name", drafters())
def test_text_is_the_same_with_every_drafter(name, setting):
    state, _ = speculative(*drafters()[name], **SETTINGS[setting])
    check_same(state, baseline(setting))


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
    _, info = speculative(*drafters()["itself"], **GREEDY)
    assert metrics.block_efficiency(info) > 4.0


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


@rollbacks
def test_the_carry_holds_all_but_the_last_token(rollback):
    state, _ = follow(scripted.MIXED, "greedy", rollback, steps=4)
    held = state.carry.position
    if state.carry.num_pending is not None:
        held = held + state.carry.num_pending
    live = ~np.asarray(state.done)
    assert live.any()
    np.testing.assert_array_equal(held[live], (state.lengths - 1)[live])


@pytest.mark.parametrize("script", [scripted.EVERYTHING, scripted.NO_DRAFT])
def test_stops_end_a_row_wherever_they_fall(script):
    """Also inside an accepted path: what comes after is not emitted."""
    expected = np.asarray(baseline("greedy").tokens)
    begins = [len(prompt) for prompt in PROMPTS]
    stops = np.array([[expected[row, b + 2 + row], -1] for row, b in enumerate(begins)])
    stops[0, 1] = expected[0, begins[0] + 1]  # an earlier one
    state, info = follow(script, "greedy", stops=stops)
    for row, begin in enumerate(begins):
        stopped = np.isin(expected[row, begin:], stops[row])
        length = begin + int(np.argmax(stopped)) + 1
        assert int(state.lengths[row]) == length
        np.testing.assert_array_equal(
            state.tokens[row, :length], expected[row, :length]
        )
        assert (state.tokens[row, length:] == 0).all()
        assert (state.logprobs[row, length:] == 0).all()
    assert state.done.all()
    check_same(state, autoregressive(stops=stops))


@pytest.mark.parametrize("budget", [1, 2, 4, 6])
def test_budgets_end_a_row_inside_a_path(budget):
    state, info = follow(scripted.EVERYTHING, "greedy", max_new_tokens=budget)
    np.testing.assert_array_equal(state.lengths - state.prompt_lengths, budget)
    check_same(state, autoregressive(max_new_tokens=budget))
    assert int(info.from_draft.sum()) == int(info.kept[:, 1:].sum())


def test_the_cache_can_be_filled_to_the_last_token():
    options = {"max_new_tokens": 10**6}
    expected = autoregressive(**options)
    np.testing.assert_array_equal(expected.lengths, MAX_LENGTH)
    known = expected.tokens, jnp.int32(scripted.MIXED)
    for rollback in ROLLBACKS:
        state, _ = speculative(SCRIPTED, known, rollback, **options)
        check_same(state, expected)


def test_rows_that_are_done_wait_for_the_others():
    budgets = jnp.array([1, 30, 2])
    state, info = follow(scripted.MIXED, "greedy", max_new_tokens=budgets)
    check_same(state, autoregressive(max_new_tokens=budgets))
    assert info.target_calls.tolist()[0] == 1
    assert int(info.drafted[0]) == 2 * (MAX_PATH - 1)


def test_from_draft_marks_what_a_draft_supplied():
    state, info = follow(scripted.EVERYTHING, "greedy")
    for row, prompt in enumerate(PROMPTS):
        marks = np.asarray(info.from_draft[row])
        emitted = marks[len(prompt) : int(state.lengths[row])]
        own = np.flatnonzero(emitted == 0)
        np.testing.assert_array_equal(own[:3], [4, 9, 14])  # every fifth
        assert marks.sum() == emitted.sum()


def test_only_shapes_are_compiled_for():
    drafter = drafters()["ngram-tree"][0]
    compiled = []

    def run(**options):
        params, state = start(drafter, **options)
        jaxspec.speculative_generate(params, state, target=target(), drafter=drafter)
        plain = start(**options)
        jaxspec.generate(*plain, target=target())

    run(stops=[1, 2])

    def listen(event, *args, **kwargs):
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        run(
            stops=[5, -1],
            temperature=jnp.array([0.0, 0.5, 2.0]),
            top_k=7,
            top_p=0.5,
            max_new_tokens=3,
            keys=jax.random.key(9),
            prompts=[[1, 2], [3], [4, 4, 4]],
        )
    finally:
        jax.monitoring.clear_event_listeners()
    assert compiled == []


def test_a_step_can_be_jitted_by_the_user():
    drafter = drafters()["ngram-tree"][0]
    params, state = start(drafter)
    step = jax.jit(
        functools.partial(
            jaxspec.speculative_step,
            target=target(),
            drafter=drafter,
            verifier=sample_and_match(),
        )
    )
    while not state.done.all():
        state, _ = step(params, state)
    check_same(state, baseline("greedy"))


def test_init_state_can_be_traced():
    @jax.jit
    def run(params, tokens, lengths):
        state = jaxspec.init_state(
            params,
            tokens,
            lengths,
            target=target(),
            max_length=MAX_LENGTH,
            max_new_tokens=BUDGETS,
        )
        return jaxspec.generate(params, state, target=target())

    tokens, lengths = jaxspec.pad_prompts(PROMPTS, multiple=16)
    state = run(jaxspec.Params(tiny.params(TARGET)), tokens, lengths)
    check_same(state, baseline("greedy"))


def test_keys_make_texts():
    one = autoregressive(temperature=1.0, keys=jax.random.key(1))
    same = autoregressive(temperature=1.0, keys=jax.random.key(1))
    other = autoregressive(temperature=1.0, keys=jax.random.key(2))
    np.testing.assert_array_equal(one.tokens, same.tokens)
    assert (one.tokens != other.tokens).any()
    twice = autoregressive(temperature=1.0, prompts=[[5, 6]] * 3, max_new_tokens=20)
    assert (twice.tokens[0] != twice.tokens[1]).any()  # each row has its own noise


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": -0.1}, "temperature must not be negative"),
        ({"top_k": -1}, "top_k must not be negative"),
        ({"top_p": 0.0}, "top_p must be in"),
        ({"max_new_tokens": 0}, "max_new_tokens must be positive"),
        ({"max_length": 8}, "cache holds 8"),
        ({"prompts": [[1, tiny.VOCAB]]}, "tokens from 0 to 47, got 0 to 48"),
        ({"prompts": [[1, -1]]}, "got -1 to 1"),
        ({"prompts": [[1], []]}, "Prompt 1 is empty"),
        ({"prompts": []}, "at least one prompt"),
    ],
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        start(**options)


def test_bad_prompt_shapes_are_refused():
    params = jaxspec.Params(tiny.params(TARGET))
    with pytest.raises(ValueError, match="got shape"):
        decode_state.init_state(params, jnp.zeros((1, 0), jnp.int32), target=target())
    with pytest.raises(ValueError, match="Expected lengths from 1 to 2"):
        decode_state.init_state(
            params, jnp.ones((1, 2), jnp.int32), jnp.array([3]), target=target()
        )


def test_a_drafter_of_another_vocabulary_is_refused():
    drafter = drafters()["ngram-tree"][0]._replace(vocab_size=tiny.VOCAB + 1)
    with pytest.raises(ValueError, match="share one vocabulary"):
        start(drafter)


def test_a_drafter_of_longer_paths_is_refused():
    drafter = ngram(12, 9)
    params, state = start(drafter)
    with pytest.raises(ValueError, match="raise the target's max_path"):
        jaxspec.speculative_generate(params, state, target=target(), drafter=drafter)
