"""Token recycling against a dictionary of what was read last."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import contexts
import jaxspec
import texts
import tiny
from jaxspec import sharding
from jaxspec.core import Verdict, deterministic_draft
from jaxspec.drafting import sequoia, static
from jaxspec.drafting.recycling import ACCEPTANCE, UNKNOWN, recycling
from jaxspec.trees import check

V, K = 7, 3
TOPOLOGIES = {
    "chain": (1, 1, 1),
    "star": (3,),
    "branching": (2, 3),
    "parents": (-1, 0, 0, 1, 1, 2, 3, 3),
}
topologies = pytest.mark.parametrize(
    "topology", TOPOLOGIES.values(), ids=TOPOLOGIES.keys()
)


def begin(topology=(2, 2), batch=3):
    """A drafter of few tokens, and its state before it has seen any."""
    drafter = recycling(V, topology, K)
    return drafter, drafter.init(None, batch, 20)


def propose(drafter, state, root):
    context = contexts.of_roots(jnp.array(root))
    _, draft = jax.jit(drafter.propose)(None, state, context)
    check(draft.tree)
    return draft


def observe(drafter, state, draft, path, logits):
    path = jnp.array(path)
    verdict = Verdict(path, path[:, 0], path[:, 0], jnp.zeros(path.shape))
    outcome = contexts.outcome(draft.tree, verdict, logits=logits)
    return jax.jit(drafter.observe)(None, state, outcome)


def random_state(rng, state, unknown=0.4):
    """Every token's successors in some order, those of some tokens unknown."""
    shape = state.successors.shape
    known = [rng.permutation(V)[:K] for _ in range(shape[0] * V)]
    known = np.array(known).reshape(shape)
    known[rng.random(shape[:2]) < unknown] = UNKNOWN
    return state._replace(successors=jnp.array(known, jnp.int32))


def expected_tree(known, root, parents):
    """Tokens of the nodes that there are, by slot, walking from the root."""
    tokens, ranks = {0: root}, [0] * len(parents)
    for slot, parent in enumerate(parents[1:], start=1):
        rank = ranks[parent]
        ranks[parent] += 1
        if parent in tokens and known[tokens[parent]][rank] != UNKNOWN:
            tokens[slot] = known[tokens[parent]][rank]
    return tokens


@topologies
def test_children_are_the_successors_of_their_parents(topology):
    rng = np.random.default_rng(0)
    drafter, state = begin(topology, batch=V)
    parents = static.parents_of(topology)
    for _ in range(5):
        state = random_state(rng, state)
        root = rng.integers(0, V, V).tolist()
        tree = propose(drafter, state, root).tree
        tokens, above = np.asarray(tree.tokens), np.asarray(tree.parents)
        for row, known in enumerate(state.successors.tolist()):
            expected = expected_tree(known, root[row], parents)
            assert np.flatnonzero(tree.is_node[row]).tolist() == sorted(expected)
            for slot, token in expected.items():
                assert tokens[row, slot] == token
                assert above[row, slot] == parents[slot]


def test_nothing_is_proposed_before_anything_was_read():
    drafter, state = begin()
    draft = propose(drafter, state, [0, 3, 6])
    assert (draft.tree.parents == -1).all()
    assert draft.tree.tokens[:, 0].tolist() == [0, 3, 6]


def test_what_no_node_read_stays_unknown():
    drafter, state = begin((1, 1))
    draft = propose(drafter, state, [0, 3, 6])
    logits = jnp.tile(jnp.arange(V, dtype=jnp.float32), (3, 3, 1))
    state = observe(drafter, state, draft, [[0, -1, -1]] * 3, logits)
    for row, root in enumerate([0, 3, 6]):
        known = np.asarray(state.successors[row])
        assert known[root].tolist() == [6, 5, 4]
        assert (np.delete(known, root, axis=0) == UNKNOWN).all()
    draft = propose(drafter, state, [0, 3, 6])  # 6 follows 0 and 3, and nothing that
    assert draft.tree.is_node.tolist() == [[True, True, False]] * 2 + [[True] * 3]


def random_round(rng, batch, num_nodes):
    tree = tiny.random_tree(rng, batch, num_nodes, max_path=4, padding=0.3)
    tree = tree.replace(tokens=tree.tokens % V)  # many nodes share a token
    logits = jnp.array(rng.normal(size=(batch, num_nodes, V)), jnp.float32)
    return deterministic_draft(tree, 4), logits


