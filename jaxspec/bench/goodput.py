"""Compares policies of draft lengths under loads, on a virtual clock with measured costs.

    jaxspec tune costs --drafter ngram:16 --out costs.json
    jaxspec bench goodput --costs costs.json --prompts gsm8k.jsonl --temperature 0

The target writes texts once, with a tree proposed before every token. Then requests for
these come at low, medium and saturating rates, and in bursts, and an engine's scheduler
serves them by every policy: no drafts, every fixed number of nodes, the published rule of
SmartSpec and ours. What a turn takes is what `tune costs` has measured. Latencies are from
arrival to the last token; `none / x` is how much better a policy is than no drafts.
"""

import argparse
import functools
import json
import pathlib
from typing import Any

import numpy as np
from rich import console as consoles
from rich import progress
from rich import table as tables

from jaxspec.cli import engines, options, terminal
from jaxspec.measure import engine_costs, loads, timing, traces
from jaxspec.measure import prompts as prompt_files
from jaxspec.serving import Gains, Goodput, Scheduler, SmartSpec
from jaxspec.serving.policies import Fixed
from jaxspec.serving.replay import Costs, Replay
from jaxspec.text import encoding

_WHOLE = "ngram", "retrieval", "lookups", "recycling"  # whatever the budget


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the benchmark's options."""
    parser.add_argument(
        "--costs",
        type=pathlib.Path,
        required=True,
        help="made by `jaxspec tune costs`, with the same model and drafter",
    )
    engines.add_prompts(parser)
    parser.add_argument(
        "--first",
        type=int,
        default=0,
        help="prompts of the file to leave out (default: %(default)s)",
    )
    parser.add_argument(
        "--count", type=int, default=40, help="prompts to take (default: %(default)s)"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="(default: %(default)s)"
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=64,
        help="tokens to add to each prompt (default: %(default)s)",
    )
    parser.add_argument(
        "--prompt-length",
        type=int,
        default=256,
        help="tokens of a prompt at most (default: %(default)s)",
    )
    parser.add_argument(
        "--requests",
        type=int,
        default=120,
        help="that come, in each of the runs (default: %(default)s)",
    )
    parser.add_argument(
        "--seeds", type=int, default=5, help="runs of each load (default: %(default)s)"
    )
    options.add_models(parser)
    options.add_rollback(parser, default="auto")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )


def run(args: argparse.Namespace) -> None:
    """Runs the benchmark."""
    sizes = ("count", "max_tokens", "prompt_length", "requests", "seeds")
    options.check_positive(args, *sizes)
    about = engine_costs.read(args.costs)
    costs = engine_costs.load(args.costs)
    if about["model"] != str(args.model):
        raise ValueError(
            f"{args.costs} is of {about['model']}, and --model is {args.model}."
        )
    setup = engines.load(args, about["drafter"])
    texts = prompt_files.read(args.prompts)[args.first : args.first + args.count]
    ids = [encoding.encode(setup.target.tokenizer, text) for text in texts]
    columns = progress.Progress.get_default_columns()
    with progress.Progress(*columns, console=consoles.Console(stderr=True)) as bar:
        task = bar.add_task("writes texts", total=len(ids))
        recorded = traces.record(
            setup.params,
            [each[: args.prompt_length] for each in ids],
            target=setup.target.model,
            drafter=setup.drafter,
            max_new_tokens=args.max_tokens,
            temperature=args.temperature,
            advance=functools.partial(bar.advance, task),
        )
        task = bar.add_task("replays", total=len(loads.LOADS) * args.seeds)
        found = {
            name: _compare(args, load, recorded, costs, about, bar, task)
            for name, load in loads.LOADS.items()
        }
    record = {
        "environment": timing.environment(),
        "costs": about["environment"],
        "model": str(args.model),
        "drafter": about["drafter"],
        "temperature": args.temperature,
        "settings": {name: getattr(args, name) for name in sizes},
        "loads": found,
    }
    if args.json:
        print(json.dumps(record))
    else:
        _print_table(record)


def _policies(costs: Costs, about: dict[str, Any]) -> dict[str, Any]:
    """Makers of each policy, by its name."""
    num_nodes = about["num_nodes"]
    is_whole = about["drafter"].split(":")[0] in _WHOLE
    nodes = sorted({nodes for _, nodes in costs.steps.seconds})
    fixed = {str(n - 1): functools.partial(Fixed, n - 1) for n in nodes}

    def ours():
        return Goodput(costs.steps, Gains(num_nodes, is_whole=is_whole))

    return fixed | {"paper": lambda: SmartSpec(costs.steps), "ours": ours}


def _compare(args, load, recorded, costs, about, bar, task) -> list[dict[str, Any]]:
    """Latencies of each policy under a load, in seconds."""
    rows = costs.steps.rows[-1]
    rate = loads.capacity(costs, recorded, rows)
    seen: dict[str, list[float]] = {}
    for seed in range(args.seeds):
        draw = np.random.default_rng(seed)
        order = draw.permutation(np.arange(args.requests) % len(recorded))
        when = loads.arrivals(load, args.requests, rate, draw)
        requests = [(t, recorded[i]) for t, i in zip(when, order, strict=True)]
        for name, make in _policies(costs, about).items():
            replay = Replay(Scheduler(rows), make(), costs, about["num_nodes"])
            tickets = replay.run(requests)
            seen.setdefault(name, []).extend(t.ended - t.arrival for t in tickets)
        bar.advance(task)
    mean = {name: float(np.mean(values)) for name, values in seen.items()}
    return [
        {
            "policy": name,
            "mean": mean[name],
            "quantiles": np.quantile(values, [0.5, 0.95, 0.99]).tolist(),
            "over_none": mean["0"] / mean[name],
        }
        for name, values in seen.items()
    ]


def _print_table(record: dict[str, Any]) -> None:
    where = record["costs"]
    table = tables.Table(
        title=f"{record['model']}, {record['drafter']}, temperature "
        f"{record['temperature']:g}: none / x; costs of {where['device']}, "
        f"jax {where['jax']}, {where['date']}"
    )
    names = [row["policy"] for row in next(iter(record["loads"].values()))]
    table.add_column("load")
    for name in (*names, "ours / best fixed"):
        table.add_column(name, justify="right")
    for load, rows in record["loads"].items():
        better = {row["policy"]: row["over_none"] for row in rows}
        fixed = max(better[name] for name in names if name.isdecimal())
        values = [*(better[name] for name in names), better["ours"] / fixed]
        table.add_row(load, *(f"{value:.3f}" for value in values))
    terminal.console().print(table)
