"""Measures what the steps of an engine cost, by rows and nodes.

    jaxspec tune costs --drafter ngram:16 --rows 16 --nodes 1 2 4 8 --out costs.json
    jaxspec tune costs --drafter model:chain:8 --plot costs.png --out costs.json

`serving.goodput` decides with these how many drafts pay, and `serving.replay` tells what a
policy would bring under a load. A step is timed with all rows running, drafting included;
the least of many short timings counts, since what else a machine does can only add to them.
"""

import argparse
import functools
import json
import pathlib

from rich import console as consoles
from rich import progress
from rich import table as tables

from jaxspec import digests, files
from jaxspec.cli import engines, options, terminal
from jaxspec.measure import engine_costs, timing
from jaxspec.serving import machinery
from jaxspec.serving.replay import Costs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the subject's options."""
    parser.add_argument(
        "--out", type=pathlib.Path, required=True, help="JSON file to write"
    )
    engines.add_arguments(parser, drafter="ngram:16", rows=16)
    parser.add_argument(
        "--nodes",
        type=int,
        nargs="+",
        help="to verify (default: powers of two up to the drafter's own)",
    )
    parser.add_argument(
        "--repeats", type=int, default=25, help="(default: %(default)s)"
    )
    parser.add_argument(
        "--plot", type=pathlib.Path, help="draw the staircase into a file"
    )
    parser.add_argument(
        "--json", action="store_true", help="print what was written and nothing else"
    )


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    if args.plot:
        from jaxspec import plotting  # needs an extra: if it is missing, say so now
    options.check_files(args, "plot")
    options.check_positive(args, "repeats")
    setup = engines.load(args, args.drafter)
    most = machinery.num_slots(
        setup.params, target=setup.target.model, drafter=setup.drafter
    )
    columns = progress.Progress.get_default_columns()
    with progress.Progress(*columns, console=consoles.Console(stderr=True)) as bar:
        nodes = args.nodes or options.powers(most)
        engine = engines.make(args, setup, bar, nodes=nodes)
        task = bar.add_task("measures", total=args.repeats)
        advance = functools.partial(bar.advance, task)
        costs = engine_costs.costs(engine, setup.params, args.repeats, advance)
    record = {
        "format": engine_costs.FORMAT,
        "environment": timing.environment(),
        "model": str(args.model),
        "drafter": args.drafter,
        "num_nodes": engine.machinery.num_nodes,
        "max_length": engine.machinery.max_length,
        **engine_costs.to_json(costs),
    }
    files.write_text(args.out, digests.seal(record))
    if args.plot:
        plotting.save(plotting.step_costs(costs.steps.seconds), args.plot)
    if args.json:
        print(json.dumps(record))
    else:
        _print_table(record, costs)


def _print_table(record: dict, costs: Costs) -> None:
    where = record["environment"]
    title = f"ms of a step: {record['model']}, {record['drafter']}; {where['device']}, "
    table = tables.Table(title=f"{title}jax {where['jax']}, {where['date']}")
    rows = sorted({rows for rows, _ in costs.steps.seconds})
    nodes = sorted({nodes for _, nodes in costs.steps.seconds})
    for heading in ("rows", *(f"{n} nodes" for n in nodes)):
        table.add_column(heading, justify="right")
    for size in rows:
        times = (costs.steps.seconds[size, n] for n in nodes)
        table.add_row(str(size), *(f"{1e3 * seconds:.2f}" for seconds in times))
    terminal.console().print(table)
    print(
        f"a chunk of {costs.chunk_size} tokens takes {1e3 * costs.chunk:.2f} ms, to let a "
        f"row {1e3 * costs.admit:.2f} ms"
    )
