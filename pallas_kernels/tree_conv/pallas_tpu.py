"""`convolve` on TPU: windows gathered by products with 0/1 matrices.

    y_i = bias + sum_k weight_k u[window_ik],    u[window_k] = onehot(window_k) @ u

The matrix unit gathers rows at no more cost than any product, where loads of single rows
at traced places would use an eighth of a register each. The taps are stacked as rows of
one 0/1 matrix, so that the tokens are laid into the matrix unit once.

A float32 is the sum of three parts of 8 significant bits, which stand below one another
in the matrix of tokens and are picked together.

The grid is (batch, blocks of channels); channels are independent, so a last block may
reach beyond the arrays.

Numerics: the gather is exact. Taps are summed in float32 and rounded once, to the inputs'
dtype.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128
CHANNELS = 2048  # in a block: enough to hide the cost of a step
VMEM_BYTES = 10 * 2**20  # of the 15 MB that every TPU has, the rest to the compiler


def _block(window, inputs) -> int | None:
    """Channels in a block, or `None` if none fit."""
    queries, width = window.shape[1:]
    (nodes, channels), itemsize = inputs.shape[1:], jnp.dtype(inputs.dtype).itemsize
    parts = _num_parts(inputs.dtype)
    picks = 6 * queries * width * max(parts * nodes, LANES)
    tokens = nodes * (2 * itemsize + 6 * parts)  # two buffers, the parts, rounded
    outputs = queries * (2 * itemsize + 4 * (width + 1))
    fit = (VMEM_BYTES - picks) // (tokens + outputs) // LANES * LANES
    if fit <= 0:
        return None
    steps = pl.cdiv(channels, min(fit, CHANNELS))
    return min(channels, pl.cdiv(channels, steps * LANES) * LANES)


def refuses_convolve(window, inputs, tail, weight, bias) -> str | None:
    """Why the kernel cannot serve these arguments, if it cannot."""
    if inputs.dtype not in (jnp.float32, jnp.bfloat16) or tail.dtype != inputs.dtype:
        return (
            "inputs and tail must be both float32 or both bfloat16, got "
            f"{inputs.dtype.name} and {tail.dtype.name}"
        )
    if weight.shape[0] == 1:
        return "a window of one token leaves no tail"
    if _block(window, inputs) is None:
        return f"{window.shape[1]} of {inputs.shape[1]} nodes exceed the on-chip memory"
    return None


def convolve(window, inputs, tail, weight, bias, interpret=False):
    """Convolves every node with its window; the contract is in `tree_conv`.

    Args:
        window: `[B, n, K]` int32, rows of `concatenate([tail, inputs])`.
        inputs: `[B, N, E]`.
        tail: `[B, K - 1, E]`.
        weight: `[K, E]`.
        bias: `[E]`.
        interpret: as in `pl.pallas_call`.

    Returns:
        `[B, n, E]` in the inputs' dtype.
    """
    batch, queries, width = window.shape
    nodes, channels = inputs.shape[1:]
    block = _block(window, inputs)

    def of_row(b, e):
        return b, 0, 0

    def of_channels(b, e):
        return b, 0, e

    def shared(b, e):
        return 0, e

    itemsize = inputs.dtype.itemsize
    moved = channels * (nodes + width - 1 + queries) * itemsize
    moved += 4 * queries * LANES  # rows of `window` are padded in memory
    rows = _num_parts(inputs.dtype) * (nodes + width - 1)
    return pl.pallas_call(
        _kernel,
        grid=(batch, pl.cdiv(channels, block)),
        in_specs=[
            pl.BlockSpec((None, queries, width), of_row),
            pl.BlockSpec((None, nodes, block), of_channels),
            pl.BlockSpec((None, width - 1, block), of_channels),
            pl.BlockSpec((width, block), shared),
            pl.BlockSpec((1, block), shared),
        ],
        out_specs=pl.BlockSpec((None, queries, block), of_channels),
        out_shape=jax.ShapeDtypeStruct((batch, queries, channels), inputs.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel")
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * batch * queries * width * rows * channels,
            bytes_accessed=batch * moved
            + (width + 1) * channels * weight.dtype.itemsize,
            transcendentals=0,
        ),
        name="tree_conv",
        interpret=interpret,
    )(window, inputs, tail, weight, bias[None])


def _kernel(
    window_ref,  # [n, K]
    inputs_ref,  # [N, channels]
    tail_ref,  # [K - 1, channels]
    weight_ref,  # [K, channels]
    bias_ref,  # [1, channels]
    y_ref,  # [n, channels]
):
    queries, width = window_ref.shape
    picks = _picks(window_ref[...], inputs_ref.shape[0], _num_parts(inputs_ref.dtype))
    # The tail last: `inputs` then begin at the first row of a register.
    tokens = jnp.concatenate(_parts(inputs_ref[...]) + _parts(tail_ref[...]))
    gathered = jnp.dot(
        picks, tokens.astype(jnp.bfloat16), preferred_element_type=jnp.float32
    )
    y = bias_ref[...].astype(jnp.float32)
    for k in range(width):
        tap = gathered[k * queries : (k + 1) * queries]
        y = y + weight_ref[k : k + 1].astype(jnp.float32) * tap
    y_ref[...] = y.astype(y_ref.dtype)


def _picks(window, nodes, parts):
    """The 0/1 matrix `[K n, parts (N + K - 1)]`, taps from the oldest to the newest."""
    width = window.shape[1]
    places = jnp.concatenate([window[:, k : k + 1] for k in range(width)])
    column = jax.lax.broadcasted_iota(jnp.int32, (1, parts * (nodes + width - 1)), 1)
    in_tail = column - parts * nodes
    token = jnp.where(in_tail < 0, column % nodes + width - 1, in_tail % (width - 1))
    return jnp.where(places == token, 1.0, 0.0).astype(jnp.bfloat16)


def _num_parts(dtype):
    """How many bfloat16 a value is the sum of."""
    return 1 if dtype == jnp.bfloat16 else 3


def _parts(x):
    """Values of 8 significant bits whose sum is exactly `x`."""
    parts = []
    for _ in range(_num_parts(x.dtype) - 1):
        # Cut off, not rounded by a cast and back, which compilers take for nothing.
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32) & jnp.uint32(0xFFFF0000)
        parts.append(jax.lax.bitcast_convert_type(bits, jnp.float32))
        x = x - parts[-1]
    return [*parts, x]
