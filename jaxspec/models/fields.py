"""Checks of the fields of a config."""

from typing import Any

from jaxspec import checks


def positive(config: Any, *names: str) -> None:
    """Requires fields to be above zero."""
    for name in names:
        value = getattr(config, name)
        checks.require(value > 0, f"{name} must be positive, got {value}.")


def not_negative(config: Any, *names: str) -> None:
    """Requires fields to be zero or above."""
    for name in names:
        value = getattr(config, name)
        checks.require(value >= 0, f"{name} must not be negative, got {value}.")


def one_of(config: Any, name: str, *choices: str) -> None:
    """Requires a field to be one of some words."""
    value = getattr(config, name)
    checks.require(value in choices, f"{name} must be one of {choices}, got {value!r}.")
