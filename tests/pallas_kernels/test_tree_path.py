"""One suite for every implementation of `tree_path`."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import kernel_trees
from kernel_records import normal
from kernel_trees import jitted
from pallas_kernels import tree_path

BUFFER, CHANNELS = 6, 10
PATHS = np.array([[0, 2, 3], [0, -1, -1], [-1, -1, -1], [0, 4, -1]], np.int32)
LENGTHS = np.array([3, 0, 1, 2], np.int32)

implementations = pytest.mark.parametrize("name", tree_path.implementations())
dtypes = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])


def make_args(batch=4, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    nodes = normal(rng, batch, 5, CHANNELS).astype(dtype)
    buffer = normal(rng, batch, BUFFER, CHANNELS).astype(dtype)
    return buffer, nodes, PATHS[:batch], LENGTHS[:batch]


@dtypes
@pytest.mark.parametrize("batch", [1, 4])
@implementations
def test_take_gathers_paths_bit_for_bit(name, batch, dtype):
    _, nodes, paths, _ = make_args(batch, dtype)
    found = jitted(tree_path.take, name)(nodes, paths)
    expected = np.zeros((batch, 3, CHANNELS), dtype)
    for row, d in np.argwhere(paths >= 0):
        expected[row, d] = nodes[row, paths[row, d]]
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == dtype


@dtypes
@pytest.mark.parametrize("batch", [1, 4])
@implementations
def test_append_writes_paths_behind_what_is_there(name, batch, dtype):
    buffer, nodes, paths, lengths = make_args(batch, dtype)
    found = jitted(tree_path.append, name)(buffer, nodes, paths, lengths)
    expected = buffer.copy()
    for row, start in enumerate(lengths):
        for d, node in enumerate(paths[row]):
            expected[row, start + d] = nodes[row, node] if node >= 0 else 0
    np.testing.assert_array_equal(found, expected)


@implementations
def test_what_is_huge_elsewhere_does_not_leak(name):
    buffer, nodes, paths, lengths = make_args()
    others = nodes.copy()
    others[:, 1] = kernel_trees.HUGE  # on no path
    append = jitted(tree_path.append, name)
    np.testing.assert_array_equal(
        append(buffer, others, paths, lengths), append(buffer, nodes, paths, lengths)
    )


@pytest.mark.parametrize("in_axes", [(0, 0, 0, 0), (0, 0, None, None)])
@implementations
def test_vmap_is_a_loop(name, in_axes):
    calls = [make_args(), make_args(seed=1)]
    kernel_trees.assert_vmap_is_a_loop(tree_path.append, calls, in_axes, name)


@implementations
def test_shards_over_rows_and_channels(name):
    channels, rows = P("data", None, "model"), P("data")
    specs = channels, channels, rows, rows
    kernel_trees.assert_shards_are_parts(
        tree_path.append, make_args(), specs, channels, name
    )


@implementations
def test_a_mesh_is_cut_over_by_itself(name):
    kernel_trees.assert_a_mesh_changes_nothing(tree_path.append, make_args(), name)


def test_wrong_arguments_are_refused():
    buffer, nodes, paths, lengths = make_args()
    known = re.escape(str(sorted(tree_path.implementations())))
    with pytest.raises(ValueError, match=known):
        tree_path.take(nodes, paths, implementation="fast")
    with pytest.raises(ValueError, match="path has shape"):
        tree_path.take(nodes, paths[1:])
    with pytest.raises(ValueError, match="buffer has shape"):
        tree_path.append(buffer[..., 1:], nodes, paths, lengths)
    with pytest.raises(ValueError, match="length has shape"):
        jax.eval_shape(tree_path.append, buffer, nodes, paths, lengths[1:])
