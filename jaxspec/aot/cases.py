"""Calls of the kernels at the shapes of published models, to compile or to count."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.measure import published
from jaxspec.models.config import DeltaConfig, ModelConfig
from pallas_kernels import (
    topology,
    tree_attention,
    tree_conv,
    tree_delta,
    tree_scan,
    tree_ssd,
)
from pallas_kernels.inputs import DeltaInputs, Inputs, Ring

BATCH = 2
LAYERS = 256  # no chip holds the states of so many in fast memory
CACHE = 512  # rows of a layer's keys and values
MAX_DEPTH = 16


class Case(NamedTuple):
    """A call of a kernel.

    Attributes:
        op: package of `pallas_kernels`.
        function: of the package.
        model: of `published.MODELS`, or of `published.DELTA`.
        nodes: of the tree, or tokens to fold.
        queries: the last nodes that are asked for; 0 is all.
        ring: slots between the state and the tree; 0 is no ring.
        dtype: of the activations.
    """

    op: str
    function: str
    model: str
    nodes: int
    queries: int = 0
    ring: int = 0
    dtype: str = "bfloat16"

    def __str__(self) -> str:
        """Names the case, without what it has not."""
        words = [f"{self.op}.{self.function}", self.model, f"N{self.nodes}"]
        words += [f"n{self.queries}"] if self.queries else []
        words += [f"W{self.ring}"] if self.ring else []
        return "-".join([*words, self.dtype])


class Program(NamedTuple):
    """A function of arrays.

    Attributes:
        function: to be compiled.
        args: shapes of its arguments.
        written: the argument that it writes in place, None if there is none.
        resident: the argument that is to stay where it is, None if there is none.
    """

    function: Callable[..., Any]
    args: tuple
    written: int | None = None
    resident: int | None = None

    def resident_bytes(self) -> int:
        """Size of what is to stay where it is, all layers of it."""
        if self.resident is None:
            return 0
        stacked = self.args[self.resident]
        return stacked.size * stacked.dtype.itemsize


def program(case: Case, implementation: str | None) -> Program:
    """The function that a case calls, and the shapes of its arguments."""
    if case.op == "tree_delta":
        return _delta(case, published.DELTA[case.model], implementation)
    config = published.MODELS[case.model]
    config = dataclasses.replace(config, dtype=case.dtype)
    build = {
        "tree_ssd": _mamba2,
        "tree_scan": _mamba1,
        "tree_conv": _convolution,
        "tree_attention": _attention,
    }
    return build[case.op](case, config, implementation)


def num_units(case: Case) -> int:
    """Heads, with states or of queries; tokens, the ring's included, of other ops."""
    if case.op == "tree_delta":
        return published.DELTA[case.model].num_value_heads
    config = published.MODELS[case.model]
    if case.op == "tree_ssd":
        return config.mamba2.nheads
    if case.op == "tree_attention":
        return config.attention.num_heads
    return case.nodes + case.ring


def _array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _tree(case: Case) -> topology.Topology:
    return jax.eval_shape(topology.derive, _array(BATCH, case.nodes, dtype=jnp.int32))


def _mamba2(case: Case, config: ModelConfig, implementation: str | None) -> Program:
    m = config.mamba2
    call = functools.partial(
        getattr(tree_ssd, case.function), implementation=implementation
    )
    widths = m.d_inner, m.nheads, m.ngroups * m.d_state
    state = m.nheads, m.headdim, m.d_state
    return _recurrence(case, call, widths, (m.nheads,), state)


def _mamba1(case: Case, config: ModelConfig, implementation: str | None) -> Program:
    m = config.mamba1
    channels = m.expand * config.d_model
    static = {"implementation": implementation}
    if case.function != "fold":
        static["max_depth"] = min(case.nodes, MAX_DEPTH)
    call = functools.partial(getattr(tree_scan, case.function), **static)
    state = m.d_state, channels
    return _recurrence(case, call, (channels, channels, m.d_state), state, state)


