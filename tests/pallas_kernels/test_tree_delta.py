"""One suite for every implementation of `tree_delta` but its definition."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import kernel_trees
from kernel_args import delta_args
from kernel_records import (
    HEADS,
    RING,
    STATE,
    cut,
    in_layer_one,
    normal,
    overwrite,
    unit,
    widen,
)
from kernel_trees import TREES, assert_close, definition, jitted, real
from pallas_kernels import DeltaInputs, Ring, topology, tree_delta

NAMES = [name for name in kernel_trees.runnable(tree_delta) if name != "reference"]
every = pytest.mark.parametrize("name", NAMES)
plain = pytest.mark.parametrize("name", [n for n in NAMES if "pallas" not in n])
kernels = pytest.mark.parametrize("name", [n for n in NAMES if "pallas" in n])
on_meshes = pytest.mark.parametrize(
    "name", [name for name in kernel_trees.shardable(tree_delta) if name in NAMES]
)
FOLD = np.array([True, False, True, False])
LARGE = kernel_trees.rows([-1, *range(19), *(i // 2 for i in range(19, 39))])


def in_half(args):
    """Keys and queries in bfloat16; all else stays float32."""
    tree, inputs, beta, q, state, ring = args

    def halve(inputs):
        return inputs._replace(k=inputs.k.astype(jnp.bfloat16))

    ring = ring._replace(inputs=halve(ring.inputs))
    return tree, halve(inputs), beta, q.astype(jnp.bfloat16), state, ring


def read(name, *args):
    return jitted(tree_delta.read, name)(*args)


def verify(name, *args):
    return jitted(tree_delta.verify, name)(*args, FOLD[: len(args[-1].length)])


def assert_read_is_defined(name, parents, args):
    """Asserts agreement with the definition on the nodes of the kernel_trees."""
    nodes = real(parents)
    for found, expected in zip(
        read(name, *args), definition(tree_delta.read, *args), strict=True
    ):
        assert_close(found[nodes], expected[nodes])


@pytest.mark.parametrize("ring", [False, True])
@kernel_trees.every_tree
@every
def test_read_matches_the_definition(name, parents, ring):
    assert_read_is_defined(name, parents, delta_args(parents, ring))


@every
def test_all_heads_may_share_their_keys(name):
    parents = TREES["one per row"]
    assert_read_is_defined(name, parents, delta_args(parents, groups=1))


def test_the_default_matches_the_definition():
    parents = TREES["one per row"]
    assert_read_is_defined(None, parents, delta_args(parents))


@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("tree", ["chain", "one per row", "padded"])
@every
def test_strong_decays_do_not_overflow(name, tree, ring):
    args = delta_args(TREES[tree], ring, strength=60.0)
    assert_read_is_defined(name, TREES[tree], args)


@pytest.mark.parametrize("known", [1, 3, 6])
@pytest.mark.parametrize("tree", ["binary", "one per row"])
@every
def test_solved_nodes_are_not_solved_again(name, tree, known):
    """The last nodes find what all at once find, from the records of those before."""
    topo, inputs, beta, q, state, ring = delta_args(TREES[tree])
    u, y = read(name, topo, inputs, beta, q, state, ring)
    solved = np.concatenate([u[:, :known], inputs.u[:, known:]], axis=1)
    rest = inputs._replace(u=solved), beta[:, known:], q[:, known:], state, ring
    assert_close(read(name, topo, *rest), (u[:, known:], y[:, known:]))


@kernels
def test_a_kernel_continues_a_tree_of_several_blocks(name):
    """Some of the nodes that a kernel solves together are known, and some are not."""
    topo, inputs, beta, q, state, ring = delta_args(LARGE)
    args = topo, inputs, beta[:, 17:], q[:, 17:], state, ring
    assert_close(read(name, *args), read("xla", *args))


@every
def test_a_node_reads_its_own_path(name):
    parents = TREES["caterpillar"]
    tree, inputs, beta, q, state, ring = delta_args(parents)
    slots = kernel_trees.path(parents[0], 6)
    chain = topology.chain(len(parents), len(slots))
    alone, beta_, q_ = jax.tree.map(lambda a: a[:, slots], (inputs, beta, q))
    outputs = read(name, chain, alone, beta_, q_, state, ring)
    whole = read(name, tree, inputs, beta, q, state, ring)
    assert_close(outputs, jax.tree.map(lambda a: a[:, slots], whole))


@pytest.mark.parametrize("value", kernel_trees.FILLINGS)
@every
def test_unused_ring_slots_change_no_bit(name, value):
    *args, ring = delta_args(TREES["one per row"])
    used = np.arange(RING) < ring.length[:, None]
    others = ring._replace(inputs=overwrite(ring.inputs, used, value))
    found, again = verify(name, *args, ring), verify(name, *args, others)
    jax.tree.map(np.testing.assert_array_equal, again, found)


@every
def test_an_empty_ring_is_no_ring(name):
    *args, ring = delta_args(TREES["one per row"])
    empty = ring._replace(length=np.zeros_like(ring.length))
    assert_close(read(name, *args, empty), read(name, *args, None))


@every
def test_a_ring_is_folded_into_the_state(name):
    *args, state, ring = delta_args(TREES["one per row"])
    used = ring._replace(length=np.full_like(ring.length, RING))
    folded = jitted(tree_delta.fold, name)(state, used.inputs)
    assert_close(read(name, *args, folded, None), read(name, *args, state, used))


@pytest.mark.parametrize("value", kernel_trees.FILLINGS)
@every
def test_padding_is_finite_and_read_by_no_node(name, value):
    """Values, keys and queries may be anything; log decays are not positive."""
    parents = TREES["padded"]
    nodes = real(parents)
    tree, inputs, beta, q, state, ring = delta_args(parents)
    outputs = read(name, tree, inputs, beta, q, state, ring)
    others, other_q = overwrite((inputs, q), nodes, value)
    others = others._replace(g=overwrite(inputs.g, nodes, -value))
    again = read(name, tree, others, overwrite(beta, nodes, 2), other_q, state, ring)
    for found, expected in zip(again, outputs, strict=True):
        assert np.isfinite(expected).all()
        np.testing.assert_array_equal(found[nodes], expected[nodes])


@kernel_trees.every_tree
@every
def test_verify_reads_and_folds_the_chosen_rows(name, parents):
    args = delta_args(parents)
    found, state = verify(name, *args)
    nodes, fold = real(parents), FOLD[: len(parents)]
    for a, b in zip(found, definition(tree_delta.read, *args), strict=True):
        assert_close(a[nodes], b[nodes])
    before, ring = args[4:]
    folded = definition(tree_delta.fold, before, Ring(*ring).live())
    assert_close(state[fold], folded[fold])
    np.testing.assert_array_equal(state[~fold], before[~fold])


@every
def test_one_layer_of_several_is_meant(name):
    *args, state, ring = delta_args(TREES["one per row"])
    found, folded = verify(name, *args, state, ring)
    (states,), (records,) = in_layer_one(state), in_layer_one(ring.inputs)
    stacked = *args, states, ring._replace(inputs=records)
    fold = FOLD[: len(state)]

    @jax.jit
    def both(*args):
        again = tree_delta.read(*args, layer=jnp.int32(1), implementation=name)
        args = *args, fold
        return again, tree_delta.verify(*args, layer=jnp.int32(1), implementation=name)

    again, (others, layers) = both(*stacked)
    assert_close((again, others), (found, found))
    assert_close(layers[1], folded)
    np.testing.assert_array_equal(layers[::2], states[::2])


@pytest.mark.parametrize("strength", [1.0, 60.0])
@every
def test_fold_matches_the_definition(name, strength):
    _, inputs, _, _, state, _ = delta_args(TREES["chain"], strength=strength)
    folded = jitted(tree_delta.fold, name)(state, inputs)
    assert_close(folded, definition(tree_delta.fold, state, inputs))


@every
def test_folding_what_was_solved_is_the_recurrence(name):
    """The records that `read` completes lead to the state after the last node."""
    tree, inputs, beta, q, state, _ = delta_args(TREES["chain"])
    u, _ = read(name, tree, inputs, beta, q, state, None)
    folded = jitted(tree_delta.fold, name)(state, inputs._replace(u=u))
    states = definition(tree_delta.node_states, tree.parents, inputs, beta, state)
    assert_close(folded, states[:, -1])


@every
def test_folding_nothing_changes_no_bit(name):
    _, inputs, _, _, state, _ = delta_args(TREES["chain"])
    nothing = inputs._replace(u=np.zeros_like(inputs.u), g=np.zeros_like(inputs.g))
    folded = jitted(tree_delta.fold, name)(state, nothing)
    np.testing.assert_array_equal(folded, state)


@pytest.mark.parametrize("strength", [1.0, 60.0])
@pytest.mark.parametrize("tree", ["binary", "one per row", "padded"])
@plain
def test_node_states_match_the_definition(name, tree, strength):
    parents = TREES[tree]
    _, inputs, beta, _, state, _ = delta_args(parents, strength=strength)
    args = parents, inputs, beta, state
    states = jitted(tree_delta.node_states, name)(*args)
    nodes = real(parents)
    assert_close(states[nodes], definition(tree_delta.node_states, *args)[nodes])


@pytest.mark.parametrize("known", [1, 4])
@plain
def test_node_states_continue_from_known_ones(name, known):
    parents, node_states = TREES["one per row"], jitted(tree_delta.node_states, name)
    _, inputs, beta, _, state, _ = delta_args(parents)
    states = node_states(parents, inputs, beta, state)
    new = cut(inputs, known, None), beta[:, known:]
    rest = node_states(parents[:, known:], *new, state, states[:, :known])
    assert_close(rest, states[:, known:])


@every
def test_half_precision_keys(name):
    """XLA computes in float32; a kernel may round what a softmax's weights round."""
    args = in_half(delta_args(TREES["one per row"]))
    found, state = verify(name, *args)
    assert {a.dtype for a in (*found, state)} == {np.dtype(np.float32)}
    tolerance = 5e-3 if "pallas" in name else kernel_trees.TOLERANCE
    expected = definition(tree_delta.read, *widen(args))
    before, ring = widen(args)[4:]
    folded = definition(tree_delta.fold, before, Ring(*ring).live())
    fold = FOLD[: len(state)]
    pairs = (*found, state[fold]), (*expected, folded[fold])
    for a, b in zip(*pairs, strict=True):
        assert np.abs(a - b).max() < tolerance * np.abs(b).max()


