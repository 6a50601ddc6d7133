"""One suite for every implementation of `tree_scan`."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from pallas_kernels import Inputs, topology, tree_scan
from tests.pallas_kernels import trees
from tests.pallas_kernels.records import cut, halve, overwrite, pad, widen
from tests.pallas_kernels.trees import TREES, assert_close, definition, jitted, real

CHANNELS, STATE = 6, 5

implementations = pytest.mark.parametrize("implementation", tree_scan.implementations())


def normal(rng, *shape):
    return rng.standard_normal(shape, np.float32)


def make_inputs(rng, batch, length):
    return Inputs(
        x=normal(rng, batch, length, CHANNELS),
        dt=rng.uniform(0.01, 1.0, (batch, length, CHANNELS)).astype(np.float32),
        B=normal(rng, batch, length, STATE),
    )


def make_args(parents, ring=2, strength=1.0, seed=0):
    """The arguments of `read`, all nodes queried; `dt A` is at least `-strength`."""
    rng = np.random.default_rng(seed)
    batch, num_nodes = parents.shape
    return (
        trees.derive(parents),
        make_inputs(rng, batch, num_nodes),
        -strength * rng.uniform(0.01, 1.0, (CHANNELS, STATE)).astype(np.float32),
        normal(rng, batch, num_nodes, STATE),
        normal(rng, CHANNELS),
        normal(rng, batch, CHANNELS, STATE),
        make_inputs(rng, batch, ring) if ring else None,
    )


def make_chain(strength=1.0):
    """The arguments of `read_chain`, and the topology of the chain."""
    tree, *args, _ = make_args(TREES["chain"], strength=strength)
    return tree, args


def assert_read_is_defined(implementation, parents, args):
    """Asserts agreement with the definition on the nodes of the trees."""
    outputs = jitted(tree_scan.read, implementation)(*args)
    nodes = real(parents)
    assert_close(outputs[nodes], definition(tree_scan.read, *args)[nodes])


@pytest.mark.parametrize("ring", [None, 2])
@trees.every_tree
@implementations
def test_read_matches_the_definition(implementation, parents, ring):
    assert_read_is_defined(implementation, parents, make_args(parents, ring=ring))


def test_the_default_matches_the_definition():
    parents = TREES["one per row"]
    assert_read_is_defined(None, parents, make_args(parents))


@pytest.mark.parametrize("queries", [1, 3])
@implementations
def test_queries_of_the_last_nodes_are_the_last_of_all(implementation, queries):
    read = jitted(tree_scan.read, implementation)
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
    read = jitted(tree_scan.read, implementation)
    parents = TREES["caterpillar"]
    tree, inputs, A, C, D, state, ring = make_args(parents)
    slots = trees.path(parents[0], 6)
    chain = topology.chain(len(parents), len(slots))
    alone = Inputs(*(a[:, slots] for a in inputs))
    outputs = read(chain, alone, A, C[:, slots], D, state, ring)
    assert_close(outputs, read(tree, inputs, A, C, D, state, ring)[:, slots])


@implementations
def test_unused_ring_slots_change_nothing(implementation):
    read = jitted(tree_scan.read, implementation)
    *args, ring = make_args(TREES["one per row"])
    assert_close(read(*args, pad(ring, 2)), read(*args, ring))


@implementations
def test_a_ring_of_zeros_is_no_ring(implementation):
    read = jitted(tree_scan.read, implementation)
    *args, ring = make_args(TREES["one per row"])
    zeros = jax.tree.map(np.zeros_like, ring)
    assert_close(read(*args, zeros), read(*args, None))


@implementations
def test_a_ring_is_folded_into_the_state(implementation):
    read = jitted(tree_scan.read, implementation)
    fold = jitted(tree_scan.fold, implementation)
    *args, state, ring = make_args(TREES["one per row"])
    folded = fold(state, args[2], ring)
    assert_close(read(*args, folded, None), read(*args, state, ring))


@pytest.mark.parametrize("value", trees.FILLINGS)
@implementations
def test_padding_is_finite_and_read_by_no_node(implementation, value):
    read = jitted(tree_scan.read, implementation)
    parents = TREES["padded"]
    tree, inputs, A, C, D, state, ring = make_args(parents)
    outputs = read(tree, inputs, A, C, D, state, ring)
    others, C = overwrite((inputs, C), real(parents), value)
    again = read(tree, others, A, C, D, state, ring)
    assert np.isfinite(outputs).all()
    np.testing.assert_array_equal(again[real(parents)], outputs[real(parents)])


@pytest.mark.parametrize("strength", [1.0, 60.0])
@implementations
def test_fold_matches_the_definition(implementation, strength):
    _, (inputs, A, _, _, state) = make_chain(strength)
    folded = jitted(tree_scan.fold, implementation)(state, A, inputs)
    assert_close(folded, definition(tree_scan.fold, state, A, inputs))


@implementations
def test_fold_then_read_is_reading_the_whole_chain(implementation):
    read = jitted(tree_scan.read, implementation)
    fold = jitted(tree_scan.fold, implementation)
    tree, (inputs, A, C, D, state) = make_chain()
    one = topology.chain(len(state), 1)
    folded = fold(state, A, cut(inputs, 0, 6))
    outputs = read(one, cut(inputs, 6, 7), A, C[:, 6:], D, folded)
    assert_close(outputs, read(tree, inputs, A, C, D, state)[:, 6:])


@implementations
def test_folding_zeros_changes_no_bit(implementation):
    _, (inputs, A, _, _, state) = make_chain()
    zeros = jax.tree.map(np.zeros_like, inputs)
    folded = jitted(tree_scan.fold, implementation)(state, A, zeros)
    np.testing.assert_array_equal(folded, state)


@pytest.mark.parametrize("strength", [1.0, 60.0])
@implementations
def test_read_chain_matches_the_definition(implementation, strength):
    _, args = make_chain(strength)
    read_chain = jitted(tree_scan.read_chain, implementation)
    assert_close(read_chain(*args), definition(tree_scan.read_chain, *args))


@pytest.mark.parametrize("strength", [1.0, 60.0])
@trees.every_tree
@implementations
def test_node_states_match_the_definition(implementation, parents, strength):
    _, inputs, A, _, _, state, _ = make_args(parents, strength=strength)
    args = parents, inputs, A, state
    states = jitted(tree_scan.node_states, implementation)(*args)
    nodes = real(parents)
    assert_close(states[nodes], definition(tree_scan.node_states, *args)[nodes])


@pytest.mark.parametrize("known", [1, 4])
@pytest.mark.parametrize("name", ["binary", "one per row"])
@implementations
def test_node_states_continue_from_known_ones(implementation, name, known):
    node_states = jitted(tree_scan.node_states, implementation)
    parents = TREES[name]
    _, inputs, A, _, _, state, _ = make_args(parents)
    states = node_states(parents, inputs, A, state)
    new = cut(inputs, known, None)
    rest = node_states(parents[:, known:], new, A, state, states[:, :known])
    assert_close(rest, states[:, known:])


@trees.every_tree
@implementations
def test_reading_the_node_states_is_read(implementation, parents):
    tree, inputs, A, C, D, state, _ = make_args(parents)
    node_states = jitted(tree_scan.node_states, implementation)
    read = jitted(tree_scan.read, implementation)
    states = node_states(parents, inputs, A, state)
    outputs = np.einsum("bies,bis->bie", states, C) + D * inputs.x
    nodes = real(parents)
    assert_close(read(tree, inputs, A, C, D, state)[nodes], outputs[nodes])


@implementations
def test_half_precision_activations_are_computed_in_float32(implementation):
    tree, inputs, A, C, D, state, ring = make_args(TREES["one per row"])
    args = tree, halve(inputs), A, C.astype(jnp.bfloat16), D, state, halve(ring)
    exact = tree, *widen(args[1:])
    outputs = jitted(tree_scan.read, implementation)(*args)
    assert outputs.dtype == jnp.float32
    assert_close(outputs, definition(tree_scan.read, *exact))


def gradients(*args, implementation):
    def loss(*args):
        y, state = tree_scan.read_chain(*args, implementation=implementation)
        return jnp.sum(y**2) + jnp.sum(state**2)

    return jax.grad(loss, argnums=range(5))(*args)


@pytest.mark.parametrize("strength", [1.0, 60.0])
@implementations
def test_gradients_match_the_definition(implementation, strength):
    _, args = make_chain(strength)
    assert_close(jitted(gradients, implementation)(*args), definition(gradients, *args))


@implementations
def test_jit_equals_eager(implementation):
    args = jax.tree.map(jnp.asarray, make_args(TREES["one per row"][:, :3]))
    read = functools.partial(tree_scan.read, implementation=implementation)
    assert_close(jax.jit(read)(*args), read(*args))


@pytest.mark.parametrize(
    "in_axes", [(0, 0, 0, 0, 0, 0, 0), (None, 0, None, 0, None, 0, None)]
)
@implementations
def test_vmap_is_a_loop(implementation, in_axes):
    calls = [make_args(TREES["binary"]), make_args(TREES["one per row"], seed=1)]
    trees.assert_vmap_is_a_loop(tree_scan.read, calls, in_axes, implementation)


@implementations
def test_shards_over_rows_and_channels(implementation):
    parents = np.concatenate([TREES["one per row"], TREES["star"][:1]])
    rows, channels = P("data"), P("data", None, "model")
    inputs = Inputs(x=channels, dt=channels, B=rows)
    channel, state = P("model"), P("data", "model")
    trees.assert_shards_are_parts(
        tree_scan.read,
        make_args(parents),
        in_specs=(rows, inputs, channel, rows, channel, state, inputs),
        out_specs=channels,
        implementation=implementation,
    )


def test_unknown_implementations_are_refused():
    tree, (inputs, A, C, D, state) = make_chain()
    known = re.escape(str(sorted(tree_scan.implementations())))
    with pytest.raises(ValueError, match=known):
        tree_scan.read(tree, inputs, A, C, D, state, implementation="fast")
    with pytest.raises(ValueError, match=known):
        tree_scan.node_states(tree.parents, inputs, A, state, implementation="fast")
    with pytest.raises(ValueError, match=known):
        tree_scan.fold(state, A, inputs, implementation="fast")
    with pytest.raises(ValueError, match=known):
        tree_scan.read_chain(inputs, A, C, D, state, implementation="fast")


@implementations
def test_wrong_shapes_are_refused(implementation):
    tree, (inputs, A, C, D, state) = make_chain()
    read = functools.partial(tree_scan.read, implementation=implementation)
    with pytest.raises(ValueError, match="x has shape"):  # a node too few
        read(tree, cut(inputs, 0, 6), A, C, D, state)
    with pytest.raises(ValueError, match="A has shape"):  # a channel too few
        read(tree, inputs, A[1:], C, D, state)
    with pytest.raises(ValueError, match="dt has shape"):  # a step size per row
        read(tree, inputs._replace(dt=inputs.dt[:, :, :1]), A, C, D, state)
    with pytest.raises(ValueError, match="B has shape"):  # a key too few
        tree_scan.fold(state, A, inputs._replace(B=inputs.B[:, 1:]))
    with pytest.raises(ValueError, match="D has shape"):
        tree_scan.read_chain(inputs, A, C, D[:1], state)