def _recurrence(case, call, widths, rates, state) -> Program:
    """A call of `read`, `verify` or `fold`.

    Args:
        case: what is called.
        call: the function.
        widths: of `x`, `dt` and `B`.
        rates: shape of `A`.
        state: shape of a state.
    """
    dtypes = case.dtype, jnp.float32, case.dtype

    def inputs(*leading):
        pairs = zip(widths, dtypes, strict=True)
        return Inputs(*(_array(*leading, width, dtype=d) for width, d in pairs))

    stacked = _array(LAYERS, BATCH, *state)
    if case.function == "fold":
        args = stacked, _array(LAYERS, *rates), inputs(LAYERS, BATCH, case.nodes)
        return Program(jax.vmap(call), args, written=0, resident=0)
    C = _array(BATCH, case.queries or case.nodes, widths[2], dtype=case.dtype)
    args = _tree(case), inputs(BATCH, case.nodes), _array(*rates), C
    args += _array(widths[0]), stacked
    return _tree_call(case, call, args, inputs)


def _tree_call(case, call, args, inputs) -> Program:
    """A call of `read` or `verify`.

    Args:
        case: what is called.
        call: the function.
        args: its arguments up to the state.
        inputs: makes records of leading axes.
    """
    state = len(args)  # after the layer
    if case.ring:
        length = _array(BATCH, dtype=jnp.int32)
        args += (Ring(inputs(LAYERS, BATCH, case.ring), length),)
    if case.function == "verify":
        args += (_array(BATCH, dtype=bool),)

    def function(layer, *args):
        return call(*args, layer=layer)

    written = state if case.function == "verify" else None
    return Program(function, (_array(dtype=jnp.int32), *args), written, resident=state)


def _delta(case: Case, shape: DeltaConfig, implementation) -> Program:
    call = functools.partial(
        getattr(tree_delta, case.function), implementation=implementation
    )
    heads, dim, width = shape.num_value_heads, shape.value_head_dim, shape.key_head_dim
    keys = shape.num_key_heads * width

    def inputs(*leading):
        u, g = _array(*leading, heads * dim), _array(*leading, heads)
        return DeltaInputs(u, g, _array(*leading, keys, dtype=case.dtype))

    stacked = _array(LAYERS, BATCH, heads, dim, width)
    if case.function == "fold":
        args = stacked, inputs(LAYERS, BATCH, case.nodes)
        return Program(jax.vmap(call), args, written=0, resident=0)
    new = BATCH, case.queries or case.nodes
    args = _tree(case), inputs(BATCH, case.nodes), _array(*new, heads)
    args += _array(*new, keys, dtype=case.dtype), stacked
    return _tree_call(case, call, args, inputs)


def _convolution(case: Case, config: ModelConfig, implementation) -> Program:
    m = config.mamba2 or config.mamba1
    channels = m.conv_dim if config.mamba2 else m.expand * config.d_model
    args = (
        _array(BATCH, case.queries or case.nodes, m.d_conv, dtype=jnp.int32),
        _array(BATCH, case.nodes, channels, dtype=case.dtype),
        _array(BATCH, m.d_conv - 1, channels, dtype=case.dtype),
        _array(m.d_conv, channels, dtype=case.dtype),
        _array(channels, dtype=case.dtype),
    )
    call = functools.partial(tree_conv.convolve, implementation=implementation)
    return Program(call, args)


def _attention(case: Case, config: ModelConfig, implementation) -> Program:
    a = config.attention
    keys = a.num_kv_heads * a.head_dim
    q = BATCH, case.queries or case.nodes, a.num_heads * a.head_dim
    node = _array(BATCH, case.nodes, keys, dtype=case.dtype)
    cache = _array(LAYERS, BATCH, CACHE, keys, dtype=case.dtype)
    args = _array(dtype=jnp.int32), _tree(case), _array(*q, dtype=case.dtype)
    args += node, node, cache, cache, _array(BATCH, dtype=jnp.int32)

    def function(layer, *args):
        return tree_attention.attend(
            *args,
            layer=layer,
            head_dim=a.head_dim,
            scale=a.head_dim**-0.5,
            implementation=implementation,
        )

    return Program(function, args, resident=5)
