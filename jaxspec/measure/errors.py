"""Errors of the kernels at published shapes, against the definitions in float64."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.measure import published
from pallas_kernels import (
    DeltaInputs,
    Inputs,
    Ring,
    topology,
    tree_attention,
    tree_conv,
    tree_delta,
    tree_scan,
    tree_ssd,
)

_BATCH, _RING, _CACHE = 2, 32, 512


def measure(nodes: int, dtype: str, implementation: str | None) -> dict[str, float]:
    """The largest error of each op's outputs, relative to the largest output.

    The same inputs, rounded to `dtype`, go into the op as it is asked for and into XLA's
    in float64 on a CPU.

    Args:
        nodes: of the trees, one of which branches at random.
        dtype: of the activations.
        implementation: as the ops take it.
    """
    found = {}
    for name, op, args in _calls(nodes, jnp.dtype(dtype)):
        call = functools.partial(op, implementation=implementation)
        outputs = jax.device_get(jax.jit(call)(*args))
        with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
            exact = jax.tree.map(_widen, jax.device_get(args))
            call = functools.partial(op, implementation="xla")
            expected = jax.device_get(jax.jit(call)(*exact))
        found[name] = max(jax.tree.leaves(jax.tree.map(_error, outputs, expected)))
    return found


def _calls(nodes: int, dtype: Any) -> Iterator[tuple[str, Callable[..., Any], tuple]]:
    """Each op, and random arguments."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.array(rng.standard_normal(shape, np.float32), dtype)

    def steps(*shape):
        return jnp.array(rng.uniform(0.001, 0.1, shape), jnp.float32)

    parents = [np.arange(-1, nodes - 1)]
    parents.append([-1, *(rng.integers(0, i) for i in range(1, nodes))])
    tree = topology.derive(jnp.array(np.stack(parents), jnp.int32))
    shape, slots = (_BATCH, nodes), (_BATCH, _RING)
    length = jnp.array([_RING - 1, _RING // 2], jnp.int32)
    fold = jnp.array([True, False])

    m = published.MODELS["mamba2-2.7b"].mamba2
    inputs, ring = (
        Inputs(normal(*s, m.d_inner), steps(*s, m.nheads), normal(*s, m.d_state))
        for s in (shape, slots)
    )
    A, D = -jnp.linspace(0.1, 16.0, m.nheads), jnp.ones((m.d_inner,))
    state = jnp.array(normal(_BATCH, m.nheads, m.headdim, m.d_state), jnp.float32)
    args = tree, inputs, A, normal(*shape, m.d_state), D, state
    yield "tree_ssd.verify", tree_ssd.verify, (*args, Ring(ring, length), fold)
    yield "tree_ssd.fold", tree_ssd.fold, (state, A, inputs)

    config = published.MODELS["mamba-2.8b"]
    width, states = 2 * config.d_model, config.mamba1.d_state
    inputs, ring = (
        Inputs(normal(*s, width), steps(*s, width), normal(*s, states))
        for s in (shape, slots)
    )
    A = -jnp.tile(jnp.arange(1.0, states + 1)[:, None], (1, width))
    state = jnp.array(normal(_BATCH, states, width), jnp.float32)
    args = tree, inputs, A, normal(*shape, states), jnp.ones((width,)), state
    verify = functools.partial(tree_scan.verify, max_depth=nodes)
    yield "tree_scan.verify", verify, (*args, Ring(ring, length), fold)
    yield "tree_scan.fold", tree_scan.fold, (state, A, inputs)

    c = published.DELTA["qwen3.5-9b"]
    heads, width = c.num_value_heads, c.key_head_dim

    def unit(*shape):
        x = rng.standard_normal((*shape, c.num_key_heads, width))
        x /= np.linalg.norm(x, axis=-1, keepdims=True)
        return jnp.array(x.reshape(*shape, -1), dtype)

    inputs, ring = (
        DeltaInputs(
            jnp.array(normal(*s, c.value_dim), jnp.float32), -steps(*s, heads), unit(*s)
        )
        for s in (shape, slots)
    )
    beta = jnp.array(rng.uniform(0.0, 1.0, (*shape, heads)), jnp.float32)
    state = jnp.array(normal(_BATCH, heads, c.value_head_dim, width), jnp.float32)
    args = tree, inputs, beta, unit(*shape), state, Ring(ring, length), fold
    yield "tree_delta.verify", tree_delta.verify, args
    yield "tree_delta.fold", tree_delta.fold, (state, inputs)

    window = topology.windows(tree.parents, m.d_conv)
    args = normal(*shape, m.conv_dim), normal(_BATCH, m.d_conv - 1, m.conv_dim)
    args += normal(m.d_conv, m.conv_dim), normal(m.conv_dim)
    yield "tree_conv.convolve", tree_conv.convolve, (window, *args)

    a = published.MODELS["nemotron-h-8b"].attention
    keys = a.num_kv_heads * a.head_dim
    args = tree, normal(*shape, a.num_heads * a.head_dim)
    args += normal(*shape, keys), normal(*shape, keys)
    args += normal(_BATCH, _CACHE, keys), normal(_BATCH, _CACHE, keys)
    live = jnp.array([_CACHE - 3, 100], jnp.int32)
    scale = a.head_dim**-0.5
    attend = functools.partial(tree_attention.attend, head_dim=a.head_dim, scale=scale)
    yield "tree_attention.attend", attend, (*args, live)


def _widen(array: np.ndarray) -> np.ndarray:
    kind = jnp.issubdtype(array.dtype, jnp.floating)
    return array.astype(np.float64) if kind else array


def _error(found: np.ndarray, exact: np.ndarray) -> float:
    difference = np.abs(found.astype(np.float64) - exact)
    return float(difference.max() / np.abs(exact).max())
