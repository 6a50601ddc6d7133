"""The halves of a step: composed by hand, and with drafts that come from anywhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
import scripted
import texts
import tiny
from jaxspec.core import deterministic_draft
from jaxspec.drafting.model import draft_model
from jaxspec.drafting.ngram import ngram
from jaxspec.drafting.static import static_tree
from jaxspec.trees import TokenTree
from jaxspec.verification.recursive_rejection import recursive_rejection
from jaxspec.verification.sample_and_match import sample_and_match
from jaxspec.verification.traversal import traversal

VERIFIERS = {
    "sample and match": sample_and_match(),
    "recursive rejection": recursive_rejection(),
    "traversal": traversal(),
}
SAMPLED = texts.SETTINGS["sampled"]

propose = jax.jit(jaxspec.propose, static_argnames="drafter")
observe = jax.jit(jaxspec.observe, static_argnames="drafter")
verify = jax.jit(jaxspec.verify, static_argnames=("target", "verifier"))
step = jax.jit(
    jaxspec.speculative_step, static_argnames=("target", "drafter", "verifier")
)


def verify_by(state, draft, verifier="sample and match", params=None):
    params = jaxspec.Params(tiny.params(texts.TARGET)) if params is None else params
    records = {"target": texts.target(), "verifier": VERIFIERS[verifier]}
    return verify(params, state, draft, **records)


def check_equal(one, other, tolerance=0.0):
    """Bit for bit, keys too; numbers of programs that are fused otherwise nearly."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for own, wanted in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        if jnp.issubdtype(own.dtype, jax.dtypes.prng_key):
            own, wanted = jax.random.key_data(own), jax.random.key_data(wanted)
        if tolerance and jnp.issubdtype(own.dtype, jnp.floating):
            np.testing.assert_allclose(own, wanted, atol=tolerance, rtol=tolerance)
        else:
            np.testing.assert_array_equal(own, wanted)


def random_draft(seed=0, max_path=texts.MAX_PATH):
    tree = tiny.random_tree(np.random.default_rng(seed), 3, 9, max_path)
    return deterministic_draft(tree, max_path)


def path_of(row, verdict):
    return [int(node) for node in verdict.path[row] if node >= 0]


# --- Composed by hand ---


@pytest.mark.parametrize(
    "name, verifier",
    [
        ("ngram-tree", "sample and match"),
        ("model-tree", "recursive rejection"),
        ("head", "sample and match"),
    ],
)
def test_the_halves_make_a_step(name, verifier):
    """Each a program of its own, until rows are done: the text, and all of the state."""
    drafter, own = texts.make_drafter(name)
    settings = SAMPLED | {"max_new_tokens": jnp.array([30, 2, 9])}
    params, state = texts.start(drafter, own, **settings)
    records = {"target": texts.target(), "verifier": VERIFIERS[verifier]}
    expected = state
    for _ in range(6):
        between, draft = propose(params, state, drafter=drafter)
        after, outcome = verify(params, between, draft, **records)
        state = observe(params, after, outcome, drafter=drafter)
        expected, _ = step(params, expected, drafter=drafter, **records)
        check_equal(state, expected, 2e-5)  # programs round differently
    assert state.done[1] and not state.done[0]


@pytest.mark.parametrize("setting", ["sampled"])
def test_a_loop_that_gives_trees_writes_the_text_of_the_one_that_makes_them(setting):
    """Look-up outside of the step, and its tree given to the target's half."""
    lookup = ngram(8, texts.MAX_PATH, min_match=1)
    expected, report = texts.speculative(lookup, **texts.SETTINGS[setting])
    _, state = texts.start(speculative=True, **texts.SETTINGS[setting])
    make = jax.jit(lambda context: lookup.propose(None, (), context)[1].tree)
    total = np.zeros(3, int)
    while not state.done.all():
        total += ~np.asarray(state.done)
        tree = jax.tree.map(np.asarray, make(state.context))  # by way of the host
        state, _ = verify_by(state, deterministic_draft(tree, texts.MAX_PATH))
    texts.check_same(state, expected)
    np.testing.assert_array_equal(total, report.target_calls)
    assert (total < state.lengths - state.prompt_lengths).any()


def test_drafts_with_laws_are_judged_wherever_they_come_from():
    """The target's half needs nothing of the drafter but the draft."""
    draft = tiny.model(texts.DRAFT, max_path=texts.MAX_PATH)
    drafter = draft_model(draft, static_tree((3, 1), "without_replacement"))
    own = tiny.params(texts.DRAFT)
    params, state = texts.start(drafter, own, temperature=1.0)
    _, room = texts.start(speculative=True, temperature=1.0)
    accepted = 0
    for _ in range(4):
        between, draft = propose(params, state, drafter=drafter)
        state, outcome = verify_by(between, draft, "recursive rejection", params)
        assert draft.draft_logits.shape[1] > 0
        room, alike = verify_by(room, draft, "recursive rejection")
        check_equal(alike, outcome, 2e-5)
        check_equal(room.tokens, state.tokens)
        state = observe(params, state, outcome, drafter=drafter)
        accepted += int(outcome.verdict.num_accepted.sum())
    assert accepted > 0


# --- What is verified ---


