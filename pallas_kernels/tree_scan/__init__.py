"""Mamba-1 along the paths of a token tree.

`B` batch, `N` nodes, `n` queried nodes, `E` channels, `S` state width. States and step
sizes are float32.
"""

import jax
import jax.numpy as jnp

from pallas_kernels import _dispatch
from pallas_kernels._shapes import check_shapes
from pallas_kernels.inputs import Inputs
from pallas_kernels.topology import Topology
from pallas_kernels.tree_scan import reference, xla

_READ = {"reference": reference.read, "xla": xla.read}
_STATES = {"reference": reference.node_states, "xla": xla.node_states}
_FOLD = {"reference": reference.fold, "xla": xla.fold}
_CHAIN = {"reference": reference.read_chain, "xla": xla.read_chain}


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
    """Reads the state at the last `n` nodes of a tree.

    Args:
        tree: topology of the `N` nodes.
        inputs: records of the `N` nodes.
        A: `[E, S]` float32, negative.
        C: `[B, n, S]` queries of the last `n` nodes.
        D: `[E]` float32, the skip connection.
        state: `[B, E, S]` float32, before the ring and the root.
        ring: records of the tokens between `state` and the root, oldest first; unused
            slots hold zeros.
        implementation: `None` picks the fastest for the platform.

    Returns:
        `[B, n, E]` float32 outputs.

    Raises:
        ValueError: if the shapes disagree.
    """
    batch, num_nodes = tree.parents.shape
    _check_inputs(inputs, A, state, (batch, num_nodes))
    check_shapes(C=(C, (batch, C.shape[1], A.shape[1])), D=(D, A.shape[:1]))
    if C.shape[1] > num_nodes:
        raise ValueError(f"Expected at most {num_nodes} queries, got {C.shape[1]}.")
    if ring is not None:
        _check_inputs(ring, A, state, (batch, ring.x.shape[1]))
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
        state: `[B, E, S]` float32, before the root.
        known: `[B, m, E, S]` states of the nodes before these, if there are any.
        implementation: `None` picks the fastest for the platform.

    Returns:
        `[B, n, E, S]` float32 states.
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
        state: `[B, E, S]` float32.
        A: `[E, S]` float32, negative.
        inputs: records of `T` tokens; records of zeros change nothing.
        implementation: `None` picks the fastest for the platform.

    Returns:
        `[B, E, S]` float32 state after the last token.
    """
    _check_inputs(inputs, A, state, inputs.x.shape[:2])
    return _dispatch.dispatch(_FOLD, implementation, state, A, inputs)


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

    Holds `[B, T, E, S]` states at once: cut long sequences into chunks.

    Args:
        inputs: records of `T` tokens.
        A: `[E, S]` float32, negative.
        C: `[B, T, S]` queries.
        D: `[E]` float32, the skip connection.
        state: `[B, E, S]` float32, before the first token.
        implementation: `None` picks the fastest for the platform.

    Returns:
        `[B, T, E]` float32 outputs and the `[B, E, S]` float32 state after the chain.
    """
    leading = inputs.x.shape[:2]
    _check_inputs(inputs, A, state, leading)
    check_shapes(C=(C, (*leading, A.shape[1])), D=(D, A.shape[:1]))
    return _dispatch.dispatch(_CHAIN, implementation, inputs, A, C, D, state)


def _check_inputs(
    inputs: Inputs, A: jax.Array, state: jax.Array, leading: tuple[int, ...]
) -> None:
    """Records `[*leading, ...]` that fit a state `[B, E, S]`."""
    channels, width = state.shape[1:]
    check_shapes(
        A=(A, (channels, width)),
        x=(inputs.x, (*leading, channels)),
        dt=(inputs.dt, (*leading, channels)),
        B=(inputs.B, (*leading, width)),
        state=(state, (leading[0], channels, width)),
    )


def implementations() -> list[str]:
    """The implementations there are, the default first."""
    return _dispatch.default_first(_READ)
