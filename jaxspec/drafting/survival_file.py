"""Survival that was measured: the file that `jaxspec tune survival` writes.

    {"format": .., "curves": {"rsd-s:16": {"estimate": [..], "share": [..]}, ..},
     "acceptance": [{"estimate": [..], "share": [..]}, ..], ..}

A curve for the scores of each drafter, and one for each rank of children that were drawn
without replacement: what a token's probability among those left has come to.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from jaxspec import digests, files
from jaxspec.drafting import survival
from jaxspec.drafting.survival import Curve

_FORMAT = "jaxspec survival 1"


def save(
    path: str | os.PathLike,
    curves: Mapping[str, Curve],
    acceptance: Sequence[Curve],
    **more: Any,
) -> None:
    """Writes a file that `load_curve` and `load_acceptance` read.

    Args:
        path: of the JSON file.
        curves: of the scores of drafters, by `KIND:SHAPE`.
        acceptance: of each rank, perhaps none.
        **more: anything else worth knowing, which the others do not look at.
    """
    record = {
        "format": _FORMAT,
        **more,
        "curves": {name: curve._asdict() for name, curve in curves.items()},
        "acceptance": [curve._asdict() for curve in acceptance],
    }
    files.write_text(path, digests.seal(record))


def load_curve(path: str | os.PathLike, drafter: str) -> Curve:
    """Reads the curve of a drafter, as `survival.calibrated` takes it.

    Args:
        path: of a file that `jaxspec tune survival` wrote.
        drafter: `KIND:SHAPE`.

    Raises:
        ValueError: if the file is damaged, or has no curve of that drafter.
    """
    curves, _ = _load(path)
    if drafter not in curves:
        raise ValueError(f"{path} has curves of {sorted(curves)}, not of {drafter}.")
    return curves[drafter]


def load_acceptance(path: str | os.PathLike) -> tuple[Curve, ...]:
    """Reads the curves of each rank, as `dyspec` takes them.

    Args:
        path: of a file that `jaxspec tune survival` wrote.

    Raises:
        ValueError: if the file is damaged, or nothing was drawn without replacement.
    """
    _, acceptance = _load(path)
    if not acceptance:
        raise ValueError(
            f"{path} has no curves of ranks: none of its drafters drew without replacement."
        )
    return acceptance


def _load(path: str | os.PathLike) -> tuple[dict[str, Curve], tuple[Curve, ...]]:
    record = digests.unseal(path, _FORMAT)
    try:
        curves = {name: _curve(found) for name, found in record["curves"].items()}
        return curves, tuple(_curve(found) for found in record["acceptance"])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds no curves: {files.one_line(error)}.") from None


def _curve(found: Mapping[str, Any]) -> Curve:
    return survival.check(Curve(found["estimate"], found["share"]))
