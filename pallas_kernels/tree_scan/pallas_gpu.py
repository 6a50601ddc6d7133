"""The Mamba-1 ops on Hopper and Blackwell GPUs: a thread walks the tree for a channel.

    h_i = exp(dt_i A) h_p + dt_i x_i B_i          y_i = sum_s h_i[s] C_i[s] + D x_i

A block has one row of the batch and 128 channels; a thread has the `S` states of one
channel in registers. It follows the ring, oldest token first, and then visits the nodes
in depth-first order, so that the states from which later nodes start are those on the
path to the present one: a stack in shared memory, level `d` of which holds the state
above the nodes of depth `d`. A thread reads only its own column of it, so there are no
barriers, and every step loads what the next one needs. States of nodes never leave the
chip.

States, decays and sums are float32, with the hardware's `exp2` (2 ulp). Forward only.

The contract of `read`, `verify` and `fold` is in `tree_scan`; states and rings are of all
layers (`past`).
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import _mosaic_gpu
from pallas_kernels.inputs import Inputs

CHANNELS = 128  # of a block, one per thread
LOG2_E = 1 / math.log(2)
MAX_WIDTH = 32  # states of a channel that fit into registers, beside as many decays

STATES = plgpu.Layout.TILED(  # [S, CHANNELS], a column per thread
    plgpu.Tiling(((1, CHANNELS), (32,), (1,))),
    warp_dims=(-3,),
    lane_dims=(-2,),
    vector_dim=-1,
)
PER_CHANNEL = STATES.reduce(0)
PER_STATE = STATES.reduce(1)

# A column of the stack is written and read by the same thread, in that order.
PARAMS = {"approx_math": True, "unsafe_no_auto_barriers": True}


def read(tree, inputs, A, C, D, past, *, max_depth, interpret=False):
    """Reads the tree; in the rows of `past.fold`, writes the state after the ring."""
    (batch, num_nodes, channels), (queries, width) = inputs.x.shape, C.shape[1:]
    columns = _Columns(channels, interpret)
    updates = batch * (num_nodes + past.num_slots) * channels * width
    order = tree.preorder, tree.depth
    state, ring, fold = past.state, past.ring, past.fold
    carried = state if ring is None else (state, ring.inputs)

    def body(tree, inputs, A, C, D, past, y, stack):
        state, ring, fold, layer = past
        b, layer = jax.lax.axis_index("batch"), layer[0]
        A, h = LOG2_E * columns.load(A), columns.load(state.at[layer, b])
        if ring is not None:
            chain = Inputs(*(ref.at[layer, b] for ref in ring.inputs))
            h = columns.follow(h, A, chain, ring.length[b])
        if fold is not None:

            @pl.when(fold[b] != 0)
            def _():
                columns.store(h, state.at[layer, b])

        stack[0] = h
        nodes = _Nodes(*(ref.at[b] for ref in (*tree, *inputs, C)))
        columns.visit(nodes, A, columns.load_token(D), stack, y.at[b])

    return _mosaic_gpu.launch(
        body,
        (order, inputs, A, C, D, past._replace(layer=past.layer.reshape(1))),
        jax.ShapeDtypeStruct((batch, queries, channels), jnp.float32),
        grid={"batch": batch, "block": columns.blocks},
        scratch=(_stack(num_nodes, A, max_depth),),
        name="tree_scan_read" if fold is None else "tree_scan_verify",
        cost=pl.CostEstimate(
            flops=8 * updates,
            bytes_accessed=_mosaic_gpu.num_bytes(inputs, A, C, D)
            + _mosaic_gpu.num_bytes(carried) // state.shape[0]
            + batch * queries * channels * 4,
            transcendentals=updates,
        ),
        interpret=interpret,
        **PARAMS,
    )


@_mosaic_gpu.pure
def verify(tree, inputs, A, C, D, past, *, max_depth, interpret=False):
    state = _mosaic_gpu.in_place(past.state)
    past = past._replace(state=state, fold=past.fold.astype(jnp.int32))
    y = read(tree, inputs, A, C, D, past, max_depth=max_depth, interpret=interpret)
    return y, state[...]


@_mosaic_gpu.pure
def fold(state, A, inputs, *, interpret=False):
    layers, batch, width, channels = state.shape
    length = inputs.x.shape[2]
    columns = _Columns(channels, interpret)
    updates = state.size * length

    def body(A, inputs, state):
        layer, b = jax.lax.axis_index("layer"), jax.lax.axis_index("batch")
        A, h = LOG2_E * columns.load(A.at[layer]), columns.load(state.at[layer, b])
        chain = Inputs(*(ref.at[layer, b] for ref in inputs))
        columns.store(columns.follow(h, A, chain, length), state.at[layer, b])

    folded = _mosaic_gpu.in_place(state)
    _mosaic_gpu.launch(
        body,
        (A, inputs, folded),
        grid={"layer": layers, "batch": batch, "block": columns.blocks},
        name="tree_scan_fold",
        cost=pl.CostEstimate(
            flops=6 * updates,
            bytes_accessed=_mosaic_gpu.num_bytes(A, inputs, state, state),
            transcendentals=updates,
        ),
        interpret=interpret,
        **PARAMS,
    )
    return folded[...]


def _stack(num_nodes, A, max_depth):
    width, channels = A.shape
    levels = min(max_depth or num_nodes, num_nodes)
    return plgpu.SMEM((levels, width, math.gcd(channels, CHANNELS)), jnp.float32)


class _Nodes(NamedTuple):
    """References to what belongs to the nodes of one row."""

    preorder: Any  # [N]
    depth: Any  # [N]
    x: Any  # [N, E]
    dt: Any  # [N, E]
    B: Any  # [N, S]
    C: Any  # [n, S], of the last nodes


@dataclasses.dataclass(frozen=True)
class _Columns:
    """What a block does to its channels.

    Attributes:
        channels: of all blocks.
        interpret: whether there are no threads for values to be laid out in.
    """

    channels: int
    interpret: Any

    @property
    def size(self) -> int:
        return math.gcd(self.channels, CHANNELS)

    @property
    def blocks(self) -> int:
        return self.channels // self.size

    @property
    def slice(self) -> pl.Slice:
        return pl.ds(jax.lax.axis_index("block") * self.size, self.size)

    def load(self, ref) -> jax.Array:
        """The block's part of `[S, E]`."""
        return _mosaic_gpu.load(ref, (slice(None), self.slice), STATES, self.interpret)

    def load_level(self, stack, level) -> jax.Array:
        return _mosaic_gpu.load(stack, level, STATES, self.interpret)

    def load_token(self, ref, *index) -> jax.Array:
        """The block's part of a row of `[..., E]`."""
        index = *index, self.slice
        return _mosaic_gpu.load(ref, index, PER_CHANNEL, self.interpret)

    def store(self, value, ref) -> None:
        ref[:, self.slice] = value

    def load_row(self, ref, t) -> jax.Array:
        """A row of keys or queries `[..., S]`."""
        return _mosaic_gpu.load(ref, t, PER_STATE, self.interpret)

    def spread(self, value, axis, like) -> jax.Array:
        """Values of the states (axis 0) or channels (axis 1), for all the others."""
        value = value.astype(jnp.float32)
        return _mosaic_gpu.spread(value, like.shape, axis, STATES, self.interpret)

    def advance(self, h, A, x, dt, B) -> jax.Array:
        """One token, with `A` in units of log 2."""
        decay = jnp.exp2(self.spread(dt, 1, h) * A)
        update = self.spread(dt * x.astype(jnp.float32), 1, h) * self.spread(B, 0, h)
        return decay * h + update

    def follow(self, h, A, chain, length) -> jax.Array:
        """The first `length` of a chain of tokens."""
        last = chain.x.shape[0] - 1

        def look_up(t):
            token = self.load_token(chain.x, t), self.load_token(chain.dt, t)
            return *token, self.load_row(chain.B, t)

        def step(t, carry):
            h, *token = carry
            following = look_up(jnp.minimum(t + 1, last))
            return self.advance(h, A, *token), *following

        return jax.lax.fori_loop(0, length, step, (h, *look_up(0)))[0]

    def visit(self, nodes, A, D, stack, y) -> None:
        """All nodes; the last `n` write their outputs to `y` `[n, E]`."""
        num_nodes, levels = nodes.x.shape[0], stack.shape[0]
        first = num_nodes - nodes.C.shape[0]

        def look_up(step):
            node = nodes.preorder[step]
            token = self.load_token(nodes.x, node), self.load_token(nodes.dt, node)
            rows = (nodes.B, node), (nodes.C, jnp.maximum(node - first, 0))
            rows = (self.load_row(*row) for row in rows)
            return node, nodes.depth[node], *token, *rows

        def step(step, carry):
            node, depth, x, dt, B, C = carry
            following = look_up(jnp.minimum(step + 1, num_nodes - 1))
            above = self.load_level(stack, jnp.minimum(depth, levels - 1))
            h = self.advance(above, A, x, dt, B)
            child_follows = following[1] > depth

            @pl.when(child_follows & (depth + 1 < levels))
            def _():
                stack[depth + 1] = h

            @pl.when(node >= first)
            def _():
                answer = jnp.sum(h * self.spread(C, 0, h), axis=0)
                answer += D * x.astype(jnp.float32)
                is_padding = (depth == 0) & (node > 0)  # whose record is anything
                y[node - first, self.slice] = jnp.where(is_padding, 0.0, answer)

            return following

        jax.lax.fori_loop(0, num_nodes, step, look_up(0))


def refuses_read(tree, inputs, A, C, D, past, *, max_depth):
    stack = _stack(inputs.x.shape[1], A, max_depth)
    levels = stack.shape[0]
    size = 4 * math.prod(stack.shape)
    if size > _mosaic_gpu.SHARED_MEMORY:
        return (
            f"{levels} levels of {A.shape[0]} states take {size} bytes of a block's "
            f"shared memory, at most {_mosaic_gpu.SHARED_MEMORY}; bound max_depth"
        )
    return _refuses(A)


def refuses_verify(tree, inputs, A, C, D, past, *, max_depth):
    return refuses_read(tree, inputs, A, C, D, past, max_depth=max_depth)


def refuses_fold(state, A, inputs):
    return _refuses(A)


def _refuses(A):
    width, channels = A.shape[-2:]
    if channels % CHANNELS:
        return f"{channels} channels are not a multiple of {CHANNELS}"
    if width > MAX_WIDTH:
        return f"{width} states of a channel are more than {MAX_WIDTH}"
    return None
