"""`convolve` on Hopper and Blackwell GPUs: threads gather the windows of a few nodes.

    y_i = bias + sum_k weight_k u[window[i, k]]          u = concatenate([tail, inputs])

A block has a few nodes and up to 512 channels of a row of the batch. The filters and the
tail stay in registers, and nothing that is loaded waits for anything but the window. The
concatenation is not made. Sums in float32. Forward only.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import _mosaic_gpu

THREADS = 128
NODES = 4  # of a block


def convolve(window, inputs, tail, weight, bias, *, interpret=False):
    (batch, queries, taps), channels = window.shape, inputs.shape[2]
    per_thread = next((v for v in (4, 2, 1) if channels % (v * THREADS) == 0), None)
    size = per_thread * THREADS if per_thread else channels
    layout = plgpu.Layout.WG_STRIDED((size,), per_thread)
    nodes = min(NODES, queries)

    def body(window, inputs, tail, weight, bias, y):
        b, group = jax.lax.axis_index("batch"), jax.lax.axis_index("group")
        part = pl.ds(jax.lax.axis_index("block") * size, size)

        def load(ref, *index):
            value = _mosaic_gpu.load(ref, (*index, part), layout, interpret)
            return value.astype(jnp.float32)

        before = [load(tail, b, t) for t in range(taps - 1)]
        filters = [load(weight, k) for k in range(taps)]
        bias = load(bias)
        for i in range(nodes):
            node = jnp.minimum(group * nodes + i, queries - 1)
            out = bias
            for k in range(taps):
                row = window[b, node, k]
                token = load(inputs, b, jnp.maximum(row - len(before), 0))
                for t, earlier in enumerate(before):
                    token = jnp.where(row == t, earlier, token)
                out += filters[k] * token
            y[b, node, part] = out.astype(y.dtype)

    outputs = batch * queries * channels
    return _mosaic_gpu.launch(
        body,
        (window, inputs, tail, weight, bias),
        jax.ShapeDtypeStruct((batch, queries, channels), inputs.dtype),
        grid={
            "batch": batch,
            "group": pl.cdiv(queries, nodes),
            "block": channels // size,
        },
        name="tree_conv",
        cost=pl.CostEstimate(
            flops=2 * taps * outputs,
            bytes_accessed=_mosaic_gpu.num_bytes(window, inputs, tail, weight, bias)
            + outputs * inputs.dtype.itemsize,
            transcendentals=0,
        ),
        interpret=interpret,
        unsafe_no_auto_barriers=True,  # threads share nothing
    )


def refuses_convolve(window, inputs, tail, weight, bias):
    if inputs.shape[2] % THREADS:
        return f"{inputs.shape[2]} channels are not a multiple of {THREADS}"
    if window.shape[2] < 2:
        return "a filter of one tap looks at no path"
    return None
