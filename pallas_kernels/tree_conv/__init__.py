"""The short causal convolution of Mamba along the paths of a token tree."""

import jax

from pallas_kernels import _dispatch
from pallas_kernels._dispatch import HEADS, ROWS, Layout
from pallas_kernels._shapes import check_shapes
from pallas_kernels.tree_conv import pallas_gpu, pallas_tpu, reference, xla

_MODULES = {
    "reference": reference,
    "xla": xla,
    "pallas_tpu": pallas_tpu,
    "pallas_gpu": pallas_gpu,
}
_NODE = Layout(ROWS, None, HEADS)
_LAYOUTS = Layout(ROWS), _NODE, _NODE, Layout(None, HEADS), Layout(HEADS)
_CONVOLVE = _dispatch.op("convolve", _MODULES, _LAYOUTS, _NODE)


def convolve(
    window: jax.Array,
    inputs: jax.Array,
    tail: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    *,
    parts: int | None = None,
    implementation: _dispatch.Implementation | None = None,
) -> jax.Array:
    """Convolves every node with the last tokens of its own path.

    Args:
        window: `[B, n, K]` int32, rows of `concatenate([tail, inputs])` that each of `n`
            nodes looks at, oldest first; see `windows`.
        inputs: `[B, N, E]` inputs of the nodes.
        tail: `[B, K - 1, E]` inputs before the root, oldest first.
        weight: `[K, E]`, one filter per channel, the last tap on the node itself.
        bias: `[E]`.
        parts: how many equal parts a mesh can cut the channels into; `E` by default.
        implementation: `None` picks the fastest for the platform.

    Returns:
        `[B, n, E]` outputs, no activation applied, in the inputs' dtype.

    Raises:
        ValueError: if the shapes disagree.
    """
    (batch, queries), (width, channels) = window.shape[:2], weight.shape
    check_shapes(
        window=(window, (batch, queries, width)),
        inputs=(inputs, (batch, inputs.shape[1], channels)),
        tail=(tail, (batch, width - 1, channels)),
        bias=(bias, (channels,)),
    )
    parts = parts or channels
    return _dispatch.dispatch(
        _CONVOLVE, implementation, parts, window, inputs, tail, weight, bias
    )


def implementations() -> list[str]:
    """The implementations there are, those made for a platform first."""
    return _dispatch.names(_MODULES)