@pytest.mark.parametrize("in_axes", ["all", "some"])
@every
def test_vmap_is_a_loop(name, in_axes):
    first, second = TREES["binary"], TREES["one per row"]
    calls = [delta_args(first), delta_args(second, seed=1)]
    axes = (0,) * 6 if in_axes == "all" else (None, 0, 0, None, None, 0)
    kernel_trees.assert_vmap_is_a_loop(tree_delta.read, calls, axes, name)
    calls = [(*call, FOLD[: len(first)]) for call in calls]
    kernel_trees.assert_vmap_is_a_loop(tree_delta.verify, calls, (*axes, 0), name)


@every
def test_vmap_of_fold_is_a_loop(name):
    calls = []
    for seed in range(2):
        _, inputs, _, _, state, _ = delta_args(TREES["chain"], seed=seed)
        calls.append((state, inputs))
    kernel_trees.assert_vmap_is_a_loop(tree_delta.fold, calls, (0, 0), name)


@on_meshes
def test_shards_over_rows_and_heads(name):
    parents = np.concatenate([TREES["one per row"], TREES["star"][:1]])
    rows, heads, state = P("data"), P("data", None, "model"), P("data", "model")
    inputs = DeltaInputs(heads, heads, heads)
    specs = rows, inputs, heads, heads, state, Ring(inputs, rows)
    args = (*delta_args(parents), FOLD)
    kernel_trees.assert_shards_are_parts(
        tree_delta.verify, args, (*specs, rows), ((heads, heads), state), name
    )


