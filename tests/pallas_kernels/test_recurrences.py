"""One suite for every implementation of `tree_ssd` and `tree_scan`."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import kernel_trees
from kernel_records import (
    CHANNELS,
    RECURRENCES,
    RING,
    cut,
    in_half,
    in_layer_one,
    overwrite,
    widen,
)
from kernel_trees import (
    TREES,
    assert_close,
    definition,
    jitted,
    real,
    runnable,
)
from pallas_kernels import Ring, topology

CASES = [
    pytest.param(case, name, id=f"{title}-{name}")
    for title, case in RECURRENCES.items()
    for name in runnable(case.op)
]
every = pytest.mark.parametrize("case, name", CASES)
on_meshes = pytest.mark.parametrize(
    "case, name",
    [
        case
        for case in CASES
        if case.values[1] in kernel_trees.shardable(case.values[0].op)
    ],
)
plain = pytest.mark.parametrize(
    "case, name", [case for case in CASES if "pallas" not in case.values[1]]
)
FOLD = np.array([True, False, True, False])


def read(case, name, *args):
    return jitted(case.op.read, name)(*args)


def verify(case, name, *args):
    return jitted(case.op.verify, name)(*args, FOLD[: len(args[-1].length)])


def assert_read_is_defined(case, name, parents, args):
    """Asserts agreement with the definition on the nodes of the kernel_trees."""
    nodes = real(parents)
    expected = definition(case.op.read, *args)
    assert_close(read(case, name, *args)[nodes], expected[nodes])


@pytest.mark.parametrize("ring", [False, True])
@kernel_trees.every_tree
@every
def test_read_matches_the_definition(case, name, parents, ring):
    args = case.make_args(parents, ring)
    assert_read_is_defined(case, name, parents, args)


@pytest.mark.parametrize("case", RECURRENCES.values(), ids=RECURRENCES)
def test_the_default_matches_the_definition(case):
    parents = TREES["one per row"]
    assert_read_is_defined(case, None, parents, case.make_args(parents))


@pytest.mark.parametrize("queries", [1, 3])
@every
def test_queries_of_the_last_nodes_are_the_last_of_all(case, name, queries):
    args = case.make_args(TREES["binary"])
    last = (*args[:3], args[3][:, -queries:], *args[4:])
    assert_close(read(case, name, *last), read(case, name, *args)[:, -queries:])


@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("tree", ["chain", "one per row", "padded"])
@every
def test_strong_decays_do_not_overflow(case, name, tree, ring):
    args = case.make_args(TREES[tree], ring, strength=60.0)
    assert_read_is_defined(case, name, TREES[tree], args)


@every
def test_a_node_reads_its_own_path(case, name):
    parents = TREES["caterpillar"]
    tree, inputs, A, C, D, state, ring = case.make_args(parents)
    slots = kernel_trees.path(parents[0], 6)
    chain = topology.chain(len(parents), len(slots))
    alone = jax.tree.map(lambda a: a[:, slots], inputs)
    outputs = read(case, name, chain, alone, A, C[:, slots], D, state, ring)
    whole = read(case, name, tree, inputs, A, C, D, state, ring)
    assert_close(outputs, whole[:, slots])


@pytest.mark.parametrize("value", kernel_trees.FILLINGS)
@every
def test_unused_ring_slots_change_no_bit(case, name, value):
    *args, ring = case.make_args(TREES["one per row"])
    used = np.arange(RING) < ring.length[:, None]
    others = ring._replace(inputs=overwrite(ring.inputs, used, value))
    y, state = verify(case, name, *args, ring)
    again, folded = verify(case, name, *args, others)
    np.testing.assert_array_equal(again, y)
    np.testing.assert_array_equal(folded, state)


@every
def test_an_empty_ring_is_no_ring(case, name):
    *args, ring = case.make_args(TREES["one per row"])
    empty = ring._replace(length=np.zeros_like(ring.length))
    assert_close(read(case, name, *args, empty), read(case, name, *args, None))


@every
def test_a_ring_is_folded_into_the_state(case, name):
    *args, state, ring = case.make_args(TREES["one per row"])
    used = ring._replace(length=np.full_like(ring.length, RING))
    folded = jitted(case.op.fold, name)(state, args[2], used.inputs)
    assert_close(
        read(case, name, *args, folded, None), read(case, name, *args, state, used)
    )


@pytest.mark.parametrize("value", kernel_trees.FILLINGS)
@every
def test_padding_is_finite_and_read_by_no_node(case, name, value):
    parents = TREES["padded"]
    tree, inputs, A, C, D, state, ring = case.make_args(parents)
    outputs = read(case, name, tree, inputs, A, C, D, state, ring)
    others, C = overwrite((inputs, C), real(parents), value)
    again = read(case, name, tree, others, A, C, D, state, ring)
    assert np.isfinite(outputs).all()
    np.testing.assert_array_equal(again[real(parents)], outputs[real(parents)])


@kernel_trees.every_tree
@every
def test_verify_reads_and_folds_the_chosen_rows(case, name, parents):
    args = case.make_args(parents)
    y, state = verify(case, name, *args)
    nodes, fold = real(parents), FOLD[: len(parents)]
    assert_close(y[nodes], definition(case.op.read, *args)[nodes])
    before, ring = args[5:]
    folded = definition(case.op.fold, before, args[2], Ring(*ring).live())
    assert_close(state[fold], folded[fold])
    np.testing.assert_array_equal(state[~fold], before[~fold])


@every
def test_one_layer_of_several_is_meant(case, name):
    *args, state, ring = case.make_args(TREES["one per row"])
    y, folded = verify(case, name, *args, state, ring)
    (states,), (records,) = in_layer_one(state), in_layer_one(ring.inputs)
    stacked = *args, states, ring._replace(inputs=records)
    fold = FOLD[: len(state)]

    @jax.jit
    def both(*args):
        again = case.op.read(*args, layer=jnp.int32(1), implementation=name)
        args = *args, fold
        return again, case.op.verify(*args, layer=jnp.int32(1), implementation=name)

    again, (others, layers) = both(*stacked)
    assert_close((again, others), (y, y))
    assert_close(layers[1], folded)
    np.testing.assert_array_equal(layers[::2], states[::2])


@pytest.mark.parametrize("strength", [1.0, 60.0])
@every
def test_fold_matches_the_definition(case, name, strength):
    _, inputs, A, _, _, state, _ = case.make_args(TREES["chain"], strength=strength)
    folded = jitted(case.op.fold, name)(state, A, inputs)
    assert_close(folded, definition(case.op.fold, state, A, inputs))


@every
def test_fold_then_read_is_reading_the_whole_chain(case, name):
    tree, inputs, A, C, D, state, _ = case.make_args(TREES["chain"])
    one = topology.chain(len(state), 1)
    folded = jitted(case.op.fold, name)(state, A, cut(inputs, 0, 6))
    rest = cut(inputs, 6, 7)
    outputs = read(case, name, one, rest, A, C[:, 6:], D, folded, None)
    whole = read(case, name, tree, inputs, A, C, D, state, None)
    assert_close(outputs, whole[:, 6:])


@every
def test_folding_nothing_changes_no_bit(case, name):
    _, inputs, A, _, _, state, _ = case.make_args(TREES["chain"])
    nothing = inputs._replace(dt=np.zeros_like(inputs.dt))
    folded = jitted(case.op.fold, name)(state, A, nothing)
    np.testing.assert_array_equal(folded, state)


@pytest.mark.parametrize("strength", [1.0, 60.0])
@kernel_trees.every_tree
@plain
def test_node_states_match_the_definition(case, name, parents, strength):
    _, inputs, A, _, _, state, _ = case.make_args(parents, strength=strength)
    args = parents, inputs, A, state
    states = jitted(case.op.node_states, name)(*args)
    nodes = real(parents)
    assert_close(states[nodes], definition(case.op.node_states, *args)[nodes])


@pytest.mark.parametrize("known", [1, 4])
@pytest.mark.parametrize("tree", ["binary", "one per row"])
@plain
def test_node_states_continue_from_known_ones(case, name, tree, known):
    parents, node_states = TREES[tree], jitted(case.op.node_states, name)
    _, inputs, A, _, _, state, _ = case.make_args(parents)
    states = node_states(parents, inputs, A, state)
    new = cut(inputs, known, None)
    rest = node_states(parents[:, known:], new, A, state, states[:, :known])
    assert_close(rest, states[:, known:])


@every
def test_half_precision_activations(case, name):
    """XLA computes in float32; a kernel may round what a softmax's weights round."""
    args = in_half(case.make_args(TREES["one per row"]))
    y, state = verify(case, name, *args)
    assert y.dtype == state.dtype == jnp.float32
    expected = definition(case.op.read, *widen(args))
    tolerance = 5e-3 if "pallas" in name else kernel_trees.TOLERANCE
    assert np.abs(y - expected).max() < tolerance * np.abs(expected).max()
    before, ring = widen(args)[5:]
    folded = definition(case.op.fold, before, args[2], Ring(*ring).live())
    error = np.abs(state - folded)[FOLD[: len(state)]].max()
    assert error < tolerance * np.abs(folded).max()