def test_every_node_teaches_and_the_last_slot_wins():
    rng = np.random.default_rng(1)
    drafter, state = begin((2, 2, 2), batch=4)
    state = random_state(rng, state)
    for _ in range(6):
        draft, logits = random_round(rng, 4, 15)
        path = np.full((4, 4), -1)
        path[:3, 0] = 0  # nothing is accepted, and the last row is done
        expected = np.array(state.successors)
        for row, slot in itertools.product(range(3), range(15)):
            if draft.tree.is_node[row, slot]:
                best = np.argsort(-np.asarray(logits[row, slot]), kind="stable")
                expected[row, draft.tree.tokens[row, slot]] = best[:K]
        state = observe(drafter, state, draft, path, logits)
        np.testing.assert_array_equal(state.successors, expected)


def test_tokens_that_cannot_come_are_not_proposed():
    drafter, state = begin((3,), batch=1)
    draft = propose(drafter, state, [2])
    logits = jnp.full((1, 4, V), -jnp.inf).at[0, 0, 5].set(0.0)
    state = observe(drafter, state, draft, [[0, -1]], logits)
    tree = propose(drafter, state, [2]).tree
    assert tree.parents.tolist() == [[-1, 0, -1, -1]] and tree.tokens[0, 1] == 5


def test_a_mesh_changes_nothing():
    rng = np.random.default_rng(2)
    drafter, state = begin((2, 2), batch=4)
    state = random_state(rng, state)
    draft, logits = random_round(rng, 4, 7)
    args = drafter, state, draft, [[0, -1, -1]] * 4, logits
    expected = observe(*args)
    tree = propose(drafter, expected, [1, 2, 3, 4]).tree
    with sharding.mesh(data=2, tensor=4):
        found = observe(*args)
        again = propose(drafter, found, [1, 2, 3, 4]).tree
    np.testing.assert_array_equal(found.successors, expected.successors)
    np.testing.assert_array_equal(again.tokens, tree.tokens)
    np.testing.assert_array_equal(again.parents, tree.parents)


def test_the_default_topology_is_a_drafters():
    drafter = recycling(100)
    assert drafter.max_path <= 8
    best = sequoia.optimal_tree(ACCEPTANCE, num_nodes=16, max_path=8)
    assert drafter == recycling(100, best, 8) != recycling(101)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"topology": ()}, "at least one level"),
        ({"topology": (-1, 0, 2)}, "one of the slots before it"),
        ({"topology": (4,)}, "up to 4 children, 3 successors"),
        ({"topology": (1,), "successors": 8}, "there are 7 tokens"),
    ],
)
def test_bad_settings_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        recycling(V, **{"successors": K} | settings)


# --- In the loop ---

PROMPTS = [[3, 1, 4, 1, 5, 9] * 2, [7], [2, 7, 1, 8, 2, 8, 1, 8]]


@functools.cache
def alone(setting):
    return texts.autoregressive(**texts.SETTINGS[setting], prompts=PROMPTS)


@texts.settings
@pytest.mark.parametrize("topology", [(1, 1, 1, 1), (3, 2, 1)], ids=str)
def test_text_is_the_same(setting, topology):
    drafter = recycling(tiny.VOCAB, topology)
    options = texts.SETTINGS[setting] | {"prompts": PROMPTS}
    state, info = texts.speculative(drafter, **options)
    texts.check_same(state, alone(setting))
    assert info.drafted.sum() > 0
    emitted = (state.lengths - state.prompt_lengths).sum()
    assert info.target_calls.sum() < emitted  # something was accepted


def test_rows_that_are_done_keep_what_they_know():
    drafter = recycling(tiny.VOCAB, (2, 2))
    budgets = jnp.array([30, 1, 5])
    first, _ = texts.speculative(drafter, steps=6, max_new_tokens=budgets)
    assert first.done.tolist() == [False, True, True]
    params = jaxspec.Params(tiny.params(texts.TARGET))
    last, _ = jaxspec.speculative_generate(
        params, first, target=texts.target(), drafter=drafter
    )
    before, after = first.drafter.successors, last.drafter.successors
    assert (before[0] != after[0]).any()
    np.testing.assert_array_equal(before[1:], after[1:])
