"""Mamba-1 along the paths of a token tree.

`B` batch, `N` nodes, `n` queried nodes, `E` channels, `S` state width. States and step
sizes are float32. With a `layer`, `state` and the ring's inputs are those of `L` layers,
`[L, B, ...]`, and that one is meant.
"""

import jax
import jax.numpy as jnp

from pallas_kernels import _dispatch, stacked
from pallas_kernels._dispatch import HEADS, LAYERS, ROWS, Layout
from pallas_kernels._shapes import check_shapes
from pallas_kernels.inputs import Inputs, Ring
from pallas_kernels.past import Past
from pallas_kernels.topology import Topology
from pallas_kernels.tree_scan import pallas_gpu, pallas_tpu, reference, xla

_MODULES = {
    "reference": reference,
    "xla": xla,
    "pallas_tpu": pallas_tpu,
    "pallas_gpu": pallas_gpu,
}


def _ops() -> dict[str, _dispatch.Op]:
    rows, rates, node = Layout(ROWS), Layout(None, HEADS), Layout(ROWS, None, HEADS)
    key, skip, state = Layout(ROWS), Layout(HEADS), Layout(ROWS, None, HEADS)
    inputs = Inputs(node, node, key)
    states = Layout(LAYERS, *state)
    records = Inputs(*(Layout(LAYERS, *layout) for layout in inputs))
    known = Layout(ROWS, None, None, HEADS)
    past = Past(states, Ring(records, rows), rows, Layout())
    tree = rows, inputs, rates, key, skip, past
    chain = inputs, rates, key, skip, state
    return {
        "read": _dispatch.op("read", _MODULES, tree, node),
        "verify": _dispatch.op("verify", _MODULES, tree, (node, states)),
        "fold": _dispatch.op(
            "fold",
            _MODULES,
            (states, Layout(LAYERS, *rates), records),
            states,
            merge=LAYERS,
        ),
        "node_states": _dispatch.op(
            "node_states", _MODULES, (rows, inputs, rates, state, known), known
        ),
        "read_chain": _dispatch.op("read_chain", _MODULES, chain, (node, state)),
    }


_OPS = _ops()


def read(
    tree: Topology,
    inputs: Inputs,
    A: jax.Array,
    C: jax.Array,
    D: jax.Array,
    state: jax.Array,
    ring: Ring | None = None,
    *,
    layer: jax.Array | None = None,
    max_depth: int | None = None,
    implementation: _dispatch.Implementation | None = None,
) -> jax.Array:
    """Reads the state at the last `n` nodes of a tree.

    Args:
        tree: topology of the `N` nodes.
        inputs: records of the `N` nodes.
        A: `[S, E]` float32, negative.
        C: `[B, n, S]` queries of the last `n` nodes.
        D: `[E]` float32, the skip connection.
        state: `[B, S, E]` float32, before the ring and the root.
        ring: the tokens between `state` and the root, if there are any.
        layer: index of the layer that is meant; None if there is one.
        max_depth: nodes on the longest path that matters, `N` by default. Kernels keep as
            many states on the chip; what deeper nodes give is finite and unspecified.
        implementation: `None` picks the fastest for the platform.

    Returns:
        `[B, n, E]` float32 outputs.

    Raises:
        ValueError: if the shapes disagree.
    """
    _check_depth(max_depth)
    args = _arguments(tree, inputs, A, C, D, state, ring, layer=layer)
    return _dispatch.dispatch(
        _OPS["read"], implementation, A.shape[1], *args, max_depth=max_depth
    )