@every
def test_jit_equals_eager(case, name):
    args = jax.tree.map(jnp.asarray, case.make_args(TREES["one per row"][:, :3]))
    op = functools.partial(case.op.read, implementation=name)
    assert_close(jax.jit(op)(*args), op(*args))


@pytest.mark.parametrize("in_axes", ["all", "some"])
@every
def test_vmap_is_a_loop(case, name, in_axes):
    first, second = TREES["binary"], TREES["one per row"]
    calls = [case.make_args(first), case.make_args(second, seed=1)]
    axes = (0,) * 7 if in_axes == "all" else (None, 0, None, 0, None, 0, None)
    kernel_trees.assert_vmap_is_a_loop(case.op.read, calls, axes, name)
    calls = [(*call, FOLD[: len(first)]) for call in calls]
    kernel_trees.assert_vmap_is_a_loop(case.op.verify, calls, (*axes, 0), name)


@pytest.mark.parametrize("in_axes", [(0, 0, 0), (0, None, 0)])
@every
def test_vmap_of_fold_is_a_loop(case, name, in_axes):
    calls = []
    for seed in range(2):
        _, inputs, A, _, _, state, _ = case.make_args(TREES["chain"], seed=seed)
        calls.append((state, A, inputs))
    kernel_trees.assert_vmap_is_a_loop(case.op.fold, calls, in_axes, name)


