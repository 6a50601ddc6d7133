"""Chooses the draft model's tree: acceptance and times measured, then the best shape.

    jaxspec tune tree --temperature 0 --out tree.json
    jaxspec tune tree --temperature 0.8 --disjoint-from HumanEval.jsonl --out tree.json

First the target writes texts. At every token of them the draft model draws one level of
children (the likeliest at temperature 0, else without replacement), and the share of
places at which the first, second, .. is accepted is counted. Then calls over 1 to
`--max-nodes` nodes are timed, and a level of the draft model, in autoregressive steps.
Dynamic programming finds the tree of most tokens per second, for every number of nodes and
among all (Sequoia, Chen et al. 2024). `speedup` is what acceptance and times promise over
autoregressive decoding, batch 1; below 1 no tree of this draft model pays here. Run it on a
machine that has nothing else to do: it says when it was not.

The file is read by `jaxspec.drafting.tree_file.load_tree`.
"""

import argparse
import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
from rich import console as consoles
from rich import progress
from rich import table as tables

from jaxspec import pretrained, tokenizer_files
from jaxspec.cli import options, terminal
from jaxspec.core import LanguageModel, Params
from jaxspec.drafters import sources
from jaxspec.drafting import sequoia, tree_file
from jaxspec.drafting import vocabulary as vocabularies
from jaxspec.measure import costs, timing
from jaxspec.tune import acceptance, calibration

BUSY = 1.3  # median over least time, above which times are not to be trusted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument(
        "--out", type=pathlib.Path, required=True, help="JSON file to write"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        help="to measure at; a tree is good for the temperature it was measured at "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--max-nodes",
        type=int,
        default=64,
        help="largest tree, the root included; smaller ones are 2, 4, 8, .. "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--max-path",
        type=int,
        default=8,
        help="nodes on the longest path, the root included (default: %(default)s)",
    )
    parser.add_argument(
        "--width",
        type=int,
        default=16,
        help="most children of a node (default: %(default)s)",
    )
    parser.add_argument(
        "--draft-model",
        default=options.DRAFT,
        help="what drafts: a shipped name or a folder (default: %(default)s)",
    )
    parser.add_argument(
        "--vocabulary",
        type=pathlib.Path,
        help="trim the draft model to what `jaxspec tune vocabulary` wrote",
    )
    calibration.add_arguments(parser)
    parser.add_argument(
        "--repeats",
        type=int,
        default=31,
        help="timings of which the least counts (default: %(default)s)",
    )
    parser.add_argument(
        "--plot", type=pathlib.Path, help="draw acceptance and speedups into a file"
    )
    parser.add_argument(
        "--json", action="store_true", help="print what was written and nothing else"
    )


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    if args.plot:
        from jaxspec import plotting  # needs an extra: if it is missing, say so now
    calibration.check(args)
    options.check_positive(args, "width", "repeats")
    options.check_files(args, "plot")
    if min(args.max_nodes, args.max_path) < 2:
        raise ValueError(
            "--max-nodes and --max-path must be at least 2, got "
            f"{args.max_nodes} and {args.max_path}."
        )
    target = pretrained.load(args.model, args.dtype, max_path=args.max_path)
    draft = pretrained.load(args.draft_model, args.dtype, max_path=args.max_path)
    tokenizer_files.check_same_tokenizer(target.tokenizer, draft.tokenizer)
    model, params = _trimmed(args, target, draft)
    draft = dataclasses.replace(draft, model=model, params=params)
    text = calibration.Text.of(args, target.tokenizer)

    columns = progress.Progress.get_default_columns()
    with progress.Progress(*columns, console=consoles.Console(stderr=True)) as bar:
        counts = _count(args, target, draft, text, bar)
        places = int(counts.sum())
        curve = counts[:-1] / max(places, 1)
        if curve[0] == 0:
            raise ValueError(
                f"The draft model's first child was accepted at none of {places} places: "
                "there is no tree to choose."
            )
        bar.add_task("timing trees", total=None)
        cost = _time(args, target, draft, text, curve)
    rows = _choose(curve, cost, args.max_path)
    record = {
        "environment": timing.environment(),
        "target": str(args.model),
        "draft": str(args.draft_model),
        "tokenizer_hash": tokenizer_files.tokenizer_hash(target.tokenizer),
        "vocabulary": args.vocabulary and args.vocabulary.name,
        "temperature": args.temperature,
        "law": acceptance.law(args.temperature),
        "max_path": args.max_path,
        "text": text.record(args),
        "places": places,
        "acceptance": np.round(curve, 6).tolist(),
        "autoregressive_milliseconds": 1e3 * cost.autoregressive,
        "verify_steps": {str(n): t for n, t in cost.verify.items()},
        "level_steps": cost.level,
        "busy": cost.busy,
        "best": max(rows, key=lambda row: row["speedup"])["num_nodes"],
        "trees": rows,
    }
    tree_file.save(args.out, **record)
    if args.plot:
        plotting.save(plotting.tuned_trees(record), args.plot)
    if args.json:
        print(json.dumps(record))
    else:
        _print_tables(record, args.out)


