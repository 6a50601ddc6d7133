"""What the ops know of a tree is what walking it by hand finds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import kernel_trees
from pallas_kernels import topology

BATCH = 3


def random_parents(num_nodes, seed=0):
    """Any earlier node, or -1 (padding), is as likely a parent as another."""
    rng = np.random.default_rng(seed)
    parents = [rng.integers(-1, i, BATCH) for i in range(num_nodes)]
    return np.stack(parents, axis=1).astype(np.int32)


def walked_ancestors(parents):
    ancestors = np.zeros((*parents.shape, parents.shape[1]), bool)
    for row, node in np.ndindex(parents.shape):
        ancestors[row, node, kernel_trees.path(parents[row], node)] = True
    return ancestors


def walked_depth(parents):
    paths = [[kernel_trees.path(row, i) for i in range(len(row))] for row in parents]
    return np.array([[len(path) - 1 for path in row] for row in paths])


def walked_preorder(parents):
    """The nodes depth first, by recursion."""

    def subtree(row, node):
        below = (i for i in range(len(row)) if row[i] == node)
        return [node, *(n for child in below for n in subtree(row, child))]

    return np.array([subtree(row, -1)[1:] for row in parents], np.int32)


def walked_windows(parents, width):
    windows = np.zeros((*parents.shape, width), int)
    for row, node in np.ndindex(parents.shape):
        tail = list(range(width - 1))
        nodes = [slot + width - 1 for slot in kernel_trees.path(parents[row], node)]
        windows[row, node] = (tail + nodes)[-width:]
    return windows


def assert_same(actual, expected):
    np.testing.assert_array_equal(actual, expected)
    assert actual.dtype == expected.dtype


@kernel_trees.every_tree
def test_derive_finds_what_a_walk_finds(parents):
    tree = kernel_trees.derive(parents)
    np.testing.assert_array_equal(tree.parents, parents)
    np.testing.assert_array_equal(tree.ancestors, walked_ancestors(parents))
    np.testing.assert_array_equal(tree.depth, walked_depth(parents))
    np.testing.assert_array_equal(tree.preorder, walked_preorder(parents))


@pytest.mark.parametrize("num_nodes", [1, 2, 9, 33])
def test_derive_finds_what_a_walk_finds_on_random_trees(num_nodes):
    parents = random_parents(num_nodes)
    tree = kernel_trees.derive(parents)
    np.testing.assert_array_equal(tree.ancestors, walked_ancestors(parents))
    np.testing.assert_array_equal(tree.depth, walked_depth(parents))
    np.testing.assert_array_equal(tree.preorder, walked_preorder(parents))


@pytest.mark.parametrize("num_nodes", [1, 2, 17])
def test_chain_is_what_derive_finds_on_a_chain(num_nodes):
    parents = jnp.arange(num_nodes, dtype=jnp.int32)[None].repeat(BATCH, axis=0) - 1
    jax.tree.map(
        assert_same, topology.chain(BATCH, num_nodes), kernel_trees.derive(parents)
    )


def test_the_dtypes_are_those_promised():
    tree = kernel_trees.derive(kernel_trees.TREES["binary"])
    windows = kernel_trees.windows(kernel_trees.TREES["binary"], 4)
    dtypes = [array.dtype for array in (*tree, windows)]
    assert dtypes == [jnp.int32, jnp.bool_, jnp.int32, jnp.int32, jnp.int32]


@pytest.mark.parametrize("width", [1, 2, 4])
@kernel_trees.every_tree
def test_windows_are_the_ends_of_paths(parents, width):
    windows = kernel_trees.windows(parents, width)
    np.testing.assert_array_equal(windows, walked_windows(parents, width))


@pytest.mark.parametrize("width", [2, 4])
def test_windows_are_the_ends_of_paths_on_random_trees(width):
    parents = random_parents(17)
    windows = kernel_trees.windows(parents, width)
    np.testing.assert_array_equal(windows, walked_windows(parents, width))


def both(parents):
    return topology.derive(parents), topology.windows(parents, 4)


def test_jit_equals_eager():
    parents = kernel_trees.TREES["one per row"]
    jax.tree.map(assert_same, jax.jit(both)(parents), both(parents))


def test_vmap_is_a_loop():
    parents = np.stack([random_parents(7, seed) for seed in range(2)])
    looped = jax.tree.map(lambda *a: np.stack(a), *map(jax.jit(both), parents))
    jax.tree.map(assert_same, jax.jit(jax.vmap(both))(parents), looped)


def test_rows_may_lie_on_different_devices():
    parents = np.concatenate([random_parents(7), kernel_trees.rows(kernel_trees.STAR)])
    mesh = jax.make_mesh(
        (4,),
        ("data",),
        (jax.sharding.AxisType.Auto,),
        devices=jax.devices("cpu")[:4],
    )
    rows = P("data")
    sharded = jax.shard_map(both, mesh=mesh, in_specs=rows, out_specs=rows)
    jax.tree.map(assert_same, jax.jit(sharded)(parents), jax.jit(both)(parents))
