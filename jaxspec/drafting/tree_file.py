"""Trees that were measured: the file that `jaxspec tune tree` writes.

    {"format": .., "trees": [{"num_nodes": 8, "parents": [-1, 0, ..], ..}, ..], "best": 8}

One tree per budget of nodes, and the budget whose tree was the fastest where it was
measured; acceptance, times and all else that the command found stand beside.
"""

import os
from typing import Any

from jaxspec import digests, files
from jaxspec.drafting import static

_FORMAT = "jaxspec trees 2"


def save(
    path: str | os.PathLike, trees: list[dict[str, Any]], best: int, **more: Any
) -> None:
    """Writes a file that `load_tree` reads.

    Args:
        path: of the JSON file.
        trees: each with `num_nodes`, the budget, and `parents`.
        best: the budget to use where none is asked for.
        **more: anything else worth knowing, which `load_tree` does not look at.
    """
    record = {"format": _FORMAT, **more, "best": best, "trees": trees}
    files.write_text(path, digests.seal(record))


def load_tree(path: str | os.PathLike, num_nodes: int | None = None) -> tuple[int, ...]:
    """Reads the tree of a budget, as parents that `static.static_tree` takes.

    Args:
        path: of a file that `jaxspec tune tree` wrote.
        num_nodes: the budget; by default the one whose tree was the fastest.

    Raises:
        ValueError: if the file is damaged, or has no tree of that budget.
    """
    record = digests.unseal(path, _FORMAT)
    try:
        best = record["best"]
        trees = {tree["num_nodes"]: tree["parents"] for tree in record["trees"]}
        for budget, parents in trees.items():
            if parents[0] != -1 or static.static_tree(parents).num_nodes > budget:
                raise ValueError(f"this is no tree of {budget} nodes: {parents}")
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        raise ValueError(f"{path} holds no trees: {files.one_line(error)}.") from None
    budget = best if num_nodes is None else num_nodes
    if budget not in trees:
        raise ValueError(f"{path} has trees of {sorted(trees)} nodes, not of {budget}.")
    return tuple(trees[budget])


def load_acceptance(path: str | os.PathLike) -> tuple[float, ...]:
    """Reads the acceptance of each rank, as `sequoia.optimal_tree` takes it.

    Args:
        path: of a file that `jaxspec tune tree` wrote.

    Raises:
        ValueError: if the file is damaged.
    """
    record = digests.unseal(path, _FORMAT)
    try:
        acceptance = tuple(float(share) for share in record["acceptance"])
        if not acceptance or min(acceptance) < 0 or sum(acceptance) > 1:
            raise ValueError(f"these are no shares of one: {acceptance}")
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        raise ValueError(
            f"{path} holds no acceptance: {files.one_line(error)}."
        ) from None
    return acceptance
