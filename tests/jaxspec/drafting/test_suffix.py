"""Suffix decoding against scans of the text."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.drafting.suffix import SuffixDecoder, SuffixTree
from jaxspec.trees import TokenTree, check

DEPTH = 5


def occurrences(string, several):
    """How often a string occurs in some texts, by looking at every place."""
    size = len(string)
    return sum(
        tuple(text[i : i + size]) == tuple(string)
        for text in several
        for i in range(len(text) - size + 1)
    )


def count(tree, string):
    node = tree.find(string)
    return 0 if node is None else node.count


def strings(alphabet, longest):
    for size in range(1, longest + 1):
        yield from itertools.product(range(alphabet), repeat=size)


def likely(string, whole, several, alphabet, most, longest, least):
    """The likeliest continuations of a string that came `whole` times, and their sum."""
    found = []
    for path in strings(alphabet, longest):
        here = occurrences((*string, *path), several)
        if here and here / whole >= least:
            found.append((-here / whole, len(path), path))
    found = sorted(found)[: max(most, 0)]
    return [path for *_, path in found], -sum(p for p, *_ in found)


def best(text, past, alphabet, num_nodes, max_path, settings):
    """The score to propose, the length of the match, what follows, and in which texts."""
    chosen = 0.0, 0, [], None
    for name, several in (("text", [text]), ("past", past)):
        for size in range(1, min(len(text), DEPTH - 1) + 1):
            string = text[len(text) - size :]
            whole = occurrences(string, several) - (name == "text")  # but at its end
            if whole == 0:
                continue
            most = int(settings["factor"] * size + settings["offset"])
            found, score = likely(
                string,
                whole,
                several,
                alphabet,
                min(most, num_nodes - 1),
                min(max_path - 1, DEPTH - size),
                settings["min_probability"],
            )
            is_equal = abs(score - chosen[0]) < 1e-9
            if (size > chosen[1] and score > 0) if is_equal else score > chosen[0]:
                chosen = score, size, found, name
    return chosen


def paths(tokens, parents, score):
    """The tokens from below the root to every node, which come by their scores."""
    check(TokenTree(jnp.asarray(tokens)[None], jnp.asarray(parents)[None]))
    assert score[0] == 1.0 and (np.diff(score) <= 0).all() and score.dtype == np.float32
    assert ((score > 0) == (parents >= 0))[1:].all()
    nodes = {0: ()}
    for slot in np.flatnonzero(parents >= 0):
        nodes[slot] = (*nodes[parents[slot]], int(tokens[slot]))
    return list(nodes.values())[1:]


# --- Counting ---


@pytest.mark.parametrize("alphabet", [1, 2, 3])
def test_strings_are_counted_as_a_scan_counts_them(alphabet):
    rng = np.random.default_rng(alphabet)
    several, tree = [[]], SuffixTree(DEPTH)
    for turn in range(40):
        if turn % 13 == 12:
            tree.end()
            several.append([])
        token = int(rng.integers(alphabet))
        tree.extend([token])
        several[-1].append(token)
        if turn % 3 == 0:
            for string in strings(alphabet, DEPTH):
                assert count(tree, string) == occurrences(string, several), string


def test_it_does_not_matter_in_which_pieces_a_text_comes():
    text = np.random.default_rng(0).integers(0, 2, 30)
    pieces = SuffixTree(DEPTH, text[:1])
    pieces.extend(text[1:1])
    pieces.extend(text[1:17])
    pieces.extend(text[17:])
    whole = SuffixTree(DEPTH, text.tolist())
    for string in strings(2, DEPTH):
        assert count(pieces, string) == count(whole, string)


def test_no_string_goes_on_into_the_next_text():
    tree = SuffixTree(DEPTH, [1, 2])
    tree.end()
    tree.extend([3, 1, 2])
    assert count(tree, [1, 2]) == 2
    assert tree.find([2, 3]) is None
    assert tree.children(tree.find([1, 2])) == {}


def test_few_nodes_are_made_where_little_repeats():
    def size(node):
        return 1 + sum(map(size, (node.children or {}).values()))

    distinct = SuffixTree(64, range(500))
    assert size(distinct.find([0])) == 1
    repeated = SuffixTree(8, [5] * 100)
    assert size(repeated.find([5])) <= 9


@pytest.mark.parametrize("text", [[], [4], [1, 2, 3]])
def test_without_a_repetition_there_is_no_draft(text):
    tokens, parents, score = SuffixDecoder().propose(SuffixDecoder().begin(text), 4, 3)
    assert score.tolist() == [1, 0, 0, 0]
    assert parents.tolist() == [-1] * 4 and tokens.shape == (4,)


# --- Proposing ---


SETTINGS = {
    "default": {"factor": 1.0, "offset": 0.0, "min_probability": 0.1},
    "generous": {"factor": 2.0, "offset": 2.0, "min_probability": 0.05},
    "sure": {"factor": 1.5, "offset": 1.0, "min_probability": 0.5},
    "long matches only": {"factor": 1.0, "offset": -1.0, "min_probability": 0.2},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_proposals_are_the_best_by_enumeration(settings):
    rng = np.random.default_rng(0)
    sources = set()
    for turn in range(30):
        alphabet = 2 + turn % 2
        text = tuple(rng.integers(0, alphabet, rng.integers(1, 24)).tolist())
        past = [rng.integers(0, alphabet, 9).tolist() for _ in range(turn % 3)]
        tree = SuffixTree(DEPTH)
        for other in past:
            tree.extend(other)
            tree.end()
        decoder = SuffixDecoder(DEPTH, **settings, past=tree)
        drafted = decoder.propose(decoder.begin(text), 6, 4)
        expected = best(text, past, alphabet, 6, 4, settings)
        assert paths(*drafted) == expected[2]
        assert drafted[2][1:].sum() == pytest.approx(expected[0], rel=1e-5)
        sources.add(expected[3])
    assert {"text", "past"} <= sources


def test_the_longer_match_wins_among_equals():
    text = [1, 2, 3, 0, 2, 4, 0, 1, 2]  # 3 after 1 2, but 3 or 4 after 2
    decoder = SuffixDecoder(offset=3.0)
    found = paths(*decoder.propose(decoder.begin(text), 8, 3))
    assert found == [(3,), (3, 0)]


def test_a_longer_match_deserves_more_drafts():
    text = [*range(10), *range(3)]
    for factor, expected in ((0.4, 1), (1.0, 3), (2.0, 6)):
        decoder = SuffixDecoder(factor=factor)
        found = paths(*decoder.propose(decoder.begin(text), 32, 32))
        assert found[-1] == tuple(range(3, 3 + expected))


def test_the_past_is_asked_where_the_text_is_silent():
    past = SuffixTree(8, [5, 6, 7, 8])
    decoder = SuffixDecoder(past=past, offset=8.0)
    found = paths(*decoder.propose(decoder.begin([1, 2, 5]), 8, 3))
    assert found == [(6,), (6, 7)]
    alone = SuffixDecoder(offset=8.0)
    assert paths(*alone.propose(alone.begin([1, 2, 5]), 8, 3)) == []


def test_reading_and_proposing_leave_the_past_as_it_was():
    past = SuffixTree(8, [5, 6, 7, 8])
    before = list(past.tokens)
    decoder = SuffixDecoder(past=past)
    text = decoder.begin([5, 6])
    decoder.propose(text, 8, 3)
    text.extend([9, 9])
    assert past.tokens == before and past.find([9]) is None


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: SuffixTree(1), "depth of at least 2"),
        (lambda: SuffixTree(4, [3, -1]), "not negative, got -1"),
        (lambda: SuffixDecoder(depth=1), "depth of at least 2"),
        (lambda: SuffixDecoder(min_probability=0.0), "min_probability <= 1"),
    ],
)
def test_bad_arguments_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
