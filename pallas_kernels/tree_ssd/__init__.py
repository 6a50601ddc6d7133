"""Mamba-2 along the paths of a token tree.

`B` batch, `N` nodes, `n` queried nodes, `H` heads of width `P`, `S` state width, `G`
groups of heads that share keys and queries. States, step sizes and sums are float32.
"""

import jax
import jax.numpy as jnp

from pallas_kernels import _dispatch
from pallas_kernels._shapes import check_shapes
from pallas_kernels.inputs import Inputs
from pallas_kernels.topology import Topology
from pallas_kernels.tree_ssd import reference, xla

_READ = {"reference": reference.read, "xla": xla.read}
_STATES = {"reference": reference.node_states, "xla": xla.node_states}
_FOLD = {"reference": reference.fold, "xla": xla.fold}


def read(
    tree: Topology,
    inputs: Inputs,
    A: jax.Array,
    C: jax.Array,
    D: jax.Array,
    state: jax.Array,
    ring: Inputs | None = None,
    *,
    implementation: _dispatch.Implementation | None = None,
) -> jax.Array:
    """Reads the state at the last `n` nodes of a tree without forming it.

    Args:
        tree: topology of the `N` nodes.
        inputs: records of the `N` nodes.
        A: `[H]` float32, negative.
        C: `[B, n, G, S]` queries of the last `n` nodes.
        D: `[H]` or `[H, P]` float32, the skip connection.
        state: `[B, H, P, S]` float32, before the ring and the root.
        ring: records of the tokens between `state` and the root, oldest first; unused
            slots hold zeros.
        implementation: `None` picks the fastest for the platform.

    Returns:
        `[B, n, H, P]` float32 outputs.

    Raises:
        ValueError: if the shapes disagree.
    """
    batch, num_nodes = tree.parents.shape
    _check_inputs(inputs, A, state, (batch, num_nodes))
    groups, width = inputs.B.shape[2:]
    check_shapes(C=(C, (batch, C.shape[1], groups, width)))
    if C.shape[1] > num_nodes or D.shape not in (A.shape, state.shape[1:3]):
        raise ValueError(
            f"Expected at most {num_nodes} queries and D {A.shape} or "
            f"{state.shape[1:3]}; got {C.shape[1]} and {D.shape}."
        )
    if ring is not None:
        _check_inputs(ring, A, state, (batch, ring.x.shape[1]))
        check_shapes(ring_B=(ring.B, (*ring.B.shape[:2], groups, width)))
    heads = A.shape[0]
    D = jnp.broadcast_to(D.reshape(heads, -1), inputs.x.shape[2:]).astype(state.dtype)
    return _dispatch.dispatch(_READ, implementation, tree, inputs, A, C, D, state, ring)


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
    return _dispatch.dispatch(_STATES, implementation, parents, inputs, A, state, known)


def fold(
    state: jax.Array,
    A: jax.Array,
    inputs: Inputs,
    *,
    implementation: _dispatch.Implementation | None = None,
) -> jax.Array:
    """Advances a state over a chain of tokens, oldest first.

    Args:
        state: `[B, H, P, S]` float32.
        A: `[H]` float32, negative.
        inputs: records of `T` tokens; records of zeros change nothing.
        implementation: `None` picks the fastest for the platform.

    Returns:
        `[B, H, P, S]` float32 state after the last token.
    """
    _check_inputs(inputs, A, state, inputs.x.shape[:2])
    return _dispatch.dispatch(_FOLD, implementation, state, A, inputs)


def _check_inputs(
    inputs: Inputs, A: jax.Array, state: jax.Array, leading: tuple[int, ...]
) -> None:
    """Records `[*leading, ...]` that fit a state `[B, H, P, S]`."""
    heads, dim, width = state.shape[1:]
    groups = inputs.B.shape[2]
    check_shapes(
        A=(A, (heads,)),
        x=(inputs.x, (*leading, heads, dim)),
        dt=(inputs.dt, (*leading, heads)),
        B=(inputs.B, (*leading, groups, width)),
        state=(state, (leading[0], heads, dim, width)),
    )
    if heads % groups:
        raise ValueError(f"{groups} groups do not divide {heads} heads.")


def implementations() -> list[str]:
    """The implementations there are, the default first."""
    return _dispatch.default_first(_READ)
