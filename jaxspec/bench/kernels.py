"""Times the recurrent kernels of each rollback alone, against copying an array.

    jaxspec bench kernels --batch 1 8 64 128
    jaxspec bench kernels --implementation xla --layers 2 --batch 1

Random states of a published Mamba-2 shape, several layers of them so that no cache holds
them, go through steps of N nodes of which some are kept: for each rollback what a step does
to the states, their rings and records, without projections. `lazy` runs whole cycles, from
an empty ring to the fold that empties it. GB/s is what a step has to move, by the formula
of `jaxspec bench rollback`, over its time. Then the errors of all kernels, at published
shapes, against float64, relative to the largest output. The last line names the batch from
which `lazy` is ahead of `replay`.
"""

import argparse
import json
from typing import Any

import numpy as np
from rich import console as consoles
from rich import progress
from rich import table as tables

from jaxspec.cli import options, terminal
from jaxspec.measure import errors, published, rollback_steps, timing
from jaxspec.models.rollback import ROLLBACKS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the benchmark's options."""
    names = [name for name, config in published.MODELS.items() if config.mamba2]
    parser.add_argument(
        "--model", choices=names, default="mamba2-2.7b", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--layers", type=int, default=8, help="states at once (default: %(default)s)"
    )
    parser.add_argument(
        "--batch",
        type=int,
        nargs="+",
        default=[1, 8, 64, 128],
        help="(default: 1 8 64 128)",
    )
    parser.add_argument("--nodes", type=int, default=16, help="(default: %(default)s)")
    parser.add_argument(
        "--accepted", type=int, default=4, help="nodes kept (default: %(default)s)"
    )
    parser.add_argument(
        "--max-path", type=int, default=8, help="longest path (default: %(default)s)"
    )
    parser.add_argument(
        "--ring", type=int, default=32, help="slots under lazy (default: %(default)s)"
    )
    parser.add_argument(
        "--rollback", nargs="+", choices=ROLLBACKS, default=list(ROLLBACKS)
    )
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=("bfloat16", "float32"),
        default=["bfloat16", "float32"],
    )
    parser.add_argument(
        "--implementation",
        nargs="+",
        default=["default"],
        help="names that `jaxspec info` lists; `default` is the platform's",
    )
    parser.add_argument(
        "--cycles", type=int, default=4, help="in a loop (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )


def run(args: argparse.Namespace) -> None:
    """Runs the benchmark."""
    names = ("layers", "batch", "nodes", "accepted", "max_path", "cycles", "repeats")
    options.check_positive(args, *names)
    if not args.accepted <= args.max_path <= min(args.nodes, args.ring):
        raise ValueError(
            "Expected --accepted <= --max-path <= --nodes and --ring; got "
            f"{args.accepted}, {args.max_path}, {args.nodes} and {args.ring}."
        )
    copy = timing.copy_bandwidth(args.repeats)
    found = []
    columns = progress.Progress.get_default_columns()
    with progress.Progress(*columns, console=consoles.Console(stderr=True)) as bar:
        task = bar.add_task("", total=len(args.batch) * len(args.dtype))
        for dtype in args.dtype:
            for batch in args.batch:
                bar.update(task, description=f"{dtype}, batch {batch}")
                found += measure(args, batch, dtype, copy)
                bar.advance(task)
    settings = ("model", "layers", "nodes", "accepted", "max_path", "ring")
    record = {
        "environment": timing.environment(),
        "settings": {key: getattr(args, key) for key in settings},
        "copy_gigabytes_per_second": copy / 1e9,
        "rows": found,
        "errors": [
            {"implementation": name, "dtype": dtype, "op": op, "error": error}
            for name in args.implementation
            for dtype in args.dtype
            for op, error in errors.measure(args.nodes, dtype, _chosen(name)).items()
        ],
        "lazy_ahead_from_batch": _lazy_ahead(found),
    }
    if args.json:
        print(json.dumps(record))
    else:
        _print_table(record)


def measure(args, batch: int, dtype: str, copy: float) -> list[dict[str, Any]]:
    """The rows of a batch size."""
    shape = rollback_steps.Shape(
        config=published.MODELS[args.model],
        layers=args.layers,
        batch=batch,
        nodes=args.nodes,
        accepted=args.accepted,
        max_path=args.max_path,
        ring=args.ring,
        dtype=dtype,
    )
    steps = args.cycles * shape.cycle
    calls = {
        (kind, name): rollback_steps.repeated(shape, kind, _chosen(name), steps)
        for name in args.implementation
        for kind in args.rollback
    }
    times = timing.medians(calls, args.repeats)
    found = []
    for (kind, name), seconds in times.items():
        moved = rollback_steps.moved(shape, kind) * batch * args.layers
        found.append(
            {
                "rollback": kind,
                "implementation": name,
                "batch": batch,
                "dtype": dtype,
                "milliseconds": 1e3 * seconds / steps,
                "gigabytes_per_second": moved * steps / seconds / 1e9,
                "of_copy": moved * steps / seconds / copy,
            }
        )
    return found


def _chosen(name: str) -> str | None:
    return None if name == "default" else name


def _lazy_ahead(found: list[dict[str, Any]]) -> int | None:
    """The least batch from which on lazy is ahead of replay, None if there is none."""
    times: dict[int, dict[str, float]] = {}
    for row in found:
        times.setdefault(row["batch"], {})[row["rollback"]] = row["milliseconds"]
    ahead = None
    for batch, by_name in sorted(times.items(), reverse=True):
        if not by_name.get("lazy", np.inf) < by_name.get("replay", -np.inf):
            break
        ahead = batch
    return ahead


def _print_table(record: dict[str, Any]) -> None:
    where, settings = record["environment"], record["settings"]
    copy = record["copy_gigabytes_per_second"]
    table = tables.Table(
        title=f"{settings['model']}, {settings['layers']} layers, "
        f"{settings['nodes']} nodes; {where['device']}, copy {copy:.0f} GB/s, "
        f"jax {where['jax']}, {where['date']}"
    )
    headings = ("", "implementation", "dtype", "batch", "ms", "GB/s", "of copy")
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i < 3 else "right")
    for row in record["rows"]:
        table.add_row(
            row["rollback"],
            row["implementation"],
            row["dtype"],
            str(row["batch"]),
            f"{row['milliseconds']:.3f}",
            f"{row['gigabytes_per_second']:.0f}",
            f"{100 * row['of_copy']:.0f} %",
        )
    console = terminal.console()
    console.print(table)
    table = tables.Table(title="errors against float64")
    for heading in ("", "implementation", "dtype", "error"):
        table.add_column(heading)
    for row in record["errors"]:
        error = f"{row['error']:.1e}"
        table.add_row(row["op"], row["implementation"], row["dtype"], error)
    console.print(table)
    ahead = record["lazy_ahead_from_batch"]
    found = "at no batch size" if ahead is None else f"from batch {ahead} on"
    console.print(f"lazy is ahead of replay {found}")
