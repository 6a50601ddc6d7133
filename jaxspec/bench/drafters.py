"""Compares drafters, trees and verifiers at equal nodes: tokens per call, and time.

Every kind of drafter at every budget of nodes (slots of the tree in the target's pass, the
root included) continues the same prompts at every temperature, side by side in one batch.
`tokens per call` is over all of them, with a 95 % interval (prompts resampled); `step` is a
full cycle of draft, pass and verdict in autoregressive steps, both timed in turn at batch 1
(rounds resampled); `speed` is the one over the other, between the worst and the best that
their intervals allow.

    jaxspec bench drafters --nodes 8 16 --kind chain rsd-s dyspec
    jaxspec bench drafters --prompts HumanEval.jsonl GSM8K.jsonl --out a.json --plot a.png

With `--out` each result is kept as soon as it is known, and a run that was cut goes on;
with `--repeats 0` nothing is timed, and a later run adds the times.
"""

import argparse
import itertools
import json
import pathlib
from typing import Any

import numpy as np
from rich import console as consoles
from rich import progress
from rich import table as tables

from jaxspec import digests, files, pretrained
from jaxspec.cli import options, terminal
from jaxspec.drafters import kinds
from jaxspec.measure import efficiency, timing
from jaxspec.measure import prompts as prompt_files
from jaxspec.measure.efficiency import Prompts
from jaxspec.pretrained import Pretrained
from jaxspec.text import encoding

BUDGETS = [4, 8, 16, 32, 64]
KINDS = "ngram suffix recycling model best-first chain specinfer rsd-c sequoia".split()
KINDS += ["rsd-s", "dyspec", "chain-shared", "rsd-c-shared", "dyspec-shared"]
FORMAT = "jaxspec drafters 2"
FILES = ["datastore", "trees", "vocabulary", "survival"]  # that drafters are made from
TIMES = [f"{name}{end}" for name in ("step", "speed") for end in ("", "_low", "_high")]
# By whether tokens are drawn.
VERIFIERS = {True: ["recursive-rejection", "traversal"], False: ["sample-and-match"]}
RETRIEVE = ["retrieval", "lookups", "rasd", "rasd-first"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the benchmark's options."""
    parser.add_argument(
        "--prompts",
        type=pathlib.Path,
        nargs="+",
        default=[None],
        help="jsonl files of objects with `prompt`, `question` or `turns`, each a domain "
        "of its own (default: our own prompts)",
    )
    parser.add_argument(
        "--limit", type=int, nargs="+", help="read the first N prompts of each file"
    )
    parser.add_argument(
        "--longest",
        type=int,
        default=384,
        help="leave prompts of more tokens out (default: %(default)s)",
    )
    parser.add_argument(
        "--kind",
        nargs="+",
        metavar="KIND",
        help=f"which drafters (default: {' '.join(KINDS)}; with --datastore also "
        f"{' '.join(RETRIEVE)})",
    )
    parser.add_argument(
        "--nodes",
        type=int,
        nargs="+",
        default=BUDGETS,
        help="budgets (default: 4 8 16 32 64)",
    )
    parser.add_argument(
        "--verifiers",
        nargs="+",
        choices=sorted(options.VERIFIERS),
        help="which verifiers (default: recursive-rejection and traversal for what is "
        "drawn, sample-and-match for the rest)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        nargs="+",
        default=[0.0, 0.6, 1.0],
        help="temperatures (default: 0 0.6 1)",
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=64,
        help="tokens to add to each prompt (default: %(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=24,
        help="steps of one timing (default: %(default)s)",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=5,
        help="timings, of which the median counts; 0 for none (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    options.add_models(parser)
    options.add_rollback(parser, default="auto")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        help="JSON file to keep results in, and to go on from",
    )
    parser.add_argument("--plot", type=pathlib.Path, help="draw the result into a file")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )


def run(args: argparse.Namespace) -> None:
    """Runs the benchmark."""
    if args.plot:
        from jaxspec import plotting  # needs an extra: if it is missing, say so now
    options.check_positive(args, "nodes", "limit", "longest", "max_tokens", "steps")
    options.check_files(args, "out", "plot")
    names = args.kind or KINDS + (RETRIEVE if args.datastore else [])
    if unknown := [name for name in names if name not in kinds.KINDS]:
        known = tuple(kinds.KINDS)
        raise ValueError(f"Unknown kind {unknown[0]!r}; expected some of {known}.")
    target = pretrained.load(args.model, args.dtype, rollback=args.rollback)
    prompts = _read(args, target)
    record = _begin(args, prompts)
    cases = [
        (name, nodes, verifier)
        for name, nodes in itertools.product(names, args.nodes)
        for verifier in args.verifiers or VERIFIERS[kinds.KINDS[name].draws]
    ]
    columns = progress.Progress.get_default_columns()
    with progress.Progress(*columns, console=consoles.Console(stderr=True)) as bar:
        task = bar.add_task("drafters", total=len(cases))
        for case in cases:
            bar.update(task, description=" ".join(map(str, case)))
            if _measure(args, target, prompts, record["rows"], case) and args.out:
                files.write_text(args.out, digests.seal(record))
            bar.advance(task)
    if args.plot:
        plotting.save(plotting.drafters(record), args.plot)
    if args.json:
        print(json.dumps(record))
    else:
        _print_tables(record)


