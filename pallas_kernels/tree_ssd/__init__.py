"""Mamba-2 along the paths of a token tree.

`B` batch, `N` nodes, `n` queried nodes, `H` heads of width `P`, `E = H P` channels, `S`
state width, `G` groups of heads that share keys and queries. States, step sizes and sums
are float32. With a `layer`, `state` and the ring's inputs are those of `L` layers,
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
from pallas_kernels.tree_ssd import pallas_gpu, pallas_tpu, reference, xla

_MODULES = {
    "reference": reference,
    "xla": xla,
    "pallas_tpu": pallas_tpu,
    "pallas_gpu": pallas_gpu,
}


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
    implementation: _dispatch.Implementation | None = None,
) -> jax.Array:
    """Reads the state at the last `n` nodes of a tree without forming it.

    Args:
        tree: topology of the `N` nodes.
        inputs: records of the `N` nodes.
        A: `[H]` float32, negative.
        C: `[B, n, G S]` queries of the last `n` nodes.
        D: `[H]` or `[E]` float32, the skip connection.
        state: `[B, H, P, S]` float32, before the ring and the root.
        ring: the tokens between `state` and the root, if there are any.
        layer: index of the layer that is meant; None if there is one.
        implementation: `None` picks the fastest for the platform.

    Returns:
        `[B, n, E]` float32 outputs.

    Raises:
        ValueError: if the shapes disagree.
    """
    args, parts = _arguments(tree, inputs, A, C, D, state, ring, layer=layer)
    op = _op("read", inputs, args[-1].state)
    return _dispatch.dispatch(op, implementation, parts, *args)


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
    implementation: _dispatch.Implementation | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Reads the state at all nodes, and folds the ring into it in some rows.

    Kernels read the state once, and write it in those rows only. They write in place: a
    state that is used again afterwards costs a copy.

    Args:
        tree: as in `read`.
        inputs: as in `read`.
        A: as in `read`.
        C: `[B, N, G S]` queries of all nodes.
        D: as in `read`.
        state: as in `read`.
        ring: as in `read`.
        fold: `[B]` bool, the rows whose ring is to be folded.
        layer: as in `read`.
        implementation: as in `read`.

    Returns:
        `[B, N, E]` float32 outputs, and the state in the shape that it came in.
    """
    args, parts = _arguments(tree, inputs, A, C, D, state, ring, layer=layer, fold=fold)
    check_shapes(C=(C, (*tree.parents.shape, C.shape[2])))
    check_shapes(fold=(fold, tree.parents.shape[:1]))
    op = _op("verify", inputs, args[-1].state)
    y, states = _dispatch.dispatch(op, implementation, parts, *args)
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
        state: `[B, H, P, S]` float32.
        A: `[H]` float32, negative.
        inputs: records of `T` tokens.
        implementation: `None` picks the fastest for the platform.

    Returns:
        `[B, H, P, S]` float32 state after the last token.
    """
    _check_inputs(inputs, A, state, inputs.x.shape[:2])
    _, states, rates, records = stacked.make(None, state, A, inputs)
    op, parts = _op("fold", inputs, states), _parts(inputs, state)
    return _dispatch.dispatch(op, implementation, parts, states, rates, records)[0]


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
        state: `[B, H, P, S]` float32, before the root.
        known: `[B, m, H, P, S]` states of the nodes before these, if there are any.
        implementation: `None` picks the fastest for the platform.

    Returns:
        `[B, n, H, P, S]` float32 states.
    """
    _check_inputs(inputs, A, state, parents.shape)
    if known is None:
        known = jnp.zeros((state.shape[0], 0, *state.shape[1:]), state.dtype)
    op = _op("node_states", inputs, state[None])
    parts = _parts(inputs, state)
    return _dispatch.dispatch(
        op, implementation, parts, parents, inputs, A, state, known
    )


def implementations() -> list[str]:
    """The implementations there are, those made for a platform first."""
    return _dispatch.names(_MODULES)


def _op(name: str, inputs: Inputs, state: jax.Array) -> _dispatch.Op:
    """What an op's arrays hold; a single group of keys belongs to all heads."""
    groups = inputs.B.shape[-1] // state.shape[-1]
    key = Layout(ROWS, None, HEADS if groups > 1 else None)
    rows, heads, node = Layout(ROWS), Layout(HEADS), Layout(ROWS, None, HEADS)
    inputs = Inputs(node, node, key)
    states = Layout(LAYERS, ROWS, HEADS)
    records = Inputs(*(Layout(LAYERS, *layout) for layout in inputs))
    past = Past(states, Ring(records, rows), rows, Layout())
    tree = rows, inputs, heads, key, heads, past
    if name == "read":
        return _dispatch.op(name, _MODULES, tree, node)
    if name == "verify":
        return _dispatch.op(name, _MODULES, tree, (node, states))
    if name == "fold":
        layouts = states, Layout(LAYERS, HEADS), records
        return _dispatch.op(name, _MODULES, layouts, states, merge=LAYERS)
    one, several = Layout(ROWS, HEADS), Layout(ROWS, None, HEADS)
    layouts = rows, inputs, heads, one, several
    return _dispatch.op(name, _MODULES, layouts, several)


def _parts(inputs: Inputs, state: jax.Array) -> int:
    """Into how many equal parts the heads can be cut: whole groups."""
    heads, width = state.shape[-3], state.shape[-1]
    groups = inputs.B.shape[-1] // width
    return groups if groups > 1 else heads


def _arguments(
    tree, inputs, A, C, D, state, ring, *, layer, fold=None
) -> tuple[list, int]:
    """What `read` and `verify` share: checked, stacked, the skip per channel."""
    one = stacked.shapes(state, layer)
    batch, num_nodes = tree.parents.shape
    _check_inputs(inputs, A, one, (batch, num_nodes))
    queries, heads, channels = C.shape[1], A.shape[0], inputs.x.shape[2]
    check_shapes(C=(C, (batch, queries, inputs.B.shape[2])))
    if queries > num_nodes or D.shape not in ((heads,), (channels,)):
        raise ValueError(
            f"Expected at most {num_nodes} queries and D ({heads},) or ({channels},), "
            f"got {queries} queries and D {D.shape}."
        )
    if ring is not None:
        records = stacked.shapes(ring.inputs, layer)
        _check_inputs(records, A, one, (batch, records.x.shape[1]))
        check_shapes(
            ring_B=(records.B, (*records.B.shape[:2], inputs.B.shape[2])),
            ring_length=(ring.length, (batch,)),
        )
    D = jnp.repeat(D.astype(state.dtype), channels // D.shape[0])
    past = Past.of(state, ring, layer=layer, fold=fold)
    return [tree, inputs, A, C, D, past], _parts(inputs, one)


def _check_inputs(
    inputs: Inputs, A: jax.Array, state: jax.Array, leading: tuple[int, ...]
) -> None:
    """Records `[*leading, ...]` that fit a state `[B, H, P, S]`."""
    heads, dim, width = state.shape[1:]
    groups = inputs.B.shape[2] // width
    check_shapes(
        A=(A, (heads,)),
        x=(inputs.x, (*leading, heads * dim)),
        dt=(inputs.dt, (*leading, heads)),
        B=(inputs.B, (*leading, groups * width)),
        state=(state, (leading[0], heads, dim, width)),
    )
    if groups == 0 or heads % groups:
        raise ValueError(f"{groups} groups do not divide {heads} heads.")
