"""Counts the instructions of TPU kernels, without a TPU.

A TPU core issues one bundle of instructions per cycle at best. The table has the bundles
of the compiled kernels, per head or per token, a full ring's tokens included. These are
static counts, not measurements: waiting for memory comes on top. Columns are sizes of the
tree; `+n` says that `n` vectors are stored for want of registers in a step of the grid.

`read` has no ring, `ring` has one of `--ring` slots, `fold` folds it into the state. Lazy
rollback folds about every fifth step: that mean is `amortised`.
"""

import argparse
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from rich import console as consoles
from rich import progress
from rich import table as tables

from jaxspec.aot import cases, compile_cases, compilers
from jaxspec.aot.cases import Case
from jaxspec.cli import terminal
from jaxspec.measure import published

_MODELS = ("mamba2-2.7b", "mamba-2.8b", "nemotron-h-8b", "qwen3.5-9b")
_FOLD_EVERY = 5  # steps


class Part(NamedTuple):
    """A row of the table.

    Attributes:
        model: whose shapes.
        op: what is computed.
        name: of the variant.
        unit: what the bundles are divided by.
        arguments: of its `Case`, besides the nodes.
    """

    model: str
    op: str
    name: str
    unit: str
    arguments: dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the benchmark's options."""
    parser.add_argument(
        "--chip",
        nargs="+",
        choices=compilers.TPU,
        default=list(compilers.TPU),
        help="(default: all)",
    )
    parser.add_argument(
        "--model",
        nargs="+",
        choices=[*published.MODELS, *published.DELTA],
        default=list(_MODELS),
        help=f"whose shapes (default: {' '.join(_MODELS)})",
    )
    parser.add_argument(
        "--nodes",
        type=int,
        nargs="+",
        default=[8, 16, 64, 256],
        help="tree sizes (default: 8 16 64 256)",
    )
    parser.add_argument(
        "--ring", type=int, default=32, help="slots of the ring (default: %(default)s)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )


def run(args: argparse.Namespace) -> None:
    """Runs the benchmark."""
    for chip in args.chip:
        if reason := compilers.missing(chip):
            raise ValueError(reason)
    parts = [part for model in args.model for part in _parts(model, args.ring)]
    rows = []
    columns = progress.Progress.get_default_columns()
    with progress.Progress(*columns, console=consoles.Console(stderr=True)) as bar:
        for chip in args.chip:
            task = bar.add_task(chip, total=len(parts) * len(args.nodes))
            for row in _measure(chip, parts, args.nodes):
                rows.append(row)
                bar.advance(task)
    rows = list(_with_means(rows))
    record = {"jax": jax.__version__, "static": True, "ring": args.ring, "rows": rows}
    if args.json:
        print(json.dumps(record))
    else:
        _print_table(record, args)


def _parts(model: str, ring: int) -> Iterator[Part]:
    """What a model's layers compute."""
    if model in published.DELTA:
        yield from _recurrence(model, "tree_delta", "head", ring)
        return
    config = published.MODELS[model]
    for settings, op, unit in (
        (config.mamba2, "tree_ssd", "head"),
        (config.mamba1, "tree_scan", "token"),
    ):
        if settings is not None:
            yield from _recurrence(model, op, unit, ring)
            conv = {"op": "tree_conv", "function": "convolve"}
            yield Part(model, "tree_conv", "convolve", "token", conv)
    if config.attention is not None:
        name = f"{cases.CACHE} rows"
        attend = {"op": "tree_attention", "function": "attend"}
        yield Part(model, "tree_attention", name, "head", attend)


def _recurrence(model: str, op: str, unit: str, ring: int) -> Iterator[Part]:
    """Reads of a state, and a fold."""
    read = {"op": op, "function": "read"}
    yield Part(model, op, "read", unit, read)
    yield Part(model, op, "ring", unit, read | {"ring": ring})
    fold = {"op": op, "function": "verify", "ring": ring}
    yield Part(model, op, "fold", unit, fold)


def _measure(chip: str, parts: list[Part], nodes: list[int]) -> Iterator[dict]:
    """Compiles every part for every size of the tree."""
    with compile_cases.Compiler(chip) as compiler:
        for part in parts:
            for size in nodes:
                case = Case(model=part.model, nodes=size, **part.arguments)
                result = compiler(case)
                units = cases.num_units(case) * cases.BATCH
                bundles = sum(k.steps * k.bundles for k in result.kernels)
                yield {
                    "chip": chip,
                    "model": part.model,
                    "op": part.op,
                    "part": part.name,
                    "unit": part.unit,
                    "nodes": size,
                    "bundles": None if result.error else bundles / units,
                    "spills": sum(k.spills for k in result.kernels),
                    "error": result.error,
                }


def _with_means(rows: list[dict]) -> Iterator[dict]:
    """Adds what a read with a ring costs that every so often folds it as well."""
    keys = ("chip", "model", "op", "nodes", "part")
    found = {tuple(row[key] for key in keys): row["bundles"] for row in rows}
    for row in rows:
        yield row
        if row["part"] == "fold":
            *name, _ = (row[key] for key in keys)
            ring, fold = found[*name, "ring"], row["bundles"]
            known = ring is not None and fold is not None
            mean = ring + (fold - ring) / _FOLD_EVERY if known else None
            yield row | {"part": "amortised", "bundles": mean, "spills": None}


def _print_table(record: dict[str, Any], args: argparse.Namespace) -> None:
    table = tables.Table(
        title=f"Bundles of instructions: static, not measured. jax {record['jax']}, "
        f"a ring of {record['ring']} slots, bfloat16"
    )
    for heading in ("chip", "model", "kernel", "part", "per"):
        table.add_column(heading)
    for size in args.nodes:
        table.add_column(f"N = {size}", justify="right")
    cells: dict[tuple, dict[int, str]] = {}
    for row in record["rows"]:
        name = tuple(row[key] for key in ("chip", "model", "op", "part", "unit"))
        cells.setdefault(name, {})[row["nodes"]] = _cell(row)
    for name, by_size in cells.items():
        table.add_row(*name, *(by_size[size] for size in args.nodes))
    terminal.console().print(table)
    for error in sorted({row["error"] for row in record["rows"] if row["error"]}):
        consoles.Console(stderr=True).print(error, markup=False)


def _cell(row: dict[str, Any]) -> str:
    if row["bundles"] is None:
        return "-"
    spills = f" [red]+{row['spills']}[/red]" if row["spills"] else ""
    return f"{row['bundles']:.0f}{spills}"
