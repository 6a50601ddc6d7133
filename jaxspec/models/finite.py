"""Keeps what is not finite in one node of a tree from the nodes beside it.

Nodes meet in products with masks, where a node counts zero times for all that must not see
it, and zero times NaN is NaN. So a mixer shields its nodes: others are given zeros for
what is not finite, and the node's own output is spoiled. What hangs from such a node would
then look sound, and is spoiled once, at the end of all layers.

A number counts as finite below 2^60, so that products of two are finite too. From there on
the squares of a norm overflow, and the plain recurrence makes no sense of it either.
"""

from typing import Any

import jax
import jax.numpy as jnp

LARGEST = 2.0**60


def holds(a: jax.Array) -> jax.Array:
    """Tells finite numbers from others."""
    return jnp.abs(a) < LARGEST


def clean(arrays: Any) -> Any:
    """Puts zeros in the place of what is not finite."""
    return jax.tree.map(lambda a: jnp.where(holds(a), a, 0), arrays)


def spoil(a: jax.Array, sound: jax.Array) -> jax.Array:
    """Puts NaN wherever it is not sound."""
    return jnp.where(sound, a, jnp.nan)


def shield(records: Any, queries: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
    """Shields what tokens do to the state of a recurrent layer.

    Args:
        records: `Inputs` or `DeltaInputs` `[B, n, ...]`.
        queries: `[B, n, ...]` of the same tokens, as wide as their keys.

    Returns:
        The records as others may see them, the queries, NaN where their tokens' keys are
        not finite, and `[B, n, E]` bool, which of the tokens' outputs are sound otherwise.
    """
    values, steps, keys = records
    width = values.shape[-1] // steps.shape[-1]
    sound = holds(values) & jnp.repeat(holds(steps), width, axis=-1)
    return clean(records), spoil(queries, holds(keys)), sound


def reach(ancestors: jax.Array, known: jax.Array, hidden: jax.Array) -> jax.Array:
    """Looks which of the last `n` nodes are finite, with all that they hang from.

    Args:
        ancestors: `[B, n, N]` bool, of these nodes, themselves included.
        known: `[B, N - n]` bool, which of the nodes before them are.
        hidden: `[B, n, C]` of these.

    Returns:
        `[B, n]` bool.
    """
    alone = jnp.concatenate([known, jnp.all(jnp.isfinite(hidden), axis=-1)], axis=1)
    return ~jnp.any(ancestors & ~alone[:, None], axis=-1)
