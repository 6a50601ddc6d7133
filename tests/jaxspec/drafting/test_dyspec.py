"""DySpec's trees against a heap, with the same draws."""

import heapq
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import growing
import tiny
from jaxspec import sampling
from jaxspec.drafting.dyspec import dyspec

CASES = {  # settings, and whether the head is trimmed
    "one by one": ({"num_nodes": 9}, False),
    "in rounds": ({"num_nodes": 12, "nodes_per_call": 4}, False),
    "uneven rounds": ({"num_nodes": 9, "nodes_per_call": 3}, True),
    "threshold": ({"num_nodes": 12, "nodes_per_call": 4, "threshold": 0.15}, False),
    "short": ({"num_nodes": 9, "max_path": 3}, False),
    "narrow": ({"num_nodes": 9, "nodes_per_call": 2, "max_children": 2}, False),
    "shared": ({"num_nodes": 9, "noise": "shared"}, False),
    "shared, trimmed": ({"num_nodes": 7, "nodes_per_call": 2, "noise": "shared"}, True),
}
cases = pytest.mark.parametrize("name", CASES)
draw = jax.jit(sampling.draw)


def choose(row, slot, depth, left, trimmed, noise):
    """The column of a child that is to have a slot."""
    if growing.TEMPERATURE[row] == 0.0:
        return int(np.argmax(left))
    if noise == "shared":
        return int(np.argmax(left + growing.emission_noise(row, depth, trimmed)))
    return int(draw(growing.draft_key(row, slot), left))


def by_heap(
    row,
    trimmed,
    num_nodes,
    nodes_per_call=1,
    threshold=0.0,
    max_path=np.inf,
    max_children=np.inf,
    noise="own",
):
    """Parents and tokens, by Algorithm 1; what is read late waits outside of the heap."""
    parents, paths = [-1] * num_nodes, {0: [int(growing.ROOT[row])]}
    rests, counts = {}, {}
    heap, waiting = [], [(-1.0, 0)]
    for first in range(1, num_nodes, nodes_per_call):
        for value, node in waiting:
            rests[node] = growing.law_logits(row, paths[node], trimmed).copy()
            counts[node] = 0
            heapq.heappush(heap, (value, node))
        waiting = []
        for slot in range(first, min(first + nodes_per_call, num_nodes)):
            if not heap or -heap[0][0] <= threshold:
                continue
            value, node = heapq.heappop(heap)
            left, depth = rests[node], len(paths[node]) - 1
            column = choose(row, slot, depth, left, trimmed, noise)
            share = growing.law(left)[column]
            token = int(growing.tokens_of(trimmed)[column])
            parents[slot], paths[slot] = node, [*paths[node], token]
            rests[node] = np.where(np.arange(len(left)) == column, -np.inf, left)
            counts[node] += 1
            if (rests[node] > -np.inf).any() and counts[node] < max_children:
                heapq.heappush(heap, (value * (1 - share), node))
            if len(paths[slot]) < max_path:
                waiting.append((value * share, slot))
    return parents, [
        paths[slot][-1] if slot in paths else 0 for slot in range(num_nodes)
    ]


@cases
def test_the_tree_is_that_of_a_heap(name):
    settings, trimmed = CASES[name]
    draft = growing.grow(dyspec(**settings), trimmed).draft
    assert draft.coupled == name.startswith("shared")
    for row in range(growing.BATCH):
        expected = by_heap(row, trimmed, **settings)
        assert growing.as_lists(draft, row) == expected


def test_the_cases_differ():
    """Each setting matters in some row."""
    found = [
        tuple(by_heap(row, False, **CASES[name][0])[0][:9] for row in range(4))
        for name in CASES
    ]
    for one, other in itertools.combinations(map(str, found), 2):
        assert one != other


def test_slots_stay_free_where_nothing_is_worth_it():
    settings = CASES["threshold"][0]
    draft = growing.grow(dyspec(**settings)).draft
    free = (draft.tree.parents[:, 1:] < 0).sum(axis=1)
    assert (free > 0).any() and (free < settings["num_nodes"] - 1).all()


@pytest.mark.parametrize("noise", ["own", "shared"])
def test_the_decision_to_draw_does_not_see_the_token(noise):
    """Rows that drew the same so far have the same parent next, whatever the key."""
    builder, seen = dyspec(6, 1, noise=noise), {}
    same = tiny.settings(growing.BATCH, 1.0)
    root = jnp.full_like(growing.ROOT, 1)
    for seed in range(30):
        keys = jax.random.split(jax.random.key(seed), growing.BATCH)
        tree = growing.grow(builder, keys=keys, root=root, settings=same).draft.tree
        for tokens, parents in zip(tree.tokens, tree.parents, strict=True):
            for slot in range(1, 6):
                before = (*tokens[:slot].tolist(), *parents[:slot].tolist())
                parent = seen.setdefault(before, int(parents[slot]))
                assert parent == parents[slot]
    assert len(seen) > 20


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_nodes": 1}, "num_nodes >= 2"),
        ({"num_nodes": 3, "nodes_per_call": 0}, "nodes_per_call >= 1"),
        ({"num_nodes": 3, "threshold": -0.1}, "threshold from 0"),
        ({"num_nodes": 3, "threshold": 1.0}, "threshold from 0"),
        ({"num_nodes": 3, "max_path": 1}, "max_path >= 2"),
        ({"num_nodes": 3, "max_children": 0}, "max_children >= 1"),
        ({"num_nodes": 3, "noise": "none"}, "'none'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        dyspec(**settings)


def test_paths_are_no_longer_than_there_are_calls():
    assert dyspec(9).max_path == 9
    assert dyspec(9, 4).max_path == 3
    assert dyspec(9, 4, max_path=7) == dyspec(9, 4)
    assert dyspec(9, 100).num_read == 1
