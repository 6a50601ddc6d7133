"""Log decays of base 2 in TPU kernels, and their sums over the paths of a tree.

A path sum has two parts (`digits`) where activations are float32: digits that two long
paths have in common cancel exactly. Beside bfloat16 activations it has one, rounded once to
float32: its error, 2^-24 of a sum above -2^16, stays below that of weights in bfloat16, and
a second part would cost a tenth more instructions.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.gated import tpu_lanes
from pallas_kernels.gated.digits import LEAST, cut


def log_decays(steps: jax.Array, rates: Any) -> jax.Array:
    """`log2` of the decay of every token, `[T, H]`, never above 0."""
    scale = math.log2(math.e)
    for rate in rates:
        scale = rate[...] * scale
    return jnp.clip(steps * scale, LEAST, 0.0)


def sum_parts(dtype: Any) -> int:
    """Parts of a path sum beside activations of a dtype."""
    return 2 if dtype == jnp.float32 else 1


def path_sums(shape: Any, operands: Any) -> list[jax.Array]:
    """Sums `L_i` over the paths to all nodes, `[N, H]`, in one part or two.

    Args:
        shape: `tpu_blocks.BlockShape`.
        operands: `tpu_step.Operands`.
    """
    steps = tpu_lanes.pad_rows(operands.steps[...], shape.padded)
    found = cut(log_decays(steps, operands.rates))
    count = sum_parts(operands.keys.dtype)
    coarse, fine = (
        tpu_lanes.mask_sums(operands.mask[...], part, digits)
        for part, digits in zip(found, (2, count), strict=True)
    )
    return [coarse, fine] if count == 2 else [coarse + fine]


def decays(path: list[jax.Array], above: list[jax.Array]) -> jax.Array:
    """`exp2(L_i - L_j)` on paths, from parts; off them something finite, at most 1."""
    differences = [below - above for below, above in zip(path, above, strict=True)]
    return jnp.exp2(jnp.minimum(sum(differences), 0.0))
