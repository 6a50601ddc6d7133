"""One suite for every implementation of `tree_conv`."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import kernel_trees
from kernel_args import convolve_args
from kernel_records import overwrite
from kernel_trees import TREES, assert_close, definition, jitted, real
from pallas_kernels import tree_conv

on_meshes = pytest.mark.parametrize("implementation", kernel_trees.shardable(tree_conv))
implementations = pytest.mark.parametrize(
    "implementation", kernel_trees.runnable(tree_conv)
)
every_width = pytest.mark.parametrize("width", [2, 4])


def convolve_by_hand(parents, inputs, tail, weight, bias):
    """One filter at the end of every node's path, the tail before it."""
    outputs = np.zeros_like(inputs)
    for row, node in np.ndindex(parents.shape):
        slots = kernel_trees.path(parents[row], node)
        tokens = np.concatenate([tail[row], inputs[row, slots]])
        outputs[row, node] = np.sum(weight * tokens[-len(weight) :], axis=0) + bias
    return outputs


def assert_convolve_is_defined(implementation, parents, width):
    """Asserts agreement with the definition on the nodes of the kernel_trees."""
    args = convolve_args(parents, width)
    outputs = jitted(tree_conv.convolve, implementation)(*args)
    nodes = real(parents)
    assert_close(outputs[nodes], definition(tree_conv.convolve, *args)[nodes])


@every_width
@kernel_trees.every_tree
@implementations
def test_convolve_matches_the_definition(implementation, parents, width):
    assert_convolve_is_defined(implementation, parents, width)


def test_the_default_matches_the_definition():
    assert_convolve_is_defined(None, TREES["one per row"], width=4)


@every_width
@kernel_trees.every_tree
@implementations
def test_a_node_sees_the_end_of_its_own_path(implementation, parents, width):
    args = convolve_args(parents, width)
    outputs = jitted(tree_conv.convolve, implementation)(*args)
    nodes = real(parents)
    assert_close(outputs[nodes], convolve_by_hand(parents, *args[1:])[nodes])


@pytest.mark.parametrize("queries", [1, 3])
@implementations
def test_queries_of_the_last_nodes_are_the_last_of_all(implementation, queries):
    convolve = jitted(tree_conv.convolve, implementation)
    window, *args = convolve_args(TREES["binary"])
    last = convolve(window[:, -queries:], *args)
    assert_close(last, convolve(window, *args)[:, -queries:])


@pytest.mark.parametrize("value", kernel_trees.FILLINGS)
@implementations
def test_padding_is_finite_and_seen_by_no_node(implementation, value):
    convolve = jitted(tree_conv.convolve, implementation)
    parents = TREES["padded"]
    window, inputs, *args = convolve_args(parents)
    outputs = convolve(window, inputs, *args)
    others = overwrite(inputs, real(parents), value)
    again = convolve(window, others, *args)
    assert np.isfinite(outputs).all()
    np.testing.assert_array_equal(again[real(parents)], outputs[real(parents)])


@implementations
def test_outputs_have_the_dtype_of_the_inputs(implementation):
    convolve = jitted(tree_conv.convolve, implementation)
    window, *args = convolve_args(TREES["one per row"])
    half = [a.astype(jnp.bfloat16) for a in args]
    outputs = convolve(window, *half)
    assert outputs.dtype == jnp.bfloat16
    expected = convolve(window, *args)
    np.testing.assert_allclose(outputs.astype(np.float32), expected, atol=0.1)


@implementations
def test_jit_equals_eager(implementation):
    args = jax.tree.map(jnp.asarray, convolve_args(TREES["one per row"][:, :3]))
    convolve = functools.partial(tree_conv.convolve, implementation=implementation)
    assert_close(jax.jit(convolve)(*args), convolve(*args))


@pytest.mark.parametrize("in_axes", [(0, 0, 0, 0, 0), (None, 0, 0, None, None)])
@implementations
def test_vmap_is_a_loop(implementation, in_axes):
    calls = [
        convolve_args(TREES["binary"]),
        convolve_args(TREES["one per row"], seed=1),
    ]
    kernel_trees.assert_vmap_is_a_loop(
        tree_conv.convolve, calls, in_axes, implementation
    )


@on_meshes
def test_shards_over_rows_and_channels(implementation):
    parents = np.concatenate([TREES["one per row"], TREES["star"][:1]])
    channels = P("data", None, "model")
    kernel_trees.assert_shards_are_parts(
        tree_conv.convolve,
        convolve_args(parents),
        in_specs=(P("data"), channels, channels, P(None, "model"), P("model")),
        out_specs=channels,
        implementation=implementation,
    )


@on_meshes
def test_a_mesh_is_cut_over_by_itself(implementation):
    parents = np.concatenate([TREES["one per row"], TREES["star"][:1]])
    args = convolve_args(parents)
    kernel_trees.assert_a_mesh_changes_nothing(tree_conv.convolve, args, implementation)


def test_unknown_implementations_are_refused():
    args = convolve_args(TREES["star"])
    known = re.escape(str(sorted(tree_conv.implementations())))
    with pytest.raises(ValueError, match=known):
        tree_conv.convolve(*args, implementation="fast")


@implementations
def test_wrong_shapes_are_refused(implementation):
    convolve = functools.partial(tree_conv.convolve, implementation=implementation)
    window, inputs, tail, weight, bias = convolve_args(TREES["star"])
    with pytest.raises(ValueError, match="window has shape"):
        convolve(window[:, :, 1:], inputs, tail, weight, bias)
    with pytest.raises(ValueError, match="tail has shape"):
        convolve(window, inputs, tail[:, 1:], weight, bias)
    with pytest.raises(ValueError, match="window has shape"):
        convolve(window, inputs, tail, weight[1:], bias)
    with pytest.raises(ValueError, match="bias has shape"):
        convolve(window, inputs, tail, weight, bias[:1])