@on_meshes
def test_a_mesh_is_cut_over_by_itself(name):
    parents = np.concatenate([TREES["one per row"], TREES["star"][:1]])
    args = (*delta_args(parents), FOLD)
    kernel_trees.assert_a_mesh_changes_nothing(tree_delta.verify, args, name)


@pytest.mark.parametrize("name", [n for n in NAMES if "tpu" in n])
def test_trees_of_more_nodes_than_a_tile(name):
    """Kernels go through nodes and heads in loops; five nodes are solved already."""
    rng = np.random.default_rng(0)
    nodes, dim, queries = 72, 128, (2, 67)
    random = [-1, *(rng.integers(i) for i in range(1, nodes))]
    parents = kernel_trees.rows(random, range(-1, nodes - 1))
    inputs = DeltaInputs(
        u=normal(rng, 2, nodes, HEADS * dim),
        g=-rng.uniform(0, 1, (2, nodes, HEADS)).astype(np.float32),
        k=unit(normal(rng, 2, nodes, 2 * STATE)),
    )
    args = (
        kernel_trees.derive(parents),
        inputs,
        rng.uniform(0, 2, (*queries, HEADS)).astype(np.float32),
        unit(normal(rng, *queries, 2 * STATE)),
        normal(rng, 2, HEADS, dim, STATE),
    )
    assert_close(read(name, *args), read("xla", *args))