def _trimmed(args: argparse.Namespace, target, draft) -> tuple[LanguageModel, Any]:
    """The draft model and its params, its head trimmed if that was asked for."""
    keep = None
    if args.vocabulary is not None:
        own = tokenizer_files.tokenizer_hash(draft.tokenizer)
        keep = vocabularies.load(args.vocabulary, own).keep
    return sources.trim(draft, target.model.vocab_size, keep)


def _count(args, target, draft, text: calibration.Text, bar) -> np.ndarray:
    """How often the child of each rank is accepted, and how often none."""
    writing = bar.add_task("texts of the target", total=len(text.prompts))
    texts = calibration.generate_texts(
        target,
        text.prompts,
        max_new_tokens=args.max_tokens,
        temperature=args.temperature,
        stops=target.stops,
        batch=args.batch,
        seed=args.seed,
        advance=lambda count: bar.advance(writing, count),
    )
    counting = bar.add_task("accepted ranks", total=len(texts))
    return acceptance.measure(
        (target.model, target.params),
        (draft.model, draft.params),
        text.prompts,
        texts,
        temperature=args.temperature,
        width=args.width,
        seed=args.seed,
        advance=lambda count: bar.advance(counting, count),
    )


def _time(args, target, draft, text: calibration.Text, curve) -> costs.Costs:
    budgets = [1, *(2**i for i in range(1, 20) if 2**i < args.max_nodes)]
    trees = {
        n: sequoia.optimal_tree(curve, n, args.max_path) if n > 1 else (-1,)
        for n in (*budgets, args.max_nodes)
    }
    return costs.measure(
        target.model,
        draft.model,
        Params(target.params, draft.params),
        text.prompts[0],
        trees,
        law=acceptance.law(args.temperature),
        temperature=args.temperature,
        repeats=args.repeats,
    )


def _choose(curve, cost: costs.Costs, max_path: int) -> list[dict[str, Any]]:
    """The best tree of every budget."""
    rows = []
    for budget, steps in cost.verify.items():
        if budget > 1:
            best = sequoia.best_shape(curve, {budget: steps}, cost.level, max_path)
            row = {
                "num_nodes": budget,
                "levels": sequoia.num_levels(best.parents),
                "expected_tokens": best.expected_tokens,
                "speedup": best.speed,
                "parents": best.parents,
            }
            rows.append(row)
    return rows


def _print_tables(record: dict[str, Any], out: pathlib.Path) -> None:
    where, text = record["environment"], record["text"]
    console = terminal.console()
    shares = [*record["acceptance"], 1.0 - sum(record["acceptance"])]
    console.print(
        f"{record['draft']} for {record['target']}, T = {record['temperature']:g}, "
        f"{record['places']} places. Accepted, by rank, and none, in %:"
    )
    console.print(" ".join(f"{100 * share:.1f}" for share in shares))
    shapes = tables.Table(
        title=f"{where['processor']} x {where['cores']}, jax {where['jax']}, "
        f"{where['date']}"
    )
    headings = ("nodes", "call, steps", "levels", "tokens/call", "speedup")
    for heading in headings:
        shapes.add_column(heading, justify="right")
    shapes.add_row("1", f"{record['verify_steps']['1']:.2f}", "0", "1.00", "")
    for row in record["trees"]:
        mark = " *" if row["num_nodes"] == record["best"] else ""
        shapes.add_row(
            str(row["num_nodes"]),
            f"{record['verify_steps'][str(row['num_nodes'])]:.2f}",
            str(row["levels"]),
            f"{row['expected_tokens']:.2f}",
            f"{row['speedup']:.2f}{mark}",
        )
    console.print(shapes)
    console.print(
        f"An autoregressive step takes {record['autoregressive_milliseconds']:.2f} ms, a "
        f"level of drafts {record['level_steps']:.2f} steps."
    )
    if record["busy"] > BUSY:
        console.print(
            f"[red]The machine was busy: a step took {record['busy']:.1f} times its least "
            "time. Acceptance stands; times, speedups and the choice among sizes do not."
        )
    for row in record["trees"]:
        console.print(f"{row['num_nodes']} nodes: {list(row['parents'])}")
    console.print(f"{text['prompts']} prompts, SHA-256 {text['sha256']}; * in {out}")