def _read(args: argparse.Namespace, target: Pretrained) -> Prompts:
    """The prompts that are short enough, at every temperature."""
    limits = args.limit or [None]
    if len(limits) == 1:
        limits *= len(args.prompts)
    if len(limits) != len(args.prompts):
        raise ValueError(
            f"Expected one --limit or {len(args.prompts)}, got {len(limits)}."
        )
    domains = []
    for path, limit in zip(args.prompts, limits, strict=True):
        texts = prompt_files.read(path)
        encoded = [encoding.encode(target.tokenizer, text) for text in texts]
        fits = [own for own in encoded if len(own) <= args.longest][:limit]
        if not fits:
            raise ValueError(f"{path} has no prompt of up to {args.longest} tokens.")
        domains.append(fits)
    return efficiency.at_every_temperature(domains, args.temperature)


def _begin(args: argparse.Namespace, prompts: Prompts) -> dict[str, Any]:
    """An empty record, or the one to go on with.

    Raises:
        ValueError: if that was made with other settings.
    """
    made_from = {name: getattr(args, name) for name in FILES}
    settings = {
        "domains": [path.stem if path else "own" for path in args.prompts],
        "prompts": (np.bincount(prompts.domain) // len(args.temperature)).tolist(),
        "temperatures": args.temperature,
        "max_tokens": args.max_tokens,
        "seed": args.seed,
        "target": args.model,
        "draft": args.draft_model,
        "dtype": args.dtype,
        "rollback": args.rollback,
        "sha256": {"prompts": prompt_files.digest(np.asarray(prompts.tokens).tolist())}
        | {name: path and files.digest(path) for name, path in made_from.items()},
    }
    record = {"format": FORMAT, "environment": timing.environment()}
    record |= {"settings": settings, "rows": []}
    if args.out is None or not args.out.exists():
        return record
    try:
        old = digests.unseal(args.out, FORMAT)
        same = old["settings"] == settings
    except (ValueError, LookupError) as error:
        raise ValueError(
            f"{args.out} is no record of this benchmark: {files.one_line(error)}."
        ) from None
    if not same:
        raise ValueError(
            f"{args.out} was made with {old['settings']}, and this is {settings}; give "
            "another --out."
        )
    return old


def _measure(
    args, target: Pretrained, prompts: Prompts, rows: list[dict], case: tuple
) -> bool:
    """Adds what is not known of a case to the rows, and says whether anything was not."""
    name, nodes, verifier = case
    mine = [row for row in rows if (row["kind"], row["nodes"], row["verifier"]) == case]
    timed = bool(mine) and all(row["step"] is not None for row in mine)
    untimed = args.repeats > 0 and not timed
    if mine and not untimed:
        return False
    setup = options.make(args, f"{name}:{nodes}", target.folder).beside(target)
    verify = options.VERIFIERS[verifier]()
    if not mine:
        own = {"kind": name, "nodes": nodes, "verifier": verifier}
        found = efficiency.decode(
            setup, verify, prompts, max_new_tokens=args.max_tokens, seed=args.seed
        )
        mine = [own | row | dict.fromkeys(TIMES) for row in found]
        rows += mine
    if untimed:
        steps = {
            temperature: efficiency.cycle(
                setup,
                verify,
                prompts,
                temperature=temperature,
                steps=args.steps,
                repeats=args.repeats,
            )
            for temperature in args.temperature
        }
        for row in mine:
            low, middle, high = steps[row["temperature"]]
            row |= {"step": middle, "step_low": low, "step_high": high}
            row["speed"] = row["block_efficiency"] / middle
            row["speed_low"], row["speed_high"] = row["low"] / high, row["high"] / low
    return True


def _print_tables(record: dict[str, Any]) -> None:
    """Tokens per call and speed, a table for every domain and temperature."""
    where, settings = record["environment"], record["settings"]
    budgets = sorted({row["nodes"] for row in record["rows"]})
    console = terminal.console()
    for domain, name in enumerate(settings["domains"]):
        for temperature in settings["temperatures"]:
            table = tables.Table(
                title=f"{name}, {settings['prompts'][domain]} prompts, T = "
                f"{temperature:g}: tokens per call (speed), {where['processor']} x "
                f"{where['cores']}, {where['date']}"
            )
            table.add_column("drafter")
            table.add_column("verifier")
            for budget in budgets:
                table.add_column(str(budget), justify="right")
            here = [
                row
                for row in record["rows"]
                if row["domain"] == domain and row["temperature"] == temperature
            ]
            for kind, verifier in dict.fromkeys(
                (r["kind"], r["verifier"]) for r in here
            ):
                cells = {
                    row["nodes"]: row
                    for row in here
                    if (row["kind"], row["verifier"]) == (kind, verifier)
                }
                table.add_row(kind, verifier, *(_cell(cells.get(b)) for b in budgets))
            console.print(table)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    found = f"{row['block_efficiency']:.2f} ± {(row['high'] - row['low']) / 2:.2f}"
    if row["speed"] is not None:
        half = (row["speed_high"] - row["speed_low"]) / 2
        found += f" ({row['speed']:.2f} ± {half:.2f})"
    return found
