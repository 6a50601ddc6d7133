"""Arguments of attention, of the convolution and of the delta rule, all random."""

import numpy as np

import kernel_trees
from kernel_records import (
    CHANNELS,
    DIM,
    HEADS,
    RING,
    RING_LENGTHS,
    STATE,
    normal,
    unit,
)
from pallas_kernels import DeltaInputs, Ring

CAPACITY = 6
_LENGTH = np.array([0, 3, CAPACITY, 2], np.int32)  # one row has no prefix, one no room
SCALE = DIM**-0.5
SETTINGS = dict(head_dim=DIM, scale=SCALE)
_CONVOLVED = 6  # channels


def attend_args(parents, heads=2, kv_heads=1, seed=0):
    """The arguments of `attend`, all nodes queried."""
    rng = np.random.default_rng(seed)
    batch, num_nodes = parents.shape

    def heads_of(rows, heads):
        return rng.standard_normal((batch, rows, heads * DIM), np.float32)

    return (
        kernel_trees.derive(parents),
        heads_of(num_nodes, heads),
        heads_of(num_nodes, kv_heads),
        heads_of(num_nodes, kv_heads),
        heads_of(CAPACITY, kv_heads),
        heads_of(CAPACITY, kv_heads),
        np.resize(_LENGTH, batch),
    )


def convolve_args(parents, width=4, seed=0):
    """The arguments of `convolve`, all nodes queried."""
    rng = np.random.default_rng(seed)
    batch, num_nodes = parents.shape
    return (
        kernel_trees.windows(parents, width),
        normal(rng, batch, num_nodes, _CONVOLVED),
        normal(rng, batch, width - 1, _CONVOLVED),
        normal(rng, width, _CONVOLVED),
        normal(rng, _CONVOLVED),
    )


def _delta_inputs(rng, batch, length, groups, strength):
    shape = batch, length, HEADS
    return DeltaInputs(
        u=normal(rng, batch, length, CHANNELS),
        g=-strength * rng.uniform(0, 1, shape).astype(np.float32),
        k=unit(normal(rng, batch, length, groups * STATE)),
    )


def delta_args(parents, ring=True, groups=2, strength=1.0, seed=0):
    """The arguments of `tree_delta.read`, all nodes new; `g` is at least `-strength`."""
    rng = np.random.default_rng(seed)
    batch, num_nodes = parents.shape
    length = np.resize(np.array(RING_LENGTHS, np.int32), batch)
    records = _delta_inputs(rng, batch, RING, groups, strength)
    return (
        kernel_trees.derive(parents),
        _delta_inputs(rng, batch, num_nodes, groups, strength),
        rng.uniform(0, 2, (batch, num_nodes, HEADS)).astype(np.float32),
        unit(normal(rng, batch, num_nodes, groups * STATE)),
        normal(rng, batch, HEADS, DIM, STATE),
        Ring(records, length) if ring else None,
    )
