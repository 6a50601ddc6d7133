"""Steps of each rollback over the recurrent kernels alone, without projections.

Random states of a published Mamba-2 shape, several layers of them so that no cache holds
them, go through steps of N nodes of which some are kept.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec import ragged, sampling
from jaxspec.models.config import ModelConfig
from pallas_kernels import Inputs, Ring, topology, tree_ssd


class Shape(NamedTuple):
    """Sizes of a step.

    Attributes:
        config: a model with Mamba-2 layers.
        layers: states at once.
        batch: rows.
        nodes: of the trees.
        accepted: nodes kept.
        max_path: nodes on the longest path.
        ring: slots under lazy.
        dtype: of the activations.
    """

    config: ModelConfig
    layers: int
    batch: int
    nodes: int
    accepted: int
    max_path: int
    ring: int
    dtype: str

    @property
    def cycle(self) -> int:
        """Steps from an empty ring to the one that folds it."""
        return (self.ring - self.max_path) // self.accepted + 1


def moved(shape: Shape, kind: str) -> float:
    """Bytes per row, layer and step: what a step of the kernels reads and writes."""
    m, act = shape.config.mamba2, jnp.dtype(shape.dtype).itemsize
    state = 4 * m.d_inner * m.d_state
    record = (m.d_inner + m.ngroups * m.d_state) * act + 4 * m.nheads
    outputs = shape.nodes * (4 * m.d_inner + m.ngroups * m.d_state * act)
    read, path = shape.nodes * record + outputs, shape.max_path * record
    return {
        "lazy": (1 + 1 / shape.cycle) * state + shape.ring * record + read + 2 * path,
        "replay": 3 * state + read + 2 * path,
        "snapshot": (2 * shape.nodes + 3) * state + read,
        "joint": 3 * state + read + 2 * path,
    }[kind]


def repeated(
    shape: Shape, kind: str, implementation: str | None, steps: int
) -> Callable[[], Any]:
    """A call of several steps of a rollback, which goes on where the last one stopped."""
    start, once = _STEPS[kind](shape, implementation)
    loop = jax.jit(
        lambda past: jax.lax.fori_loop(0, steps, lambda _, past: once(past), past),
        donate_argnums=0,
    )
    now = [start]

    def call():
        now[0] = loop(now[0])
        return now[0]

    return call


class _Problem(NamedTuple):
    """What all steps of a batch size share."""

    tree: topology.Topology
    inputs: Inputs
    A: jax.Array
    C: jax.Array
    D: jax.Array


def _problem(shape: Shape, nodes: int) -> _Problem:
    """A chain with branches, and random records."""
    m, rng = shape.config.mamba2, np.random.default_rng(0)
    parents = np.arange(-1, nodes - 1)
    parents[nodes // 2 + 1 :] = rng.integers(0, nodes // 2 + 1, nodes - nodes // 2 - 1)
    tree = topology.derive(jnp.tile(jnp.array(parents, jnp.int32), (shape.batch, 1)))
    inputs, C = _records(shape, (shape.batch, nodes), sampling.key(0))
    A = -jnp.linspace(0.1, 1.0, m.nheads, dtype=jnp.float32)
    return _Problem(tree, inputs, A, C, jnp.ones((m.d_inner,), jnp.float32))


def _records(shape: Shape, leading: tuple[int, ...], key: jax.Array):
    """Random inputs `[*leading, ...]` and queries."""
    m, keys = shape.config.mamba2, jax.random.split(key, 4)
    width = m.ngroups * m.d_state

    def normal(key, width):
        return jax.random.normal(key, (*leading, width), jnp.dtype(shape.dtype))

    dt = jax.random.uniform(keys[1], (*leading, m.nheads), jnp.float32, 0.001, 0.1)
    inputs = Inputs(normal(keys[0], m.d_inner), dt, normal(keys[2], width))
    return inputs, normal(keys[3], width)


def _states(shape: Shape) -> jax.Array:
    m = shape.config.mamba2
    sizes = shape.layers, shape.batch, m.nheads, m.headdim, m.d_state
    return jax.random.normal(sampling.key(1), sizes, jnp.float32)


def _lazy(shape: Shape, implementation: str | None):
    problem = _problem(shape, shape.nodes)
    slots = shape.layers, shape.batch, shape.ring
    ring, _ = _records(shape, slots, sampling.key(2))
    path = jax.tree.map(lambda a: a[:, : shape.max_path], problem.inputs)
    append = jax.vmap(ragged.write, (0, None, None))

    def step(past):
        states, ring, length, total = past
        fold = length + shape.max_path > shape.ring

        def layer(i, now):
            states, total = now
            y, states = tree_ssd.verify(
                *problem,
                states,
                Ring(ring, length),
                fold,
                layer=i,
                implementation=implementation,
            )
            return states, total + y

        states, total = jax.lax.fori_loop(0, shape.layers, layer, (states, total))
        length = jnp.where(fold, 0, length)
        ring = jax.tree.map(lambda r, new: append(r, new, length), ring, path)
        return states, ring, length + shape.accepted, total

    states = _states(shape)
    return (states, ring, jnp.zeros((shape.batch,), jnp.int32), _total(problem)), step


def _replay(shape: Shape, implementation: str | None, pending: int = 0):
    problem = _problem(shape, shape.nodes + pending)
    slots = shape.layers, shape.batch, shape.max_path
    path, _ = _records(shape, slots, sampling.key(2))
    rates = jnp.tile(problem.A[None], (shape.layers, 1))
    fold = functools.partial(tree_ssd.fold, implementation=implementation)

    def step(past):
        states, total = past

        def layer(i, total):
            read = functools.partial(tree_ssd.read, implementation=implementation)
            return total + read(*problem, states, layer=i)

        total = jax.lax.fori_loop(0, shape.layers, layer, total)
        return jax.vmap(fold)(states, rates, path), total

    return (_states(shape), _total(problem)), step


def _joint(shape: Shape, implementation: str | None):
    return _replay(shape, implementation, shape.max_path)


def _snapshot(shape: Shape, implementation: str | None):
    del implementation  # XLA's; there is no kernel of it
    problem = _problem(shape, shape.nodes)
    last = jnp.full((shape.batch,), shape.accepted - 1, jnp.int32)
    m = shape.config.mamba2

    def step(past):
        states, total = past

        def layer(i, now):
            states, total = now
            nodes = tree_ssd.node_states(
                problem.tree.parents, problem.inputs, problem.A, states[i]
            )
            grouped = nodes.reshape(*nodes.shape[:2], m.ngroups, -1, *nodes.shape[3:])
            C = problem.C.astype(jnp.float32)
            C = C.reshape(*C.shape[:2], m.ngroups, m.d_state)
            y = jnp.einsum("bigmps,bigs->bigmp", grouped, C)
            state = ragged.take_one(nodes, last)
            states = jax.lax.dynamic_update_index_in_dim(states, state, i, 0)
            return states, total + y.reshape(total.shape)

        return jax.lax.fori_loop(0, shape.layers, layer, (states, total))

    return (_states(shape), _total(problem)), step


def _total(problem: _Problem) -> jax.Array:
    """Somewhere to add outputs up, so that no compiler drops them."""
    return jnp.zeros(problem.inputs.x.shape, jnp.float32)


_STEPS = {"lazy": _lazy, "replay": _replay, "snapshot": _snapshot, "joint": _joint}
