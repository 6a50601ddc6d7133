"""Arguments for the ops of both recurrences, and what the suites do to them."""

import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

import kernel_trees
from pallas_kernels import Inputs, Ring, tree_scan, tree_ssd

HEADS, DIM, STATE, RING = 4, 8, 16, 3
CHANNELS = HEADS * DIM
RING_LENGTHS = [2, RING, 0, 1]


class Recurrence(NamedTuple):
    """One of the two ops on a small problem.

    Attributes:
        op: `tree_ssd` or `tree_scan`.
        groups: of keys; 0 in Mamba-1, which has none.
    """

    op: types.ModuleType
    groups: int

    @property
    def state_shape(self):
        return (HEADS, DIM, STATE) if self.groups else (STATE, CHANNELS)

    def make_inputs(self, rng, batch, length):
        steps = HEADS if self.groups else CHANNELS
        return Inputs(
            x=normal(rng, batch, length, CHANNELS),
            dt=rng.uniform(0.01, 1.0, (batch, length, steps)).astype(np.float32),
            B=normal(rng, batch, length, (self.groups or 1) * STATE),
        )

    def make_args(self, parents, ring=True, strength=1.0, seed=0):
        """The arguments of `read`, all nodes queried; `dt A` is at least `-strength`."""
        rng = np.random.default_rng(seed)
        batch, num_nodes = parents.shape
        rates = (HEADS,) if self.groups else (STATE, CHANNELS)
        A = -strength * rng.uniform(0.05, 1.0, rates).astype(np.float32)
        length = np.resize(np.array(RING_LENGTHS, np.int32), batch)
        return (
            kernel_trees.derive(parents),
            self.make_inputs(rng, batch, num_nodes),
            A,
            normal(rng, batch, num_nodes, (self.groups or 1) * STATE),
            normal(rng, CHANNELS),
            normal(rng, batch, *self.state_shape),
            Ring(self.make_inputs(rng, batch, RING), length) if ring else None,
        )

    def specs(self):
        """How the arguments of `read` are cut into rows and heads."""
        rows, heads = P("data"), P("data", None, "model")
        keys = heads if self.groups > 1 else rows
        inputs = Inputs(heads, heads, keys)
        rates = P("model") if self.groups else P(None, "model")
        state = P("data", "model") if self.groups else heads
        return rows, inputs, rates, keys, P("model"), state, Ring(inputs, rows)


RECURRENCES = {
    "ssd, one group": Recurrence(tree_ssd, 1),
    "ssd, two groups": Recurrence(tree_ssd, 2),
    "scan": Recurrence(tree_scan, 0),
}


def normal(rng, *shape):
    return rng.standard_normal(shape, np.float32)


def unit(a, width=STATE):
    """Keys of length one."""
    by_group = a.reshape(*a.shape[:-1], -1, width)
    by_group = by_group / np.linalg.norm(by_group, axis=-1, keepdims=True)
    return by_group.reshape(a.shape)


def cut(inputs, start, stop):
    """The records of some of the tokens."""
    return jax.tree.map(lambda a: a[:, start:stop], inputs)


def in_half(args):
    """Arguments of `read` with bfloat16 activations; all else stays float32."""
    tree, inputs, A, C, D, state, ring = args

    def halve(inputs):
        x, B = inputs.x.astype(jnp.bfloat16), inputs.B.astype(jnp.bfloat16)
        return inputs._replace(x=x, B=B)

    ring = ring._replace(inputs=halve(ring.inputs))
    return tree, halve(inputs), A, C.astype(jnp.bfloat16), D, state, ring


def widen(tree):
    """The same numbers in float32."""

    def leaf(a):
        return a.astype(np.float32) if a.dtype == jnp.bfloat16 else a

    return jax.tree.map(leaf, tree)


def in_layer_one(*arrays):
    """The arrays as the middle one of three layers."""
    return jax.tree.map(lambda a: np.stack([a + 1, a, a - 1]).astype(a.dtype), arrays)


def overwrite(tree, nodes, value):
    """The arrays with `value` in all slots but those of `nodes` `[B, N]`."""

    def fill(a):
        mask = nodes.reshape(nodes.shape + (1,) * (a.ndim - 2))
        return np.where(mask, a, np.float32(value))

    return jax.tree.map(fill, tree)
