"""The only place that asks which implementation of an op to run."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax

Implementation = Literal["reference", "xla", "cpu"]

PLATFORMS = ("cpu",)
"""Implementations named after the platform they serve; all others serve all."""


def dispatch(
    implementations: Mapping[str, Callable[..., Any]],
    implementation: Implementation | None,
    *args: Any,
) -> Any:
    """Calls the implementation asked for, or the one fit for the platform.

    XLA serves every platform, and an implementation named after a platform is preferred
    there. The choice is made when the program is lowered, not when it is traced: it is
    right under `jax.export` and inside loops. Arguments that are not arrays are static.
    """
    if implementation is not None:
        if implementation not in implementations:
            raise ValueError(
                f"Unknown implementation {implementation!r}; expected one of "
                f"{sorted(implementations)}."
            )
        return implementations[implementation](*args)
    fit = {name: f for name, f in implementations.items() if name in PLATFORMS}
    if not fit:
        return implementations["xla"](*args)
    leaves, structure = jax.tree.flatten(args)
    dynamic = [i for i, leaf in enumerate(leaves) if hasattr(leaf, "shape")]

    def over_arrays(f):
        def call(*arrays):
            whole = list(leaves)
            for i, array in zip(dynamic, arrays, strict=True):
                whole[i] = array
            return f(*structure.unflatten(whole))

        return call

    return jax.lax.platform_dependent(
        *(leaves[i] for i in dynamic),
        default=over_arrays(implementations["xla"]),
        **{name: over_arrays(f) for name, f in fit.items()},
    )


def default_first(implementations: Mapping[str, Any]) -> list[str]:
    """Names of implementations: those of a platform, then XLA, then the definition."""
    order = (*PLATFORMS, "xla", "reference")
    return sorted(implementations, key=order.index)