def gradients(tree, *args, implementation):
    def loss(inputs, beta, q, state):
        u, y = tree_delta.read(
            tree, inputs, beta, q, state, implementation=implementation
        )
        inputs = inputs._replace(u=u)
        state = tree_delta.fold(state, inputs, implementation=implementation)
        return jnp.sum(y**2) + jnp.sum(state**2)

    gradients = jax.grad(loss, argnums=range(4))(*args)
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradients)])


@pytest.mark.parametrize("strength", [1.0, 60.0])
def test_gradients_match_the_definition(strength):
    *args, _ = delta_args(TREES["chain"][:1, :4], strength=strength)
    assert_close(jitted(gradients, "xla")(*args), definition(gradients, *args))


# --- What is refused ---

REFUSED = [
    (65, 128, "65 nodes; it takes 64"),
    (8, 96, "heads 64 wide and states 96 wide; it takes multiples of 64"),
    (64, 512, "300288 bytes of shared memory"),
]


def test_unknown_implementations_are_refused():
    tree, inputs, beta, q, state, _ = delta_args(TREES["star"])
    known = re.escape(str(sorted(tree_delta.implementations())))
    with pytest.raises(ValueError, match=known):
        tree_delta.read(tree, inputs, beta, q, state, implementation="fast")
    with pytest.raises(ValueError, match=known):
        tree_delta.fold(state, inputs, implementation="fast")


@pytest.mark.parametrize("nodes, width, problem", REFUSED)
def test_a_gpu_kernel_says_what_it_does_not_take(nodes, width, problem):
    """Where it is the default for a platform, XLA runs instead."""
    shape = jax.ShapeDtypeStruct
    v, g = (shape((1, nodes, size), jnp.float32) for size in (64, 1))
    k, state = (1, nodes, width), (1, 1, 64, width)
    k, state = shape(k, jnp.bfloat16), shape(state, jnp.float32)
    tree = jax.eval_shape(topology.derive, shape((1, nodes), jnp.int32))
    args = tree, DeltaInputs(v, g, k), g, k, state
    kernel = functools.partial(tree_delta.read, implementation="pallas_gpu")
    with pytest.raises(ValueError, match=f"pallas_gpu cannot take this: {problem}"):
        jax.eval_shape(kernel, *args)
    jax.eval_shape(tree_delta.read, *args)


def test_the_tpu_kernel_says_what_it_cannot_take():
    tree, inputs, beta, q, state, _ = delta_args(TREES["star"])
    narrow = pytest.raises(ValueError, match=f"a state width of {STATE} is not")
    with narrow:
        tree_delta.read(tree, inputs, beta, q, state, implementation="pallas_tpu")
    with narrow:
        tree_delta.fold(state, inputs, implementation="pallas_tpu")


def test_wrong_shapes_are_refused():
    tree, inputs, beta, q, state, ring = delta_args(TREES["star"])
    refused = functools.partial(pytest.raises, ValueError)
    with refused(match="u has shape"):  # one node too few
        tree_delta.read(tree, cut(inputs, 0, 6), beta, q, state)
    with refused(match="g has shape"):  # one log decay per row
        one = inputs._replace(g=inputs.g[:, :, :1])
        tree_delta.read(tree, one, beta, q, state)
    with refused(match="beta has shape"):  # as many as queries
        tree_delta.read(tree, inputs, beta, q[:, 1:], state)
    with refused(match="q has shape"):
        tree_delta.read(tree, inputs, beta, q[..., 1:], state)
    with refused(match="ring_length has shape"):
        short = ring._replace(length=ring.length[:1])
        tree_delta.read(tree, inputs, beta, q, state, short)
    with refused(match="fold has shape"):
        tree_delta.verify(tree, inputs, beta, q, state, ring, FOLD[:1])
    with refused(match="q has shape"):  # verify solves all nodes
        last = beta[:, 1:], q[:, 1:]
        tree_delta.verify(tree, inputs, *last, state, ring, FOLD[:3])
    with refused(match="g has shape"):
        tree_delta.fold(state, inputs._replace(g=inputs.g[:, :, :1]))
    with refused(match="beta has shape"):
        tree_delta.node_states(tree.parents, inputs, beta[:, 1:], state)
    with refused(match="3 groups do not divide 4"):
        three = np.tile(inputs.k, (1, 1, 2))[..., : 3 * STATE]
        tree_delta.fold(state, inputs._replace(k=three))
