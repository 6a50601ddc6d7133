"""Prompt lookup against a search in a list."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import contexts
import jaxspec
import tiny
from jaxspec.drafting.ngram import ngram
from jaxspec.trees import check
from texts import MAX_PATH, PROMPTS, TARGET, speculative

SETTINGS = {
    "default": {},
    "the root alone": {"num_nodes": 1, "max_path": 2},
    "few slots": {"num_nodes": 3, "max_path": 5},
    "one match": {"num_matches": 1},
    "long matches only": {"min_match": 2, "max_match": 3},
    "one token compared": {"max_match": 1, "num_matches": 6},
    "as many slots as paths fill": {"num_nodes": 7, "max_path": 3, "num_matches": 3},
}


def agreement(text, place, max_match):
    """How many tokens up to `place` are those at the end of the text."""
    count = 0
    while count < min(max_match, place + 1) and text[place - count] == text[-1 - count]:
        count += 1
    return count


def continuations(
    text, num_nodes=8, max_path=8, num_matches=4, min_match=1, max_match=4
):
    """What followed the best places, the longest match first and then the latest.

    Beyond the end of the text a continuation copies itself.
    """
    agreed = [(agreement(text, p, max_match), p) for p in range(len(text) - 1)]
    places = [(n, p) for n, p in sorted(agreed, reverse=True) if n >= min_match]
    reach = min(max_path, max(num_nodes, 2)) - 1
    found = {}
    for n, place in places[:num_matches]:
        extended = list(text)
        for _ in range(reach):
            extended.append(extended[place + 1 + len(extended) - len(text)])
        found[place] = (n, tuple(extended[place + 1 : place + 1 + reach]))
    return list(found.values())


def best_prefixes(matches, num_nodes=8, **_):
    """The nodes of the trie of some continuations that most and best matches share."""
    scores = {}
    for agreed, sequence in matches:
        for n in range(1, len(sequence) + 1):
            share = 2.0**agreed * 0.81 ** (n - 1)
            scores[sequence[:n]] = scores.get(sequence[:n], 0.0) + share
    best = sorted(scores, key=lambda node: -scores[node])  # stable: first come first
    return [(), *best][:num_nodes]


def drafts(draft, row):
    """The tokens from below the root to every node, in order."""
    tokens, parents = (
        np.asarray(x)[row].tolist() for x in (draft.tree.tokens, draft.tree.parents)
    )
    nodes = {0: ()}
    for i in range(1, len(parents)):
        if parents[i] >= 0:
            nodes[i] = (*nodes[parents[i]], tokens[i])
    return list(nodes.values())


def propose(drafter, context):
    return jax.jit(drafter.propose)(None, (), context)[1]


def draft_after(texts, **settings):
    drafter = ngram(**{"min_match": 1} | settings)
    return propose(drafter, contexts.of_texts(texts))


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_drafts_are_what_followed_the_text_before(settings):
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 3, n).tolist() for n in range(1, 24)]
    draft = draft_after(texts, **settings)
    check(draft.tree)
    for row, text in enumerate(texts):
        expected = best_prefixes(continuations(text, **settings), **settings)
        assert drafts(draft, row) == expected
        assert draft.tree.tokens[row, 0] == text[-1]


def test_a_longer_match_is_preferred_to_a_later_one():
    text = [1, 2, 7, 0, 2, 8, 0, 1, 2]  # 1 2 was followed by 7, and later 2 by 8
    draft = draft_after([text], num_nodes=3, max_path=2)
    assert drafts(draft, 0) == [(), (7,), (8,)]


def test_a_later_match_is_preferred_among_equals():
    draft = draft_after([[2, 7, 2, 8, 2]], num_nodes=3, max_path=2)
    assert drafts(draft, 0) == [(), (8,), (7,)]


def test_matches_share_their_common_prefix():
    text = [5, 1, 2, 3, 5, 1, 2, 4, 5]
    draft = draft_after([text], max_path=4)
    expected = [(), (1,), (1, 2), (1, 2, 4), (1, 2, 3)]
    assert drafts(draft, 0) == expected


def test_what_several_matches_agree_on_comes_first():
    text = [2, 7, 2, 7, 2, 8, 2]  # 8 is the latest, but 7 came twice
    draft = draft_after([text], num_nodes=2, max_path=2)
    assert drafts(draft, 0) == [(), (7,)]


def test_a_continuation_goes_on_by_copying_itself():
    draft = draft_after([[9, 4, 6, 4, 6]], num_nodes=6, num_matches=1)
    assert drafts(draft, 0)[-1] == (4, 6, 4, 6, 4)


@pytest.mark.parametrize(
    "text, settings",
    [
        ([3], {}),  # nothing before
        ([1, 2, 3], {}),  # nothing alike
        ([1, 2, 3, 4, 2], {"min_match": 2}),  # alike in one token only
    ],
)
def test_without_a_match_there_is_no_draft(text, settings):
    draft = draft_after([text], **settings)
    assert drafts(draft, 0) == [()]
    assert draft.tree.tokens[0, 0] == text[-1]


def test_nothing_behind_the_end_of_a_text_is_found():
    context = contexts.of_texts([[1, 2, 3, 1, 9, 1, 9]])
    draft = propose(ngram(min_match=1), context._replace(lengths=jnp.array([4])))
    assert drafts(draft, 0)[-1] == (2, 3, 1, 2, 3, 1, 2)


def test_more_matches_may_be_asked_for_than_there_are_tokens():
    context = contexts.of_texts(jnp.array([[1, 2, 1, 0]]), jnp.array([3]))
    draft = propose(ngram(min_match=1, num_matches=64), context)
    assert drafts(draft, 0)[-1] == (2, 1, 2, 1, 2, 1, 2)


def test_what_was_emitted_is_looked_up_too():
    """In mid-text, the drafts are those of the whole text; also of a row that is done."""
    drafter = ngram(6, MAX_PATH, min_match=1)
    budgets = jnp.array([40, 1, 40])
    state, _ = speculative(drafter, steps=8, max_new_tokens=budgets)
    assert state.done.tolist() == [False, True, False]
    params = jaxspec.Params(tiny.params(TARGET))
    draft_in_loop = jax.jit(jaxspec.propose, static_argnames="drafter")
    _, draft = draft_in_loop(params, state, drafter=drafter)
    rows = zip(state.tokens.tolist(), state.lengths.tolist(), strict=True)
    written = [text[:length] for text, length in rows]
    whole = propose(drafter, contexts.of_texts(written))
    read = zip(PROMPTS, written, strict=True)
    without = propose(drafter, contexts.of_texts([[*p, text[-1]] for p, text in read]))
    for row in range(3):
        assert drafts(draft, row) == drafts(whole, row)
    assert any(drafts(draft, row) != drafts(without, row) for row in (0, 2))


def test_there_is_no_state():
    drafter = ngram(4, 4)
    assert drafter.init(None, 3, 24) == ()
    assert drafter.absorb(None, (), jnp.ones((3, 2), jnp.int32), None, None) == ()
    assert drafter.observe(None, (), None) == ()


@pytest.mark.parametrize(
    "settings",
    [
        {"num_nodes": 0},
        {"max_path": 1},
        {"num_matches": 0},
        {"min_match": 0},
        {"min_match": 3, "max_match": 2},
    ],
)
def test_bad_sizes_are_refused(settings):
    with pytest.raises(ValueError, match=r"Expected .*got \d"):
        ngram(**settings)


def test_more_slots_than_matches_can_fill_are_refused():
    with pytest.raises(ValueError, match="fill 29 nodes, not 64"):
        ngram(64)


def test_equal_settings_give_equal_drafters():
    assert ngram(8) == ngram(num_nodes=8, max_path=8) != ngram(7)
