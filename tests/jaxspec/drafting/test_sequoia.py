"""The tree of the dynamic programme is the best of all trees there are."""

import itertools

import numpy as np
import pytest

from jaxspec.drafting import sequoia, static

CURVES = {
    "falling": (0.6, 0.15, 0.08, 0.02),
    "flat": (0.25, 0.25, 0.25, 0.25),
    "steep": (0.9, 0.01),
    "not monotone": (0.3, 0.02, 0.3),  # a rank must be drawn for the next to be
    "one": (0.7,),
    "nothing beyond": (0.5, 0.0, 0.0),
}
curves = pytest.mark.parametrize("name", CURVES)


def all_trees(num_nodes, max_path):
    for rest in itertools.product(*(range(i) for i in range(1, num_nodes))):
        if sequoia.num_levels((-1, *rest)) < max_path:
            yield (-1, *rest)


@curves
@pytest.mark.parametrize("num_nodes", range(2, 8))
@pytest.mark.parametrize("max_path", [2, 3, 4, 7])
def test_no_tree_is_better(name, num_nodes, max_path):
    curve = CURVES[name]
    best = max(
        sequoia.expected_tokens(t, curve) for t in all_trees(num_nodes, max_path)
    )
    tree = sequoia.optimal_tree(curve, num_nodes, max_path)
    assert len(tree) <= num_nodes and sequoia.num_levels(tree) < max_path
    assert sequoia.expected_tokens(tree, curve) == pytest.approx(best, abs=1e-12)


def test_tokens_are_summed_by_hand():
    p, q = 0.5, 0.25
    tree = (-1, 0, 0, 1, 1, 3)  # ranks -, 0, 1, 0, 1, 0
    expected = 1 + p + q + p * p + p * q + p * p * p
    assert sequoia.expected_tokens(tree, (p, q)) == pytest.approx(expected)
    assert sequoia.expected_tokens((-1, 0, 0, 0), (p, q)) == pytest.approx(1 + p + q)


@pytest.mark.parametrize("max_path, length", [(9, 6), (4, 4)])
def test_one_rank_makes_a_chain(max_path, length):
    chain = tuple(range(-1, length - 1))
    assert sequoia.optimal_tree((0.8,), 6, max_path) == chain


def test_nodes_that_are_never_reached_are_left_out():
    assert sequoia.optimal_tree((0.5, 0.0, 0.0), 9, 3) == (-1, 0, 1)


@curves
def test_more_room_is_never_worse(name):
    tokens = np.array(
        [
            [
                sequoia.expected_tokens(
                    sequoia.optimal_tree(CURVES[name], nodes, path), CURVES[name]
                )
                for path in range(2, 8)
            ]
            for nodes in (2, 3, 5, 8, 13, 40)
        ]
    )
    assert (np.diff(tokens, axis=0) >= -1e-12).all()
    assert (np.diff(tokens, axis=1) >= -1e-12).all()


@curves
def test_builders_take_its_trees_and_read_few_leaves(name):
    tree = sequoia.optimal_tree(CURVES[name], 24, 6)
    if len(tree) < 2:
        return
    builder = static.static_tree(tree, "without_replacement")
    assert builder.num_nodes == len(tree) <= 24 and builder.max_path <= 6
    depth = [0]
    for parent in tree[1:]:
        depth.append(depth[parent] + 1)
    assert depth == sorted(depth)
    assert builder.num_read == max(tree) + 1
    if name in ("falling", "steep", "one"):  # elder siblings have more below
        for level in range(max(depth)):
            slots = [slot for slot in range(len(tree)) if depth[slot] == level]
            inner = [slot in tree[1:] for slot in slots]
            assert inner == sorted(inner, reverse=True)  # no leaf is read


def test_speed_weighs_tokens_against_time():
    curve = (0.6, 0.2)
    free = sequoia.best_shape(curve, {2: 1.0, 8: 1.0}, 0.0, 8)
    assert len(free.parents) == 8
    tokens = sequoia.expected_tokens(free.parents, curve)
    assert free.expected_tokens == free.speed == pytest.approx(tokens)
    dear = sequoia.best_shape(curve, {2: 1.0, 8: 4.0}, 0.5, 8)
    assert dear.parents == (-1, 0) and dear.speed == pytest.approx(1.6 / 1.5)
    levels_cost = sequoia.best_shape(curve, {8: 1.0}, 10.0, 8)
    assert sequoia.num_levels(levels_cost.parents) == 1


def test_the_best_shape_is_the_best_of_all():
    curve, times, level = (0.5, 0.2, 0.1), {2: 1.0, 4: 1.1, 6: 1.3}, 0.2
    speeds = [
        sequoia.expected_tokens(tree, curve)
        / (times[size] + level * sequoia.num_levels(tree))
        for size in times
        for tree in all_trees(size, 5)
    ]
    best = sequoia.best_shape(curve, times, level, 5)
    assert best.speed == pytest.approx(max(speeds))


@pytest.mark.parametrize(
    "acceptance", [(), (0.0, 0.5), (-0.1,), (0.7, 0.7), ((0.5,),), (float("nan"),)]
)
def test_shares_that_are_none_are_refused(acceptance):
    with pytest.raises(ValueError, match="shares of all nodes"):
        sequoia.optimal_tree(acceptance, 4, 4)


def test_trees_without_a_draft_are_refused():
    with pytest.raises(ValueError, match="num_nodes 1"):
        sequoia.optimal_tree((0.5,), 1, 4)
    with pytest.raises(ValueError, match="There is no tree of"):
        sequoia.best_shape((0.5,), {1: 1.0}, 0.1, 4)
