"""Retrieval against a search through lists."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import contexts
import jaxspec
import tiny
from jaxspec import trees
from jaxspec.drafting import datastore
from jaxspec.drafting.retrieval import retrieval
from texts import PROMPTS, SETTINGS, TARGET, baseline, check_same, settings, speculative

SIZES = {
    "default": {},
    "few slots": {"num_nodes": 4, "max_path": 6},
    "one match": {"num_matches": 1, "num_nodes": 6},
    "short matches": {"min_match": 1, "max_match": 2, "num_matches": 5},
    "long matches only": {"min_match": 4, "max_match": 5},
}
rng = np.random.default_rng(0)
DOCUMENTS = [rng.integers(0, 3, rng.integers(0, 40)).tolist() for _ in range(30)]
STORE = datastore.build(DOCUMENTS)
TEXTS = [rng.integers(0, 3, n).tolist() for n in range(1, 24)]
TEXTS += [
    [*text, *document[:6]] for text, document in zip(TEXTS, DOCUMENTS, strict=False)
]
TEXTS += [[2, 7], [7, 2]]  # 7 is in no document


def places(text, min_match, max_match):
    """Where the longest match ends in the flat documents, by what comes before."""
    flat = [-1]
    for document in DOCUMENTS:
        flat += [*document, -1]
    for n in range(min(max_match, len(text)), min_match - 1, -1):
        ends = range(n - 1, len(flat))
        found = [i for i in ends if flat[i - n + 1 : i + 1] == text[-n:]]
        if found:
            return flat, sorted(found, key=lambda i: flat[i::-1])
    return flat, []


def expected(text, num_nodes=16, max_path=8, num_matches=16, min_match=2, max_match=16):
    """The prefixes that most of some places share, the shorter of equals first."""
    flat, found = places(text, min_match, max_match)
    taken = min(num_matches, len(found))
    counts = {}
    for k in range(taken):
        rest = flat[found[k * len(found) // taken] + 1 :]
        path = rest[: rest.index(-1)][: max_path - 1] if -1 in rest else []
        for n in range(1, len(path) + 1):
            counts[tuple(path[:n])] = counts.get(tuple(path[:n]), 0) + 1
    best = sorted(counts, key=lambda prefix: (-counts[prefix], len(prefix)))
    return [(), *best][:num_nodes]


def drafts(draft, row):
    """The tokens from below the root to every node, in order."""
    tokens = np.asarray(draft.tree.tokens)[row]
    paths = [tiny.path_of(draft.tree, row, n) for n in tiny.real_nodes(draft.tree, row)]
    return [tuple(tokens[path[1:]].tolist()) for path in paths]


def draft_after(texts, store=STORE, **sizes):
    propose = jax.jit(retrieval(**sizes).propose)
    return propose(store, (), contexts.of_texts(texts))[1]


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_drafts_are_what_followed_the_longest_match(sizes):
    draft = draft_after(TEXTS, **sizes)
    trees.check(draft.tree)
    for row, text in enumerate(TEXTS):
        assert drafts(draft, row) == expected(text, **sizes)
        assert draft.tree.tokens[row, 0] == text[-1]


def test_the_texts_are_a_test():
    """Matches of all lengths, without places, with one, and with more than are taken."""
    found = [places(text, 2, 16)[1] for text in TEXTS]
    counts = [len(f) for f in found]
    assert 0 in counts and 1 in counts and max(counts) > 16
    assert any(f and expected(t) == [()] for f, t in zip(found, TEXTS, strict=True))


def test_nothing_follows_the_end_of_a_document():
    texts = [DOCUMENTS[-1][-4:], *(d[-12:] for d in DOCUMENTS if len(d) > 12)]
    draft = draft_after(texts, min_match=3)
    for row, text in enumerate(texts):
        assert drafts(draft, row) == expected(text, min_match=3)
    assert (np.asarray(draft.tree.tokens) >= 0).all()


def test_a_row_is_what_it_is_alone():
    together = draft_after(TEXTS)
    for row in range(0, len(TEXTS), 5):
        alone = draft_after(TEXTS[row : row + 1])
        assert drafts(alone, 0) == drafts(together, row)


def test_what_was_emitted_is_part_of_the_text():
    """In mid-text, the drafts are those of the whole text; also of a row that is done."""
    known = baseline("greedy")
    whole = [known.tokens[r, : known.lengths[r]].tolist() for r in (0, 2)]
    store = datastore.build(whole)
    drafter = retrieval(8, 5, min_match=3)
    budgets = jnp.array([12, 1, 12])
    state, _ = speculative(drafter, store, steps=2, max_new_tokens=budgets)
    assert state.done.tolist() == [False, True, False]
    params = jaxspec.Params(tiny.params(TARGET), store)
    draft_in_loop = jax.jit(jaxspec.propose, static_argnames="drafter")
    _, draft = draft_in_loop(params, state, drafter=drafter)
    rows = zip(state.tokens.tolist(), state.lengths.tolist(), strict=True)
    texts = [text[:length] for text, length in rows]
    sizes = {"num_nodes": 8, "max_path": 5, "min_match": 3, "store": store}
    alone = draft_after(texts, **sizes)
    read = zip(PROMPTS, texts, strict=True)
    without = draft_after([[*prompt, text[-1]] for prompt, text in read], **sizes)
    for row in range(3):
        assert drafts(draft, row) == drafts(alone, row)
    assert any(drafts(draft, row) != drafts(without, row) for row in (0, 2))


def test_there_is_no_state():
    drafter = retrieval(8)
    assert drafter.init(STORE, 3, 24) == ()
    assert drafter.absorb(STORE, (), jnp.ones((3, 2), jnp.int32), None, None) == ()
    assert drafter.observe(STORE, (), None) == ()


@settings
def test_text_is_the_same_and_drafts_are_accepted(setting):
    """Row 1 is in the datastore as it will be, row 0 with every fifth token another."""
    state = baseline(setting)
    known = [np.asarray(state.tokens[row, : state.lengths[row]]) for row in range(2)]
    known[0] = np.where(np.arange(len(known[0])) % 5 == 4, 0, known[0])
    store = datastore.build([text.tolist() for text in known])
    drafter = retrieval(8, 5, min_match=1)
    found, info = speculative(drafter, store, **SETTINGS[setting])
    check_same(found, state)
    assert 3 * info.target_calls[1] < info.kept[1].sum()


@pytest.mark.parametrize(
    "sizes",
    [
        {"num_nodes": 0},
        {"max_path": 1},
        {"num_matches": 0},
        {"min_match": 0},
        {"min_match": 3, "max_match": 2},
    ],
)
def test_bad_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match=r"Expected .*got \d"):
        retrieval(**sizes)


def test_more_slots_than_matches_can_fill_are_refused():
    with pytest.raises(ValueError, match="fill 8 nodes, not 16"):
        retrieval(num_matches=1)


def test_equal_settings_give_equal_drafters():
    assert retrieval(8) == retrieval(num_nodes=8, max_path=8) != retrieval(7)
