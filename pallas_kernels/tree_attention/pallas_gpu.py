"""`attend` on Hopper and Blackwell GPUs: one pass over the cache with an online softmax.

    y_i = sum_j exp(s_ij) v_j / sum_j exp(s_ij)          s_ij = scale q_i k_j

where `j` runs over the live cache and the tree. The queries of all nodes and of the heads
that share a key head are the rows of one matrix. A block has 64 of these rows and a part
of the live cache (`gpu_step`); the parts are put together outside.

Scores, weights and sums are float32, with the hardware's `exp2` (2 ulp). Weights are
rounded to bfloat16 where the values are bfloat16. Forward only.

The contract of `attend` is in `tree_attention`; the cache is that of all layers (`cache`).
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import _mosaic_gpu
from pallas_kernels.tree_attention.gpu_step import (
    BUFFERS,
    ROWS,
    STEP,
    Rows,
    Step,
    Sums,
    Tokens,
    num_keys,
)

BLOCKS = 264  # two for each multiprocessor of an H200
LOG2_E = 1 / math.log(2)


def attend(tree, q, keys, values, cache, *, head_dim, window, scale, interpret=False):
    batch, num_queries, _ = q.shape
    q = q.reshape(batch, num_queries, keys.shape[2] // head_dim, -1, head_dim)
    _, _, kv_heads, group, _ = q.shape
    rows = Rows(*_rows_of(tree, q, window))
    nodes = Tokens(_pad(keys, 1, STEP), _pad(values, 1, STEP))
    step = Step(head_dim, window, scale * LOG2_E, interpret)
    sums = _sums(step, rows, nodes, cache)

    weight = jnp.exp2(sums.top - jnp.max(sums.top, axis=2, keepdims=True))
    y = jnp.sum(weight[..., None] * sums.y, axis=2)
    y = y / jnp.sum(weight * sums.total, axis=2)[..., None]
    y = y[:, :, : num_queries * group]
    y = y.reshape(batch, kv_heads, num_queries, group, head_dim)
    return y.transpose(0, 2, 1, 3, 4).reshape(batch, num_queries, -1)


def refuses_attend(tree, q, keys, values, cache, *, head_dim, window, scale):
    dtypes = {x.dtype for x in (q, keys, values, cache.keys, cache.values)}
    if len(dtypes) > 1 or q.dtype not in (jnp.bfloat16, jnp.float32):
        return f"dtypes are {sorted(map(str, dtypes))}, not all bfloat16 or all float32"
    if head_dim not in (64, 128):
        return f"heads of {head_dim} are not of 64 or 128"
    if cache.keys.shape[2] < num_keys(q.dtype):
        return f"a cache of {cache.keys.shape[2]} rows is less than a block"
    return None


def _rows_of(tree, q, window):
    """Rows of the queries `[B, n, K, G, d]`, of their nodes' sights and depths."""
    batch, num_queries, kv_heads, group, head_dim = q.shape
    seen, depth = tree.ancestors[:, -num_queries:], tree.depth[:, -num_queries:]
    if window is not None:
        seen = seen & (tree.depth[:, None] > depth[..., None] - window)
    q = q.transpose(0, 2, 1, 3, 4).reshape(batch, kv_heads, -1, head_dim)
    seen = jnp.repeat(seen.astype(jnp.int8), group, axis=1)
    depth = jnp.repeat(depth, group, axis=1)
    yield _pad(q, 2, ROWS)
    yield _pad(_pad(seen, 1, ROWS), 2, STEP)
    yield _pad(depth, 1, ROWS)


def _pad(x, axis, multiple):
    missing = -x.shape[axis] % multiple
    if not missing:
        return x
    return jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)])


def _sums(step, rows, nodes, cache) -> Sums:
    """Sums of all rows, over the parts of what they see."""
    cache = cache._replace(layer=cache.layer.reshape(1))
    tokens = Tokens(cache.keys, cache.values)
    batch, kv_heads, num_rows, _ = rows.q.shape
    layers, _, capacity, _ = cache.keys.shape
    tiles = num_rows // ROWS
    parts = max(1, BLOCKS // (batch * kv_heads * tiles))
    parts = min(parts, pl.cdiv(capacity, 4 * num_keys(rows.q.dtype)))
    scores = batch * kv_heads * num_rows * (capacity + nodes.keys.shape[1])
    scalars = jax.ShapeDtypeStruct((batch, kv_heads, parts, num_rows), jnp.float32)
    y = jax.ShapeDtypeStruct((*scalars.shape, step.head_dim), jnp.float32)
    sums = _mosaic_gpu.launch(
        functools.partial(step.attend, parts),
        (rows, nodes, cache),
        (scalars, scalars, y),
        grid={"batch": batch, "head": kv_heads, "tile": tiles, "part": parts},
        scratch=(
            *(step.buffer(x.dtype) for x in tokens),
            plgpu.Barrier(num_arrivals=len(tokens), num_barriers=BUFFERS),
        ),
        name="tree_attention",
        cost=pl.CostEstimate(
            flops=4 * step.head_dim * scores,
            bytes_accessed=_mosaic_gpu.num_bytes(rows, nodes, y)
            + _mosaic_gpu.num_bytes(tokens) // layers,
            transcendentals=scores,
        ),
        interpret=step.interpret,
        approx_math=True,
    )
    return Sums(*sums)
