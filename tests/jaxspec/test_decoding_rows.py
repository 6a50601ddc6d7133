"""Where the rows of a batch end, and what they hold until then and afterwards."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
import scripted
from texts import (
    MAX_LENGTH,
    MAX_PATH,
    PROMPTS,
    SCRIPTED,
    autoregressive,
    baseline,
    check_same,
    follow,
    held,
    rollbacks,
    speculative,
    start,
    target,
)


def check_marks(state, info):
    """Where everything is accepted, every fifth token is the target's own."""
    for row, prompt in enumerate(PROMPTS):
        marks = np.asarray(info.from_draft[row])
        emitted = marks[len(prompt) : int(state.lengths[row])]
        expected = np.arange(len(emitted)) % MAX_PATH != MAX_PATH - 1
        np.testing.assert_array_equal(emitted, expected)
        assert marks.sum() == emitted.sum()


# --- Stops, budgets and the end of the cache ---


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
    if script == scripted.EVERYTHING:
        check_marks(state, info)


def test_a_stop_is_not_found_in_the_padding():
    """Token 0 also pads paths and texts; as a stop it counts where it is emitted."""
    expected = baseline("greedy")
    state, _ = follow(scripted.MIXED, "greedy", stops=[0])
    check_same(state, autoregressive(stops=[0]))
    stopped = []
    for row, prompt in enumerate(PROMPTS):
        begin, length = len(prompt), int(expected.lengths[row])
        zeros = np.flatnonzero(np.asarray(expected.tokens[row, begin:length]) == 0)
        stopped.append(len(zeros) > 0)
        assert state.lengths[row] == (begin + zeros[0] + 1 if len(zeros) else length)
    assert any(stopped) and not all(stopped)


@pytest.mark.parametrize("budget", [1, 2, 4, 6])
def test_budgets_end_a_row_inside_a_path(budget):
    state, info = follow(scripted.EVERYTHING, "greedy", max_new_tokens=budget)
    np.testing.assert_array_equal(state.lengths - state.prompt_lengths, budget)
    check_same(state, autoregressive(max_new_tokens=budget))
    check_marks(state, info)  # the last token too, where a draft had supplied it


def test_from_draft_marks_what_a_draft_supplied():
    check_marks(*follow(scripted.EVERYTHING, "greedy"))
    for script in (scripted.NOTHING, scripted.NO_DRAFT):
        _, info = follow(script, "greedy")
        assert not info.from_draft.any()


@rollbacks
def test_the_cache_can_be_filled_to_the_last_token(rollback):
    options = {"max_new_tokens": 10**6}
    expected = autoregressive(**options)
    np.testing.assert_array_equal(expected.lengths, MAX_LENGTH)
    known = expected.tokens, jnp.int32(scripted.MIXED)
    state, _ = speculative(SCRIPTED, known, rollback, **options)
    check_same(state, expected)


@rollbacks
def test_a_prompt_that_fills_the_cache_is_done_at_once(rollback):
    full = [token % 7 for token in range(MAX_LENGTH)]
    options = {"prompts": [PROMPTS[0], full, PROMPTS[2]]}
    params, state = start(**options)
    assert state.done.tolist() == [False, True, False]
    expected = jaxspec.generate(params, state, target=target())
    beyond = expected.tokens.shape[1] - MAX_LENGTH
    assert beyond >= MAX_PATH
    assert expected.tokens[1].tolist() == full + [0] * beyond
    for row in (0, 2):
        np.testing.assert_array_equal(
            expected.tokens[row], baseline("greedy").tokens[row]
        )
    known = expected.tokens, jnp.int32(scripted.MIXED)
    drafted, info = speculative(SCRIPTED, known, rollback, **options)
    check_same(drafted, expected)
    assert info.target_calls[1] == info.drafted[1] == 0


# --- What rows hold ---


def test_rows_that_are_done_wait_for_the_others():
    budgets = jnp.array([1, 30, 2])
    state, info = follow(scripted.MIXED, "greedy", max_new_tokens=budgets)
    check_same(state, autoregressive(max_new_tokens=budgets))
    assert info.target_calls.tolist()[0] == 1
    assert int(info.drafted[0]) == 2 * (MAX_PATH - 1)


@rollbacks
def test_the_carry_holds_all_but_the_last_token(rollback):
    state, _ = follow(scripted.MIXED, "greedy", rollback, steps=4)
    live = ~np.asarray(state.done)
    assert live.any()
    np.testing.assert_array_equal(held(state.carry)[live], (state.lengths - 1)[live])


@rollbacks
def test_rows_that_are_done_hold_what_they_emitted(rollback):
    """Not what was accepted beyond a stop or a budget, nor anything of later steps."""
    place = len(PROMPTS[1]) + 7
    stops = jnp.array([[-1], [baseline("greedy").tokens[1, place]], [-1]])
    options = {"max_new_tokens": jnp.array([30, 41, 6]), "stops": stops}
    state, _ = follow(scripted.EVERYTHING, "greedy", rollback, **options)
    check_same(state, autoregressive(**options))
    assert state.lengths[1] < state.limits[1]
    np.testing.assert_array_equal(held(state.carry), state.lengths - 1)
