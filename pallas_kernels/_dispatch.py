"""The only place that asks which implementation of an op to run."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

Implementation = Literal["reference", "xla"]


def dispatch(
    implementations: Mapping[str, Callable[..., Any]],
    implementation: Implementation | None,
) -> Callable[..., Any]:
    """Returns the implementation asked for, or the one fit for the platform.

    XLA serves every platform. A kernel for one platform joins the mapping under its own
    name, and is chosen here by `jax.lax.platform_dependent`, nowhere else.
    """
    name = "xla" if implementation is None else implementation
    if name not in implementations:
        raise ValueError(
            f"Unknown implementation {name!r}; expected one of {sorted(implementations)}."
        )
    return implementations[name]
