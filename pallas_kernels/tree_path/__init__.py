"""Keeps a path of a token tree: what its nodes left behind, in the order of the path.

`B` batch, `N` nodes, `D` nodes of a path, `W` slots of a buffer, `E` channels.
"""

import jax

from pallas_kernels import _dispatch
from pallas_kernels._dispatch import HEADS, ROWS, Layout
from pallas_kernels._shapes import check_shapes
from pallas_kernels.tree_path import reference, tpu, xla

_MODULES = {"reference": reference, "xla": xla, "tpu": tpu}
_ROW, _NODE = Layout(ROWS), Layout(ROWS, None, HEADS)
_TAKE = _dispatch.op("take", _MODULES, (_NODE, _ROW), _NODE)
_APPEND = _dispatch.op("append", _MODULES, (_NODE, _NODE, _ROW, _ROW), _NODE)


def take(
    nodes: jax.Array,
    path: jax.Array,
    *,
    parts: int | None = None,
    implementation: _dispatch.Implementation | None = None,
) -> jax.Array:
    """Gathers the nodes of a path.

    Args:
        nodes: `[B, N, E]`.
        path: `[B, D]` int32, slots of `nodes`, or -1.
        parts: how many equal parts a mesh can cut the channels into; `E` by default.
        implementation: `None` picks the fastest for the platform.

    Returns:
        `[B, D, E]`, zeros where the path is -1.

    Raises:
        ValueError: if the shapes disagree.
    """
    batch, _, channels = nodes.shape
    check_shapes(path=(path, (batch, path.shape[1])))
    return _dispatch.dispatch(_TAKE, implementation, parts or channels, nodes, path)


def append(
    buffer: jax.Array,
    nodes: jax.Array,
    path: jax.Array,
    length: jax.Array,
    *,
    parts: int | None = None,
    implementation: _dispatch.Implementation | None = None,
) -> jax.Array:
    """Appends the nodes of a path to the first `length` slots of a buffer.

    Args:
        buffer: `[B, W, E]`.
        nodes: `[B, N, E]`.
        path: `[B, D]` int32, slots of `nodes`, or -1.
        length: `[B]` int32, `length + D` must not exceed `W`.
        parts: how many equal parts a mesh can cut the channels into; `E` by default.
        implementation: `None` picks the fastest for the platform.

    Returns:
        The buffer; its slots from `length` on hold `take(nodes, path)`.

    Raises:
        ValueError: if the shapes disagree.
    """
    batch, _, channels = nodes.shape
    check_shapes(
        buffer=(buffer, (batch, buffer.shape[1], channels)),
        path=(path, (batch, path.shape[1])),
        length=(length, (batch,)),
    )
    parts = parts or channels
    return _dispatch.dispatch(
        _APPEND, implementation, parts, buffer, nodes, path, length
    )


def implementations() -> list[str]:
    """The implementations there are, those made for a platform first."""
    return _dispatch.names(_MODULES)