def verify(
    tree: Topology,
    inputs: Inputs,
    A: jax.Array,
    C: jax.Array,
    D: jax.Array,
    state: jax.Array,
    ring: Ring,
    fold: jax.Array,
    *,
    layer: jax.Array | None = None,
    max_depth: int | None = None,
    implementation: _dispatch.Implementation | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Reads the state at all nodes, and folds the ring into it in some rows.

    Kernels read the state once, and write it in those rows only. They write in place: a
    state that is used again afterwards costs a copy.

    Args:
        tree: as in `read`.
        inputs: as in `read`.
        A: as in `read`.
        C: `[B, N, S]` queries of all nodes.
        D: as in `read`.
        state: as in `read`.
        ring: as in `read`.
        fold: `[B]` bool, the rows whose ring is to be folded.
        layer: as in `read`.
        max_depth: as in `read`.
        implementation: as in `read`.

    Returns:
        `[B, N, E]` float32 outputs, and the state in the shape that it came in.
    """
    _check_depth(max_depth)
    args = _arguments(tree, inputs, A, C, D, state, ring, layer=layer, fold=fold)
    check_shapes(C=(C, (*tree.parents.shape, C.shape[2])))
    check_shapes(fold=(fold, tree.parents.shape[:1]))
    y, states = _dispatch.dispatch(
        _OPS["verify"], implementation, A.shape[1], *args, max_depth=max_depth
    )
    return y, states.reshape(state.shape)


def fold(
    state: jax.Array,
    A: jax.Array,
    inputs: Inputs,
    *,
    implementation: _dispatch.Implementation | None = None,
) -> jax.Array:
    """Advances a state over a chain of tokens, oldest first.

    Kernels write in place: a state that is used again afterwards costs a copy.

    Args:
        state: `[B, S, E]` float32.
        A: `[S, E]` float32, negative.
        inputs: records of `T` tokens.
        implementation: `None` picks the fastest for the platform.

    Returns:
        `[B, S, E]` float32 state after the last token.
    """
    _check_inputs(inputs, A, state, inputs.x.shape[:2])
    _, states, rates, records = stacked.make(None, state, A, inputs)
    op, channels = _OPS["fold"], A.shape[1]
    return _dispatch.dispatch(op, implementation, channels, states, rates, records)[0]


def node_states(
    parents: jax.Array,
    inputs: Inputs,
    A: jax.Array,
    state: jax.Array,
    known: jax.Array | None = None,
    *,
    implementation: _dispatch.Implementation | None = None,
) -> jax.Array:
    """Computes the state at every one of `n` nodes.

    Args:
        parents: `[B, n]` int32, slots among the `m` known nodes and the `n` new ones.
        inputs: records of the `n` nodes.
        A: as in `read`.
        state: `[B, S, E]` float32, before the root.
        known: `[B, m, S, E]` states of the nodes before these, if there are any.
        implementation: `None` picks the fastest for the platform.

    Returns:
        `[B, n, S, E]` float32 states.
    """
    _check_inputs(inputs, A, state, parents.shape)
    if known is None:
        known = jnp.zeros((state.shape[0], 0, *state.shape[1:]), state.dtype)
    op, channels = _OPS["node_states"], A.shape[1]
    return _dispatch.dispatch(
        op, implementation, channels, parents, inputs, A, state, known
    )


def read_chain(
    inputs: Inputs,
    A: jax.Array,
    C: jax.Array,
    D: jax.Array,
    state: jax.Array,
    *,
    implementation: _dispatch.Implementation | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Reads and advances the state over a chain of tokens, in parallel over the chain.

    Holds `[B, T, S, E]` states at once: cut long sequences into chunks.

    Args:
        inputs: records of `T` tokens.
        A: `[S, E]` float32, negative.
        C: `[B, T, S]` queries.
        D: `[E]` float32, the skip connection.
        state: `[B, S, E]` float32, before the first token.
        implementation: `None` picks the fastest for the platform.

    Returns:
        `[B, T, E]` float32 outputs and the `[B, S, E]` float32 state after the chain.
    """
    leading = inputs.x.shape[:2]
    _check_inputs(inputs, A, state, leading)
    check_shapes(C=(C, (*leading, A.shape[0])), D=(D, A.shape[1:]))
    op, channels = _OPS["read_chain"], A.shape[1]
    return _dispatch.dispatch(op, implementation, channels, inputs, A, C, D, state)


def implementations() -> list[str]:
    """The implementations there are, those made for a platform first."""
    return _dispatch.names(_MODULES)


def _arguments(tree, inputs, A, C, D, state, ring, *, layer, fold=None) -> list:
    """What `read` and `verify` share, checked and stacked."""
    one = stacked.shapes(state, layer)
    batch, num_nodes = tree.parents.shape
    _check_inputs(inputs, A, one, (batch, num_nodes))
    check_shapes(C=(C, (batch, C.shape[1], A.shape[0])), D=(D, A.shape[1:]))
    if C.shape[1] > num_nodes:
        raise ValueError(f"Expected at most {num_nodes} queries, got {C.shape[1]}.")
    if ring is not None:
        records = stacked.shapes(ring.inputs, layer)
        _check_inputs(records, A, one, (batch, records.x.shape[1]))
        check_shapes(ring_length=(ring.length, (batch,)))
    return [tree, inputs, A, C, D, Past.of(state, ring, layer=layer, fold=fold)]


def _check_depth(max_depth: int | None) -> None:
    if max_depth is not None and max_depth < 1:
        raise ValueError(f"max_depth must be at least 1, got {max_depth}.")


def _check_inputs(
    inputs: Inputs, A: jax.Array, state: jax.Array, leading: tuple[int, ...]
) -> None:
    """Records `[*leading, ...]` that fit a state `[B, S, E]`."""
    width, channels = state.shape[1:]
    check_shapes(
        A=(A, (width, channels)),
        x=(inputs.x, (*leading, channels)),
        dt=(inputs.dt, (*leading, channels)),
        B=(inputs.B, (*leading, width)),
        state=(state, (leading[0], width, channels)),
    )
