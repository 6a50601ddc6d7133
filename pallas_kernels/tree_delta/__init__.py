"""The gated delta rule along the paths of a token tree.

    S' = exp(g) S_parent        u = beta (v - S' k)        S = S' + u k^T        y = S q

`B` batch, `N` nodes, `n` new nodes, `H` heads of width `P`, `E = H P` channels, `S` state
width, `G` groups of heads that share keys and queries. States, decays, `beta`, `u` and all
that is solved are float32. With a `layer`, `state` and the ring's inputs are those of `L`
layers, `[L, B, ...]`, and that one is meant.
"""

import jax
import jax.numpy as jnp

from pallas_kernels import _dispatch, stacked
from pallas_kernels._dispatch import HEADS, LAYERS, ROWS, Layout
from pallas_kernels._shapes import check_shapes
from pallas_kernels.inputs import DeltaInputs, Ring
from pallas_kernels.past import Past
from pallas_kernels.topology import Topology
from pallas_kernels.tree_delta import pallas_gpu, pallas_tpu, reference, xla

_MODULES = {
    "reference": reference,
    "xla": xla,
    "pallas_tpu": pallas_tpu,
    "pallas_gpu": pallas_gpu,
}


def read(
    tree: Topology,
    inputs: DeltaInputs,
    beta: jax.Array,
    q: jax.Array,
    state: jax.Array,
    ring: Ring | None = None,
    *,
    layer: jax.Array | None = None,
    implementation: _dispatch.Implementation | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Solves for what the last `n` nodes of a tree write, and reads the state at them.

    Args:
        tree: topology of the `N` nodes.
        inputs: records of the `N` nodes; those of the last `n` hold `v` in place of `u`.
        beta: `[B, n, H]` float32, how much of what a key finds is replaced, in [0, 2].
        q: `[B, n, G S]` queries of the last `n` nodes.
        state: `[B, H, P, S]` float32, before the ring and the root.
        ring: the tokens between `state` and the root, if there are any.
        layer: index of the layer that is meant; None if there is one.
        implementation: `None` picks the fastest for the platform.

    Returns:
        `u` `[B, n, E]` float32, which completes the records of these nodes, and the
        outputs `[B, n, E]` float32.

    Raises:
        ValueError: if the shapes disagree.
    """
    args, parts = _arguments(tree, inputs, beta, q, state, ring, layer=layer)
    op = _op("read", inputs, args[-1].state)
    return _dispatch.dispatch(op, implementation, parts, *args)


def verify(
    tree: Topology,
    inputs: DeltaInputs,
    beta: jax.Array,
    q: jax.Array,
    state: jax.Array,
    ring: Ring,
    fold: jax.Array,
    *,
    layer: jax.Array | None = None,
    implementation: _dispatch.Implementation | None = None,
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """Solves and reads all nodes, and folds the ring into the state in some rows.

    Kernels read the state once, and write it in those rows only. They write in place: a
    state that is used again afterwards costs a copy.

    Args:
        tree: as in `read`.
        inputs: records of the nodes, all of which hold `v` in place of `u`.
        beta: `[B, N, H]` float32, of all nodes.
        q: `[B, N, G S]` queries of all nodes.
        state: as in `read`.
        ring: as in `read`.
        fold: `[B]` bool, the rows whose ring is to be folded.
        layer: as in `read`.
        implementation: as in `read`.

    Returns:
        What `read` returns, and the state in the shape that it came in.
    """
    args, parts = _arguments(tree, inputs, beta, q, state, ring, layer=layer, fold=fold)
    check_shapes(q=(q, (*tree.parents.shape, q.shape[2])))
    check_shapes(fold=(fold, tree.parents.shape[:1]))
    op = _op("verify", inputs, args[-1].state)
    read, states = _dispatch.dispatch(op, implementation, parts, *args)
    return read, states.reshape(state.shape)


def fold(
    state: jax.Array,
    inputs: DeltaInputs,
    *,
    implementation: _dispatch.Implementation | None = None,
) -> jax.Array:
    """Advances a state over a chain of tokens, oldest first.

    Kernels write in place: a state that is used again afterwards costs a copy.

    Args:
        state: `[B, H, P, S]` float32.
        inputs: complete records of `T` tokens.
        implementation: `None` picks the fastest for the platform.

    Returns:
        `[B, H, P, S]` float32 state after the last token.
    """
    _check_inputs(inputs, state, inputs.u.shape[:2])
    _, states, records = stacked.make(None, state, inputs)
    op, parts = _op("fold", inputs, states), _parts(inputs, state)
    return _dispatch.dispatch(op, implementation, parts, states, records)[0]


def node_states(
    parents: jax.Array,
    inputs: DeltaInputs,
    beta: jax.Array,
    state: jax.Array,
    known: jax.Array | None = None,
    *,
    implementation: _dispatch.Implementation | None = None,
) -> jax.Array:
    """Computes the state at every one of `n` nodes.

    Args:
        parents: `[B, n]` int32, slots among the `m` known nodes and the `n` new ones.
        inputs: records of the `n` nodes, which hold `v` in place of `u`.
        beta: `[B, n, H]` float32.
        state: `[B, H, P, S]` float32, before the root.
        known: `[B, m, H, P, S]` states of the nodes before these, if there are any.
        implementation: `None` picks the fastest for the platform.

    Returns:
        `[B, n, H, P, S]` float32 states.
    """
    _check_inputs(inputs, state, parents.shape)
    check_shapes(beta=(beta, inputs.g.shape))
    if known is None:
        known = jnp.zeros((state.shape[0], 0, *state.shape[1:]), state.dtype)
    op = _op("node_states", inputs, state[None])
    parts = _parts(inputs, state)
    return _dispatch.dispatch(
        op, implementation, parts, parents, inputs, beta, state, known
    )


def implementations() -> list[str]:
    """The implementations there are, those made for a platform first."""
    return _dispatch.names(_MODULES)


def _op(name: str, inputs: DeltaInputs, state: jax.Array) -> _dispatch.Op:
    """What an op's arrays hold; a single group of keys belongs to all heads."""
    groups = inputs.k.shape[-1] // state.shape[-1]
    key = Layout(ROWS, None, HEADS if groups > 1 else None)
    rows, node = Layout(ROWS), Layout(ROWS, None, HEADS)
    inputs = DeltaInputs(node, node, key)
    states = Layout(LAYERS, ROWS, HEADS)
    records = DeltaInputs(*(Layout(LAYERS, *layout) for layout in inputs))
    past = Past(states, Ring(records, rows), rows, Layout())
    tree = rows, inputs, node, key, past
    if name == "read":
        return _dispatch.op(name, _MODULES, tree, (node, node))
    if name == "verify":
        return _dispatch.op(name, _MODULES, tree, ((node, node), states))
    if name == "fold":
        layouts = states, records
        return _dispatch.op(name, _MODULES, layouts, states, merge=LAYERS)
    one, several = Layout(ROWS, HEADS), Layout(ROWS, None, HEADS)
    layouts = rows, inputs, node, one, several
    return _dispatch.op(name, _MODULES, layouts, several)


def _parts(inputs: DeltaInputs, state: jax.Array) -> int:
    """Into how many equal parts the heads can be cut: whole groups."""
    heads, width = state.shape[-3], state.shape[-1]
    groups = inputs.k.shape[-1] // width
    return groups if groups > 1 else heads


def _arguments(
    tree, inputs, beta, q, state, ring, *, layer, fold=None
) -> tuple[list, int]:
    """What `read` and `verify` share: checked and stacked."""
    one = stacked.shapes(state, layer)
    batch, num_nodes = tree.parents.shape
    _check_inputs(inputs, one, (batch, num_nodes))
    new = q.shape[1]
    check_shapes(
        q=(q, (batch, new, inputs.k.shape[2])),
        beta=(beta, (batch, new, inputs.g.shape[2])),
    )
    if new > num_nodes:
        raise ValueError(f"Expected at most {num_nodes} queries, got {new}.")
    if ring is not None:
        records = stacked.shapes(ring.inputs, layer)
        _check_inputs(records, one, (batch, records.u.shape[1]))
        check_shapes(
            ring_k=(records.k, (*records.k.shape[:2], inputs.k.shape[2])),
            ring_length=(ring.length, (batch,)),
        )
    past = Past.of(state, ring, layer=layer, fold=fold)
    return [tree, inputs, beta, q, past], _parts(inputs, one)


def _check_inputs(
    inputs: DeltaInputs, state: jax.Array, leading: tuple[int, ...]
) -> None:
    """Records `[*leading, ...]` that fit a state `[B, H, P, S]`."""
    heads, dim, width = state.shape[1:]
    groups = inputs.k.shape[2] // width
    check_shapes(
        u=(inputs.u, (*leading, heads * dim)),
        g=(inputs.g, (*leading, heads)),
        k=(inputs.k, (*leading, groups * width)),
        state=(state, (leading[0], heads, dim, width)),
    )
    if groups == 0 or heads % groups:
        raise ValueError(f"{groups} groups do not divide {heads} heads.")
