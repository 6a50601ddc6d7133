"""The ops on paths as products with a 0/1 matrix, for the TPU.

There XLA turns the axes of what it gathers from, and back: for the records of all layers
at once that costs several times what is moved. A product with a row that holds a single 1
is exact in every dtype, and leaves the axes where they are.
"""

import jax
import jax.numpy as jnp


def take(nodes, path):
    return _pick(nodes, path)


def append(buffer, nodes, path, length):
    slots = jnp.arange(buffer.shape[1], dtype=length.dtype)
    place = slots[None] - length[:, None]  # [B, W], along the path
    steps = jnp.arange(path.shape[1], dtype=length.dtype)
    chosen = place[..., None] == steps[None, None]
    path = jnp.sum(jnp.where(chosen, path[:, None] + 1, 0), axis=-1) - 1
    written = (place >= 0) & (place < steps.size)
    new = _pick(nodes, path).astype(buffer.dtype)
    return jnp.where(written[..., None], new, buffer)


def _pick(nodes, index):
    """Rows of `[B, N, E]` at `index` `[B, D]`, zeros where it is -1."""
    slots = jnp.arange(nodes.shape[1], dtype=index.dtype)
    one = (index[..., None] == slots[None, None]).astype(nodes.dtype)
    return jnp.einsum(
        "bdn,bne->bde",
        one,
        nodes,
        precision=jax.lax.Precision.HIGHEST,  # float32 in three parts, which add up
        preferred_element_type=nodes.dtype,
    )