def test_a_draft_is_verified_below_the_root():
    """Slot 0 is the row's root, whatever is in it."""
    _, state = texts.start(speculative=True)
    draft = random_draft()
    tokens, parents = draft.tree.tokens, draft.tree.parents
    odd = TokenTree(tokens.at[:, 0].set(-7), parents.at[:, 0].set(3))
    _, outcome = verify_by(state, draft.replace(tree=odd))
    np.testing.assert_array_equal(outcome.tree.tokens[:, 1:], tokens[:, 1:])
    np.testing.assert_array_equal(outcome.tree.parents, parents)
    np.testing.assert_array_equal(outcome.tree.tokens[:, 0], state.root)
    check_equal(outcome, verify_by(state, draft)[1])


def test_rows_that_are_done_keep_their_state():
    _, state = texts.start(speculative=True)
    state = state.replace(done=jnp.array([False, True, False]))
    after, outcome = verify_by(state, random_draft())
    row = functools.partial(jax.tree.map, lambda leaf: leaf[1])
    for one, other in zip(*map(jax.tree.leaves, (row(state), row(after))), strict=True):
        assert bool(jnp.all(one == other))
    assert (outcome.tree.parents[1] == -1).all()
    assert outcome.count.tolist()[1] == 0 and not outcome.tokens[1].any()
    assert not outcome.shown[1].any() and not outcome.kept[1].any()
    assert (after.lengths > state.lengths).tolist() == [True, False, True]


# --- What becomes of it ---


@functools.cache
def told(budgets=None, stops=()):
    """A step from the prompts, whose drafts are the text to come, and wrong siblings."""
    known = texts.baseline("greedy").tokens, jnp.int32(scripted.EVERYTHING)
    options = {} if budgets is None else {"max_new_tokens": jnp.array(budgets)}
    params, state = texts.start(texts.SCRIPTED, known, stops=list(stops), **options)
    between, draft = propose(params, state, drafter=texts.SCRIPTED)
    return state, *verify_by(between, draft, params=params)


def test_the_tokens_of_an_outcome_are_what_was_appended():
    before, after, outcome = told((2, 1, 30))
    np.testing.assert_array_equal(outcome.count, [2, 1, texts.MAX_PATH])
    np.testing.assert_array_equal(outcome.count, after.lengths - before.lengths)
    for row, count in enumerate(outcome.count.tolist()):
        begin, end = int(before.lengths[row]), int(after.lengths[row])
        new = after.tokens[row, begin:end].tolist()
        assert outcome.tokens[row].tolist() == new + [0] * (texts.MAX_PATH - count)


def test_a_limit_inside_an_accepted_path_is_no_rejection():
    _, _, whole = told()
    _, after, cut = told((2, 1, 30))
    assert after.done.tolist() == [True, True, False]
    np.testing.assert_array_equal(whole.kept.sum(axis=1), [texts.MAX_PATH - 1] * 3)
    np.testing.assert_array_equal(cut.kept, whole.kept)
    np.testing.assert_array_equal(cut.shown, whole.shown)
    assert (cut.kept.sum(axis=1) > cut.count)[:2].all()
    np.testing.assert_array_equal(cut.verdict.num_accepted, [1, 0, texts.MAX_PATH - 1])


def test_a_stop_inside_an_accepted_path_is_no_rejection():
    before, _, whole = told()
    text, begin = texts.baseline("greedy").tokens[0], int(before.lengths[0])
    stop = int(text[begin + 1])
    first = text[begin : begin + 2].tolist().index(stop) + 1
    _, after, cut = told(stops=(stop,))
    assert after.done[0] and int(cut.count[0]) == first < texts.MAX_PATH - 1
    np.testing.assert_array_equal(cut.kept, whole.kept)
    np.testing.assert_array_equal(cut.shown, whole.shown)


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_shown_and_kept_are_the_verifiers_walk(verifier):
    """By a walk along its own verdict; trees of likely tokens, some rows near the end."""
    known = texts.baseline("sampled").tokens
    _, state = texts.start(speculative=True, **SAMPLED, max_new_tokens=[2, 30, 3])
    kept = 0
    for seed in range(6):
        draft = random_draft(seed)
        ahead = jnp.take_along_axis(known, state.lengths[:, None], axis=1)
        tokens = draft.tree.tokens.at[:, 1:5].set(ahead)  # some of them true
        draft = draft.replace(tree=draft.tree.replace(tokens=tokens))
        before = state
        state, outcome = verify_by(before, draft, verifier)
        judged = draft.replace(tree=outcome.tree)
        args = before.keys, judged, outcome.logits, before.sampling
        verdict = jax.jit(VERIFIERS[verifier].verify)(*args)
        for row in range(3):
            path = [] if before.done[row] else path_of(row, verdict)
            parents = outcome.tree.parents[row].tolist()
            shown = [n for n, above in enumerate(parents) if above in path]
            assert np.flatnonzero(outcome.shown[row]).tolist() == shown
            assert np.flatnonzero(outcome.kept[row]).tolist() == sorted(path[1:])
            assert set(path[1:]) <= set(shown)
            kept += len(path[1:])
    assert kept > 0 and state.done.tolist() == [True, False, True]
