"""The loop with the host: what a `SuffixDecoder`, or anything else there, proposes."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
import texts
import tiny
from jaxspec import checkpointing
from jaxspec.drafting.suffix import SuffixDecoder, SuffixTree

PROMPTS = [[3, 1, 4, 1, 5, 9] * 3, [7], [2, 7, 1, 8, 2, 8, 1, 8]]
SIZES = {"num_nodes": 8, "max_path": texts.MAX_PATH}


@functools.cache
def alone(setting):
    return texts.autoregressive(**texts.SETTINGS[setting], prompts=PROMPTS)


def start(setting="greedy", **options):
    options = texts.SETTINGS[setting] | {"prompts": PROMPTS} | options
    return texts.start(speculative=True, **options)


def decode(params, state, host=None, **options):
    host = SuffixDecoder(offset=2.0) if host is None else host
    options = {"target": texts.target()} | SIZES | options
    return jaxspec.generate_from_host(params, state, host=host, **options)


def accepted(state, info):
    return int((state.lengths - state.prompt_lengths - info.target_calls).sum())


@texts.settings
def test_text_is_the_same(setting):
    params, state = start(setting)
    state, info = decode(params, state)
    texts.check_same(state, alone(setting))
    assert info.drafted.sum() > 0 and accepted(state, info) > 0


def test_a_text_that_went_before_is_drafted_whole():
    past = SuffixTree()
    for row, length in zip(
        alone("sampled").tokens, alone("sampled").lengths, strict=True
    ):
        past.extend(np.asarray(row[:length]))
        past.end()
    params, state = start("sampled")
    state, info = decode(params, state, SuffixDecoder(offset=8.0, past=past))
    texts.check_same(state, alone("sampled"))
    emitted = int((state.lengths - state.prompt_lengths).sum())
    assert accepted(state, info) > 0.6 * emitted
    without = decode(params, start("sampled")[1])
    assert accepted(*without) < accepted(state, info)


def test_a_text_goes_on_after_it_was_saved(tmp_path):
    params, begun = start("sampled")
    whole, report = decode(params, begun)
    half, first = decode(params, begun, max_steps=4)
    assert not half.done.any() and (first.target_calls == 4).all()
    checkpointing.save(tmp_path, 4, half)
    half = checkpointing.restore(tmp_path, jax.eval_shape(lambda: half))
    last, second = decode(params, half)
    texts.check_same(last, whole)
    for total, one, other in zip(
        *map(jax.tree.leaves, (report, first, second)), strict=True
    ):
        np.testing.assert_array_equal(total, one + other)


def test_the_state_that_it_is_given_can_be_used_again():
    params, state = start()
    first, _ = decode(params, state, max_steps=2)
    again, _ = decode(params, state, max_steps=2)
    np.testing.assert_array_equal(first.tokens, again.tokens)
    same, none = decode(params, state, max_steps=0)
    np.testing.assert_array_equal(same.lengths, state.lengths)
    assert none.target_calls.sum() == 0


def test_the_host_is_told_all_that_was_written_and_asked_for_live_rows_only():
    told, asked = [], []

    class Told(SuffixTree):
        def __init__(self, text):
            super().__init__(8, text)
            told.append(self)

    class Host(SuffixDecoder):
        def begin(self, text):
            return Told(text)

        def propose(self, text, num_nodes, max_path):
            asked.append((told.index(text), len(text.tokens)))
            return super().propose(text, num_nodes, max_path)

    params, state = start(max_new_tokens=jnp.array([12, 1, 20]))
    state, info = decode(params, state, Host())
    for tree, row, length in zip(told, state.tokens, state.lengths, strict=True):
        assert tree.tokens == row[:length].tolist()
    calls = [sum(row == r for r, _ in asked) for row in range(3)]
    assert calls == info.target_calls.tolist()
    assert all(length < int(state.limits[row]) for row, length in asked)


class Scribe:
    """A host that proposes in every step the trees that it is made with, one per row."""

    def __init__(self, tokens, parents, score=None):
        score = np.ones(np.shape(parents)) if score is None else score
        arrays = map(np.asarray, (tokens, parents, score))
        self.trees = list(zip(*arrays, strict=True))

    def begin(self, text):
        self.trees.append(self.trees.pop(0))
        return Told(self.trees[-1])

    def propose(self, text, num_nodes, max_path):
        return text.tree


class Told(NamedTuple):
    """What is told of a text is forgotten."""

    tree: tuple

    def extend(self, tokens):
        pass


MALFORMED = {
    "fewer slots": (([1, 2], [-1, 0]), "tree of 4 slots from the host"),
    "more slots": (([1] * 5, [-1] + [0] * 4), "tree of 4 slots from the host"),
    "parents of another size": (([1] * 4, [-1, 0, 0]), r"shapes \[\(4,\), \(3,\)"),
    "scores of another size": (
        ([1] * 4, [-1, 0, 0, 0], [1.0, 0.5]),
        r"scores of shapes .* \(2,\)\]",
    ),
    "a parent behind its child": (([1] * 4, [-1, 2, 0, 0]), "parent"),
    "no root": (([1] * 4, [0, 0, 0, 0]), "root"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_tree_is_refused(name):
    drafted, message = MALFORMED[name]
    params, state = start()
    host = Scribe(*([array] * 3 for array in drafted))
    with pytest.raises(ValueError, match=message) as error:
        decode(params, state, host, num_nodes=4)
    assert "\n" not in str(error.value)


def test_what_is_too_deep_is_cut():
    """All else is verified, and the text is the same."""
    tree = tiny.random_tree(np.random.default_rng(0), 3, 9, max_path=6)
    shallow = [
        sum(
            1 < len(tiny.path_of(tree, row, n)) <= 3 for n in tiny.real_nodes(tree, row)
        )
        for row in range(3)
    ]
    assert (np.asarray(tree.is_node).sum(axis=1) - 1 > shallow).any()
    params, state = start(max_new_tokens=4)
    options = {"num_nodes": 9, "max_path": 3}
    host = Scribe(tree.tokens, tree.parents)
    _, info = decode(params, state, host, max_steps=1, **options)
    assert info.drafted.tolist() == shallow and info.kept.shape == (3, 3)
    found, _ = decode(params, state, host, **options)
    for row, length in enumerate(found.lengths):
        expected = alone("greedy").tokens[row, :length]
        np.testing.assert_array_equal(found.tokens[row, :length], expected)


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"num_nodes": 0}, "num_nodes must be positive"),
        ({"max_path": 1}, "max_path .*at least 2, got 1"),
        ({"max_path": 9}, "paths of 9 nodes and the target keeps paths of 5"),
    ],
)
def test_bad_sizes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        decode(*start(), **sizes)


def test_a_state_of_any_drafter_has_room():
    """What it holds of its drafter is not touched."""
    drafter, own = texts.make_drafter("model-chain")
    params, state = texts.start(drafter, own, prompts=PROMPTS)
    found, _ = decode(params, state)
    texts.check_same(found, alone("greedy"))
    for one, other in zip(
        *map(jax.tree.leaves, (found.drafter, state.drafter)), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_a_state_without_room_is_refused():
    """A ring is for paths alone."""
    model = texts.target("lazy")
    params, state = texts.start(model=model)
    with pytest.raises(ValueError, match="made without a drafter.*speculative=True"):
        decode(params, state, target=model)