@on_meshes
def test_shards_over_rows_and_heads(case, name):
    parents = np.concatenate([TREES["one per row"], TREES["star"][:1]])
    specs, args = case.specs(), case.make_args(parents)
    heads, rows, state = P("data", None, "model"), specs[0], specs[5]
    kernel_trees.assert_shards_are_parts(case.op.read, args, specs, heads, name)
    kernel_trees.assert_shards_are_parts(
        case.op.verify, (*args, FOLD), (*specs, rows), (heads, state), name
    )


@on_meshes
def test_a_mesh_is_cut_over_by_itself(case, name):
    parents = np.concatenate([TREES["one per row"], TREES["star"][:1]])
    args = (*case.make_args(parents), FOLD)
    kernel_trees.assert_a_mesh_changes_nothing(case.op.verify, args, name)


@pytest.mark.parametrize("case", RECURRENCES.values(), ids=RECURRENCES)
def test_a_mesh_cuts_a_tree_that_no_ring_precedes(case):
    parents = np.concatenate([TREES["one per row"], TREES["star"][:1]])
    args = case.make_args(parents, ring=False)
    kernel_trees.assert_a_mesh_changes_nothing(case.op.read, args, "xla")


@pytest.mark.parametrize("case", RECURRENCES.values(), ids=RECURRENCES)
def test_unknown_implementations_are_refused(case):
    tree, inputs, A, C, D, state, ring = case.make_args(TREES["star"])
    op, known = case.op, re.escape(str(sorted(case.op.implementations())))
    with pytest.raises(ValueError, match=known):
        op.read(tree, inputs, A, C, D, state, implementation="fast")
    with pytest.raises(ValueError, match=known):
        op.fold(state, A, inputs, implementation="fast")
    with pytest.raises(ValueError, match="expected one of .*reference.*xla"):
        op.node_states(tree.parents, inputs, A, state, implementation="fast")


@pytest.mark.parametrize("case", RECURRENCES.values(), ids=RECURRENCES)
def test_wrong_shapes_are_refused(case):
    tree, inputs, A, C, D, state, ring = case.make_args(TREES["star"])
    op = case.op
    with pytest.raises(ValueError, match="x has shape"):  # one node too few
        op.read(tree, cut(inputs, 0, 6), A, C, D, state)
    with pytest.raises(ValueError, match="A has shape"):  # one head or state too few
        op.read(tree, inputs, A[1:], C, D, state)
    with pytest.raises(ValueError, match="dt has shape"):  # a step size per row
        op.read(tree, inputs._replace(dt=inputs.dt[:, :, :1]), A, C, D, state)
    with pytest.raises(ValueError, match="C has shape"):
        op.read(tree, inputs, A, C[..., 1:], D, state)
    with pytest.raises(ValueError, match="D .*31"):
        op.read(tree, inputs, A, C, D[: CHANNELS - 1], state)
    with pytest.raises(ValueError, match="ring_length has shape"):
        short = ring._replace(length=ring.length[:1])
        op.read(tree, inputs, A, C, D, state, short)
    with pytest.raises(ValueError, match="fold has shape"):
        op.verify(tree, inputs, A, C, D, state, ring, FOLD[:1])
    with pytest.raises(ValueError, match="C has shape"):  # verify queries all nodes
        op.verify(tree, inputs, A, C[:, 1:], D, state, ring, FOLD[:3])
    with pytest.raises(ValueError, match="dt has shape"):
        op.fold(state, A, inputs._replace(dt=inputs.dt[:, :, :1]))
