"""Models and sizes of an engine, by which its programs are compiled."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxspec import checks, loop_checks, pasts, prefill, sharding, stepping
from jaxspec.core import Drafter, LanguageModel, Params, Verifier
from jaxspec.sharding import Layout


@dataclasses.dataclass(frozen=True)
class Machinery:
    """Models and sizes of an engine; equal settings are equal.

    Attributes:
        target: the model whose law is kept.
        drafter: what proposes.
        verifier: what decides.
        rows: numbers of texts that are decoded side by side, ascending.
        nodes: numbers of nodes that a step verifies, the root included, ascending; the
            last is the drafter's own, and 1 is a step without drafts.
        max_length: the most tokens of a text, prompt and output.
        chunk: tokens of a prompt that are absorbed at a time.
        rounds: steps on the device, at most, without a word to the host.
        num_stops: stops of a request at most.
        layout: where arrays go on a mesh; None without one.
    """

    target: LanguageModel
    drafter: Drafter
    verifier: Verifier
    rows: tuple[int, ...]
    nodes: tuple[int, ...]
    max_length: int
    chunk: int
    rounds: int
    num_stops: int
    layout: Layout | None = None

    @property
    def num_rows(self) -> int:
        """Texts that are decoded side by side at most."""
        return self.rows[-1]

    @property
    def num_nodes(self) -> int:
        """Slots of a draft."""
        return self.nodes[-1]

    @property
    def width(self) -> int:
        """Columns of `DecodeState.tokens`."""
        return self.max_length + self.target.max_path

    def put(self, tree: Any) -> Any:
        """Puts a past, a state or what the host says where it goes on the devices."""
        if self.layout is None:
            return jax.device_put(tree)
        return sharding.put(tree, self.layout.of(tree))

    def put_integer(self, value: int) -> jax.Array:
        """Puts a number on the devices."""
        return self.put(np.int32(value))


def make_machinery(
    params: Params,
    *,
    target: LanguageModel,
    drafter: Drafter,
    verifier: Verifier,
    rows: tuple[int, ...],
    nodes: tuple[int, ...],
    layout: Layout | None = None,
    **sizes: int,
) -> Machinery:
    """Checks what an engine is to be made of; the fields are those of `Machinery`.

    Args:
        params: of the target and the drafter.
        target: the model.
        drafter: what proposes.
        verifier: what decides.
        rows: in any order.
        nodes: besides the drafter's own.
        layout: where arrays go on a mesh, where `params` are.
        **sizes: the others; `max_length` is rounded up, and a chunk fits in it.

    Raises:
        ValueError: on sizes out of range, or machinery that does not fit together.
        TypeError: on what is not a record.
    """
    loop_checks.records(target=target, drafter=drafter, verifier=verifier)
    checks.machinery(params, target, drafter)
    loop_checks.paths(drafter.max_path, target)
    checks.arrays("params", params)
    found = {name: checks.integer(name, n, least=1) for name, n in sizes.items()}
    found["max_length"] = pasts.room(found["max_length"], target)
    most = max(found["max_length"] - target.max_path, 1)
    found["chunk"] = min(found["chunk"], most)
    num_nodes = num_slots(params, target=target, drafter=drafter)
    rows = _sizes("rows", rows)
    for size in rows if layout is not None else ():
        layout.check_rows(size)
    return Machinery(
        target=target,
        drafter=drafter,
        verifier=verifier,
        rows=rows,
        nodes=_sizes("nodes", (*nodes, num_nodes), num_nodes),
        layout=layout,
        **found,
    )


def num_slots(params: Params, *, target: LanguageModel, drafter: Drafter) -> int:
    """Slots of a drafter's trees, the root included."""

    def propose(params):
        state = prefill.empty_state(params, 1, 8, target=target, drafter=drafter)
        return stepping.propose(params, state, drafter=drafter)[1].tree.parents

    return jax.eval_shape(propose, params).shape[1]


def _sizes(name: str, sizes: Sequence[int], most: int | None = None) -> tuple[int, ...]:
    """Sizes in ascending order, checked."""
    found = sorted({checks.integer(name, size, least=1) for size in sizes})
    checks.require(len(found) > 0, f"Expected at least one number of {name}, got none.")
    checks.require(
        most is None or found[-1] == most,
        f"Expected {name} of at most {most}, which the drafter proposes, got {found}.",
    )
    return tuple(found)
