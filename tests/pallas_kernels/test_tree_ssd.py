"""One suite for every implementation of `tree_ssd`."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from pallas_kernels import Inputs, topology, tree_ssd
from tests.pallas_kernels import trees
from tests.pallas_kernels.records import cut, halve, overwrite, pad, widen
from tests.pallas_kernels.trees import TREES, assert_close, definition, jitted, real

HEADS, DIM, STATE = 4, 3, 5

implementations = pytest.mark.parametrize("implementation", tree_ssd.implementations())
groups_and_skips = pytest.mark.parametrize(
    "groups, skip", [(1, (HEADS,)), (2, (HEADS, DIM))], ids=["G=1,D[H]", "G=2,D[H,P]"]
)


def normal(rng, *shape):
    return rng.standard_normal(shape, np.float32)


def make_inputs(rng, batch, length, groups):
    return Inputs(
        x=normal(rng, batch, length, HEADS, DIM),
        dt=rng.uniform(0.01, 1.0, (batch, length, HEADS)).astype(np.float32),
        B=normal(rng, batch, length, groups, STATE),
    )


def make_args(parents, groups=2, ring=2, strength=1.0, seed=0, skip=(HEADS,)):
    """The arguments of `read`, all nodes queried; `dt A` is at least `-strength`."""
    rng = np.random.default_rng(seed)
    batch, num_nodes = parents.shape
    return (
        trees.derive(parents),
        make_inputs(rng, batch, num_nodes, groups),
        -strength * np.linspace(0.1, 1.0, HEADS, dtype=np.float32),
        normal(rng, batch, num_nodes, groups, STATE),
        normal(rng, *skip),
        normal(rng, batch, HEADS, DIM, STATE),
        make_inputs(rng, batch, ring, groups) if ring else None,
    )


def assert_read_is_defined(implementation, parents, args):
    """Asserts agreement with the definition on the nodes of the trees."""
    outputs = jitted(tree_ssd.read, implementation)(*args)
    nodes = real(parents)
    assert_close(outputs[nodes], definition(tree_ssd.read, *args)[nodes])


@pytest.mark.parametrize("ring", [None, 2])
@trees.every_tree
@implementations
def test_read_matches_the_definition(implementation, parents, ring):
    assert_read_is_defined(implementation, parents, make_args(parents, ring=ring))


def test_the_default_matches_the_definition():
    parents = TREES["one per row"]
    assert_read_is_defined(None, parents, make_args(parents))


@groups_and_skips
@implementations
def test_read_takes_groups_and_either_skip(implementation, groups, skip):
    parents = TREES["one per row"]
    args = make_args(parents, groups, skip=skip)
    assert_read_is_defined(implementation, parents, args)


@pytest.mark.parametrize("queries", [1, 3])
@implementations
def test_queries_of_the_last_nodes_are_the_last_of_all(implementation, queries):
    read = jitted(tree_ssd.read, implementation)
    args = make_args(TREES["binary"])
    last = (*args[:3], args[3][:, -queries:], *args[4:])
    assert_close(read(*last), read(*args)[:, -queries:])


@pytest.mark.parametrize("ring", [None, 2])
@trees.every_tree
@implementations
def test_strong_decays_do_not_overflow(implementation, parents, ring):
    args = make_args(parents, ring=ring, strength=60.0)
    assert_read_is_defined(implementation, parents, args)


@implementations
def test_a_node_reads_its_own_path(implementation):
    read = jitted(tree_ssd.read, implementation)
    parents = TREES["caterpillar"]
    tree, inputs, A, C, D, state, ring = make_args(parents)
    slots = trees.path(parents[0], 6)
    chain = topology.chain(len(parents), len(slots))
    alone = Inputs(*(a[:, slots] for a in inputs))
    outputs = read(chain, alone, A, C[:, slots], D, state, ring)
    assert_close(outputs, read(tree, inputs, A, C, D, state, ring)[:, slots])


@implementations
def test_unused_ring_slots_change_nothing(implementation):
    read = jitted(tree_ssd.read, implementation)
    *args, ring = make_args(TREES["one per row"])
    assert_close(read(*args, pad(ring, 2)), read(*args, ring))


@implementations
def test_a_ring_of_zeros_is_no_ring(implementation):
    read = jitted(tree_ssd.read, implementation)
    *args, ring = make_args(TREES["one per row"])
    zeros = jax.tree.map(np.zeros_like, ring)
    assert_close(read(*args, zeros), read(*args, None))


@implementations
def test_a_ring_is_folded_into_the_state(implementation):
    read = jitted(tree_ssd.read, implementation)
    fold = jitted(tree_ssd.fold, implementation)
    *args, state, ring = make_args(TREES["one per row"])
    folded = fold(state, args[2], ring)
    assert_close(read(*args, folded, None), read(*args, state, ring))


@pytest.mark.parametrize("value", trees.FILLINGS)
@implementations
def test_padding_is_finite_and_read_by_no_node(implementation, value):
    read = jitted(tree_ssd.read, implementation)
    parents = TREES["padded"]
    tree, inputs, A, C, D, state, ring = make_args(parents)
    outputs = read(tree, inputs, A, C, D, state, ring)
    others, C = overwrite((inputs, C), real(parents), value)
    again = read(tree, others, A, C, D, state, ring)
    assert np.isfinite(outputs).all()
    np.testing.assert_array_equal(again[real(parents)], outputs[real(parents)])


@pytest.mark.parametrize("strength", [1.0, 60.0])
@pytest.mark.parametrize("groups", [1, 2])
@implementations
def test_fold_matches_the_definition(implementation, groups, strength):
    _, inputs, A, _, _, state, _ = make_args(TREES["chain"], groups, strength=strength)
    folded = jitted(tree_ssd.fold, implementation)(state, A, inputs)
    assert_close(folded, definition(tree_ssd.fold, state, A, inputs))


@implementations
def test_fold_then_read_is_reading_the_whole_chain(implementation):
    read = jitted(tree_ssd.read, implementation)
    fold = jitted(tree_ssd.fold, implementation)
    tree, inputs, A, C, D, state, _ = make_args(TREES["chain"], ring=None)
    one = topology.chain(len(state), 1)
    folded = fold(state, A, cut(inputs, 0, 6))
    outputs = read(one, cut(inputs, 6, 7), A, C[:, 6:], D, folded)
    assert_close(outputs, read(tree, inputs, A, C, D, state)[:, 6:])


@implementations
def test_folding_zeros_changes_no_bit(implementation):
    _, inputs, A, _, _, state, _ = make_args(TREES["chain"])
    zeros = jax.tree.map(np.zeros_like, inputs)
    folded = jitted(tree_ssd.fold, implementation)(state, A, zeros)
    np.testing.assert_array_equal(folded, state)


@pytest.mark.parametrize("strength", [1.0, 60.0])
@trees.every_tree
@implementations
def test_node_states_match_the_definition(implementation, parents, strength):
    _, inputs, A, _, _, state, _ = make_args(parents, strength=strength)
    args = parents, inputs, A, state
    states = jitted(tree_ssd.node_states, implementation)(*args)
    nodes = real(parents)
    assert_close(states[nodes], definition(tree_ssd.node_states, *args)[nodes])


@pytest.mark.parametrize("known", [1, 4])
@pytest.mark.parametrize("name", ["binary", "one per row"])
@implementations
def test_node_states_continue_from_known_ones(implementation, name, known):
    parents = TREES[name]
    node_states = jitted(tree_ssd.node_states, implementation)
    _, inputs, A, _, _, state, _ = make_args(parents)
    states = node_states(parents, inputs, A, state)
    new = cut(inputs, known, None)
    rest = node_states(parents[:, known:], new, A, state, states[:, :known])
    assert_close(rest, states[:, known:])


@groups_and_skips
@implementations
def test_reading_the_node_states_is_read(implementation, groups, skip):
    parents = TREES["one per row"]
    tree, inputs, A, C, D, state, _ = make_args(parents, groups, skip=skip)
    node_states = jitted(tree_ssd.node_states, implementation)
    states = node_states(parents, inputs, A, state)
    queries = np.repeat(C, HEADS // groups, axis=2)
    outputs = np.einsum("bihps,bihs->bihp", states, queries)
    outputs += D.reshape(HEADS, -1) * inputs.x
    read = jitted(tree_ssd.read, implementation)
    assert_close(read(tree, inputs, A, C, D, state), outputs)


@implementations
def test_half_precision_activations_are_computed_in_float32(implementation):
    tree, inputs, A, C, D, state, ring = make_args(TREES["one per row"])
    args = tree, halve(inputs), A, C.astype(jnp.bfloat16), D, state, halve(ring)
    exact = tree, *widen(args[1:])
    outputs = jitted(tree_ssd.read, implementation)(*args)
    assert outputs.dtype == jnp.float32
    assert_close(outputs, definition(tree_ssd.read, *exact))


def gradients(tree, *args, implementation):
    def loss(inputs, A, C, D, state):
        y = tree_ssd.read(tree, inputs, A, C, D, state, implementation=implementation)
        state = tree_ssd.fold(state, A, inputs, implementation=implementation)
        return jnp.sum(y**2) + jnp.sum(state**2)

    return jax.grad(loss, argnums=range(5))(*args)


@pytest.mark.parametrize("strength", [1.0, 60.0])
@implementations
def test_gradients_match_the_definition(implementation, strength):
    *args, _ = make_args(TREES["chain"], strength=strength)
    assert_close(jitted(gradients, implementation)(*args), definition(gradients, *args))


@implementations
def test_jit_equals_eager(implementation):
    args = jax.tree.map(jnp.asarray, make_args(TREES["one per row"][:, :3]))
    read = functools.partial(tree_ssd.read, implementation=implementation)
    assert_close(jax.jit(read)(*args), read(*args))


@pytest.mark.parametrize(
    "in_axes", [(0, 0, 0, 0, 0, 0, 0), (None, 0, None, 0, None, 0, None)]
)
@implementations
def test_vmap_is_a_loop(implementation, in_axes):
    calls = [make_args(TREES["binary"]), make_args(TREES["one per row"], seed=1)]
    trees.assert_vmap_is_a_loop(tree_ssd.read, calls, in_axes, implementation)


@pytest.mark.parametrize("groups", [1, 2])
@implementations
def test_shards_over_rows_and_heads(implementation, groups):
    parents = np.concatenate([TREES["one per row"], TREES["star"][:1]])
    heads = P("data", None, "model")
    keys = heads if groups == 2 else P("data")
    inputs = Inputs(x=heads, dt=heads, B=keys)
    head, state = P("model"), P("data", "model")
    trees.assert_shards_are_parts(
        tree_ssd.read,
        make_args(parents, groups),
        in_specs=(P("data"), inputs, head, keys, head, state, inputs),
        out_specs=heads,
        implementation=implementation,
    )


def test_unknown_implementations_are_refused():
    tree, inputs, A, C, D, state, _ = make_args(TREES["star"])
    known = re.escape(str(sorted(tree_ssd.implementations())))
    with pytest.raises(ValueError, match=known):
        tree_ssd.read(tree, inputs, A, C, D, state, implementation="fast")
    with pytest.raises(ValueError, match=known):
        tree_ssd.node_states(tree.parents, inputs, A, state, implementation="fast")
    with pytest.raises(ValueError, match=known):
        tree_ssd.fold(state, A, inputs, implementation="fast")


@implementations
def test_wrong_shapes_are_refused(implementation):
    tree, inputs, A, C, D, state, _ = make_args(TREES["star"])
    read = functools.partial(tree_ssd.read, implementation=implementation)
    with pytest.raises(ValueError, match="x has shape"):  # one node too few
        read(tree, cut(inputs, 0, 6), A, C, D, state)
    with pytest.raises(ValueError, match="A has shape"):  # one head too few
        read(tree, inputs, A[1:], C, D, state)
    with pytest.raises(ValueError, match="C has shape"):  # C in 2 groups, B in 1
        read(tree, inputs._replace(B=inputs.B[:, :, :1]), A, C, D, state)
    with pytest.raises(ValueError, match="3 groups do not divide 4"):
        three = [np.repeat(a[:, :, :1], 3, axis=2) for a in (inputs.B, C)]
        read(tree, inputs._replace(B=three[0]), A, three[1], D, state)
    with pytest.raises(ValueError, match="A has shape"):  # H and P swapped
        read(tree, inputs, A, C, D, state.swapaxes(1, 2))
    with pytest.raises(ValueError, match="Expected at most 7 queries and D"):
        read(tree, inputs, A, C, D[1:], state)
    with pytest.raises(ValueError, match="dt has shape"):
        tree_ssd.fold(state, A, inputs._replace(dt=inputs.dt[:, :, :1]))
