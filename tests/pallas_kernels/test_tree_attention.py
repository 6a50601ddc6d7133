"""One suite for every implementation of `tree_attention`."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import kernel_trees
from kernel_args import CAPACITY, SCALE, SETTINGS, attend_args
from kernel_records import DIM, in_layer_one, overwrite
from kernel_trees import TREES, assert_close, definition, jitted, real
from pallas_kernels import tree_attention

on_meshes = pytest.mark.parametrize(
    "implementation", kernel_trees.shardable(tree_attention)
)
implementations = pytest.mark.parametrize(
    "implementation", kernel_trees.runnable(tree_attention)
)
plain = pytest.mark.parametrize("implementation", ["reference", "xla", "cpu"])
every_window = pytest.mark.parametrize("window", [None, 1, 3])


def attend(implementation, window=None):
    return jitted(tree_attention.attend, implementation, window=window, **SETTINGS)


def attend_by_hand(parents, window, args):
    """One softmax per node and head, over its prefix and its path laid end to end."""
    _, *heads, length = args
    heads = [a.reshape(*a.shape[:2], -1, DIM) for a in heads]
    q, keys, values, cache_keys, cache_values = heads
    outputs = np.zeros_like(q)
    sharing = q.shape[2] // keys.shape[2]
    for row, node, head in np.ndindex(q.shape[:3]):
        slots, shared = kernel_trees.path(parents[row], node), head // sharing
        prefix = slice(length[row])
        k = np.concatenate([cache_keys[row, prefix, shared], keys[row, slots, shared]])
        v = np.concatenate(
            [cache_values[row, prefix, shared], values[row, slots, shared]]
        )
        seen = slice(-window if window else None, None)
        scores = SCALE * k[seen] @ q[row, node, head]
        weights = np.exp(scores - scores.max())
        outputs[row, node, head] = weights @ v[seen] / weights.sum()
    return outputs.reshape(*outputs.shape[:2], -1)


def assert_attend_is_defined(implementation, parents, window, *heads):
    """Asserts agreement with the definition on the nodes of the kernel_trees."""
    args = attend_args(parents, *heads)
    outputs = attend(implementation, window)(*args)
    expected = definition(tree_attention.attend, *args, window=window, **SETTINGS)
    nodes = real(parents)
    assert_close(outputs[nodes], expected[nodes])


@every_window
@kernel_trees.every_tree
@implementations
def test_attend_matches_the_definition(implementation, parents, window):
    assert_attend_is_defined(implementation, parents, window)


def test_the_default_matches_the_definition():
    assert_attend_is_defined(None, TREES["one per row"], 3)


@pytest.mark.parametrize("heads, kv_heads", [(4, 2), (2, 2)])
@implementations
def test_query_heads_share_key_heads(implementation, heads, kv_heads):
    parents = TREES["one per row"]
    assert_attend_is_defined(implementation, parents, None, heads, kv_heads)


@every_window
@kernel_trees.every_tree
@implementations
def test_a_node_sees_its_prefix_and_its_own_path(implementation, parents, window):
    args = attend_args(parents)
    outputs = attend(implementation, window)(*args)
    nodes = real(parents)
    assert_close(outputs[nodes], attend_by_hand(parents, window, args)[nodes])


@pytest.mark.parametrize("queries", [1, 3])
@implementations
def test_queries_of_the_last_nodes_are_the_last_of_all(implementation, queries):
    op = attend(implementation, window=3)
    tree, q, *args = attend_args(TREES["binary"])
    assert_close(op(tree, q[:, -queries:], *args), op(tree, q, *args)[:, -queries:])


@every_window
@implementations
def test_the_cache_beyond_its_length_changes_no_bit(implementation, window):
    op = attend(implementation, window)
    *args, keys, values, length = attend_args(TREES["one per row"])
    live = np.arange(CAPACITY) < length[:, None]
    others = overwrite((keys, values), live, kernel_trees.HUGE)
    expected = op(*args, keys, values, length)
    np.testing.assert_array_equal(op(*args, *others, length), expected)


@implementations
def test_depth_not_slot_decides_the_sliding_window(implementation):
    op = attend(implementation, window=3)

    def last_and_last_without_root(parents):
        tree, q, keys, *args = attend_args(parents)
        others = keys.copy()
        others[:, 0] = 1.0
        return (op(tree, q, k, *args)[:, -1] for k in (keys, others))

    chain, rootless_chain = last_and_last_without_root(TREES["chain"])
    star, rootless_star = last_and_last_without_root(TREES["star"])
    np.testing.assert_array_equal(chain, rootless_chain)
    assert np.abs(star - rootless_star).max() > 0.01


@implementations
def test_a_window_of_one_gives_the_values_of_the_nodes(implementation):
    tree, q, keys, values, *cache = attend_args(TREES["one per row"])
    outputs = attend(implementation, window=1)(tree, q, keys, values, *cache)
    assert_close(outputs, np.tile(values, (1, 1, 2)))


@pytest.mark.parametrize("value", kernel_trees.FILLINGS)
@pytest.mark.parametrize("window", [None, 3])
@implementations
def test_padding_is_finite_and_seen_by_no_node(implementation, window, value):
    op = attend(implementation, window)
    parents = TREES["padded"]
    tree, q, keys, values, *cache = attend_args(parents)
    outputs = op(tree, q, keys, values, *cache)
    others = overwrite((q, keys, values), real(parents), value)
    again = op(tree, *others, *cache)
    assert np.isfinite(outputs).all()
    np.testing.assert_array_equal(again[real(parents)], outputs[real(parents)])


@implementations
def test_half_precision_activations_give_float32(implementation):
    tree, *args, length = attend_args(TREES["one per row"])
    half = [a.astype(jnp.bfloat16) for a in args]
    outputs = attend(implementation)(tree, *half, length)
    assert outputs.dtype == jnp.float32
    expected = attend(implementation)(tree, *args, length)
    np.testing.assert_allclose(outputs, expected, atol=0.05)


@implementations
def test_jit_equals_eager(implementation):
    args = jax.tree.map(jnp.asarray, attend_args(TREES["one per row"][:, :3]))
    op = functools.partial(
        tree_attention.attend, window=3, implementation=implementation, **SETTINGS
    )
    assert_close(jax.jit(op)(*args), op(*args))


@pytest.mark.parametrize(
    "in_axes", [(0, 0, 0, 0, 0, 0, 0), (None, 0, 0, 0, None, None, 0)]
)
@implementations
def test_vmap_is_a_loop(implementation, in_axes):
    calls = [attend_args(TREES["binary"]), attend_args(TREES["one per row"], seed=1)]
    kernel_trees.assert_vmap_is_a_loop(
        tree_attention.attend, calls, in_axes, implementation, window=3, **SETTINGS
    )


@on_meshes
def test_shards_over_rows_and_heads(implementation):
    parents = np.concatenate([TREES["one per row"], TREES["star"][:1]])
    rows, heads = P("data"), P("data", None, "model")
    kernel_trees.assert_shards_are_parts(
        tree_attention.attend,
        attend_args(parents, 4, 2),
        in_specs=(rows, heads, heads, heads, heads, heads, rows),
        out_specs=heads,
        implementation=implementation,
        window=3,
        **SETTINGS,
    )


@on_meshes
def test_a_mesh_is_cut_over_by_itself(implementation):
    parents = np.concatenate([TREES["one per row"], TREES["star"][:1]])
    args = attend_args(parents, 4, 2)
    kernel_trees.assert_a_mesh_changes_nothing(
        tree_attention.attend, args, implementation, window=3, **SETTINGS
    )


@every_window
@implementations
def test_one_layer_of_several_is_meant(implementation, window):
    *args, keys, values, length = attend_args(TREES["one per row"])
    y = attend(implementation, window)(*args, keys, values, length)
    caches = in_layer_one(keys, values)
    settings = dict(window=window, implementation=implementation, **SETTINGS)
    op = functools.partial(tree_attention.attend, layer=jnp.int32(1), **settings)
    assert_close(jax.jit(op)(*args, *caches, length), y)


def cache_args(queries, heads=2, kv_heads=1, seed=0):
    """The arguments of `attend_cache`: some rows of the cache lie in the future."""
    rng = np.random.default_rng(seed)
    index = np.array([0, CAPACITY - queries, 1], np.int32)

    def normal(rows, heads):
        return rng.standard_normal((3, rows, heads * DIM), np.float32)

    return normal(queries, heads), *(normal(CAPACITY, kv_heads) for _ in "kv"), index


@pytest.mark.parametrize("heads, kv_heads", [(2, 1), (4, 2), (3, 3)])
@pytest.mark.parametrize("queries", [1, 4])
@every_window
@plain
def test_tokens_attend_to_the_cache_up_to_themselves(
    implementation, window, queries, heads, kv_heads
):
    args = cache_args(queries, heads, kv_heads)
    settings = dict(window=window, **SETTINGS)
    op = jitted(tree_attention.attend_cache, implementation, **settings)
    outputs = op(*args)
    expected = definition(tree_attention.attend_cache, *args, **settings)
    assert_close(outputs, expected)
    q, keys, values, index = args
    future = np.arange(CAPACITY) >= (index + queries)[:, None]
    assert future.any()
    others = overwrite((keys, values), ~future, kernel_trees.HUGE)
    np.testing.assert_array_equal(op(q, *others, index), outputs)


@plain
def test_tokens_and_a_chain_attend_alike(implementation):
    queries = 3
    q, keys, values, _ = cache_args(queries)
    tree = kernel_trees.derive(np.tile(np.arange(-1, queries - 1), (3, 1)))
    length = np.full((3,), CAPACITY - queries, np.int32)
    new = keys[:, -queries:], values[:, -queries:]
    op = jitted(tree_attention.attend_cache, implementation, window=3, **SETTINGS)
    assert_close(
        attend(implementation, 3)(tree, q, *new, keys, values, length),
        op(q, keys, values, length),
    )


def test_wrong_caches_are_refused():
    q, keys, values, index = cache_args(2, 4, 2)
    op = functools.partial(tree_attention.attend_cache, **SETTINGS)
    with pytest.raises(ValueError, match="cache_values has shape"):
        op(q, keys, values[:, 1:], index)
    with pytest.raises(ValueError, match="index has shape"):
        op(q, keys, values, index[1:])
    with pytest.raises(ValueError, match="divide the query heads"):
        op(q[..., DIM:], keys, values, index)
    with pytest.raises(ValueError, match="window of at least 1"):
        op(q, keys, values, index, window=0)


def test_unknown_implementations_are_refused():
    args = attend_args(TREES["star"])
    known = re.escape(str(sorted(tree_attention.implementations())))
    with pytest.raises(ValueError, match=known):
        tree_attention.attend(*args, **SETTINGS, implementation="fast")


def test_wrong_heads_are_refused():
    tree, q, *args = attend_args(TREES["star"], 4, 2)
    *nodes, cache_keys, cache_values, length = args
    op = functools.partial(tree_attention.attend, **SETTINGS)
    with pytest.raises(ValueError, match="divide the query heads"):
        op(tree, q[..., DIM:], *args)
    with pytest.raises(ValueError, match="heads of 8"):
        op(tree, q[..., 1:], *args)
    with pytest.raises(ValueError, match="cache_keys has shape"):
        op(tree, q, *nodes, cache_keys[..., DIM:], cache_values[..., DIM:], length)
    with pytest.raises(ValueError, match="values has shape"):
        op(tree, q, nodes[0], nodes[1][..., DIM:], cache_keys, cache_values, length)
    with pytest.raises(ValueError, match="length has shape"):
        op(tree, q, *nodes, cache_keys, cache_values, length[:1])
    with pytest.raises(ValueError, match="at most 7 queries"):
        op(tree, np.tile(q, (1, 2, 1)), *args)
