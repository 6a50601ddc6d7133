"""Measures how often drafts survive, against what their scores promise.

    jaxspec tune survival --temperature 1 --out survival.json
    jaxspec tune survival --drafter rsd-s:16 sequoia:16 --plot survival.png --out s.json

The target goes on from prompts with each drafter, and a curve is fitted that maps the score
of a draft to the share of such drafts that were kept. It does not descend, so that a budget
keeps the same nodes as before (`drafting.survival.calibrated`). The errors are of other
prompts, whose modules were held out of training: `as told` of the scores themselves, and
`by curve` of what the curve makes of them.

Of children drawn without replacement a curve per rank is fitted too, from a token's
probability to how often it was accepted once it was tested: the trees of `dyspec-measured`
grow by these (`--survival`).
"""

import argparse
import functools
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np
from rich import console as consoles
from rich import progress
from rich import table as tables

from jaxspec import pretrained, tokenizer_files
from jaxspec.cli import options, terminal
from jaxspec.decoding import speculative_generate
from jaxspec.drafters import kinds, registry
from jaxspec.drafting import survival_file
from jaxspec.drafting.survival import Curve
from jaxspec.measure import timing
from jaxspec.pretrained import Pretrained
from jaxspec.tune import calibration, isotonic, outcomes
from jaxspec.tune.outcomes import Outcomes

KINDS = "ngram recycling model best-first chain specinfer rsd-c sequoia rsd-s dyspec"
DRAFTERS = [f"{kind}:16" for kind in KINDS.split()]
LEAST = 200  # outcomes of a rank; curves of fewer would be of chance


class Seen(NamedTuple):
    """What became of a drafter's drafts: on texts to fit to, and on others."""

    fitted: Outcomes
    held_out: Outcomes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument(
        "--out", type=pathlib.Path, required=True, help="JSON file to write"
    )
    parser.add_argument(
        "--drafter",
        nargs="+",
        default=DRAFTERS,
        metavar="KIND:SHAPE",
        help=f"whose drafts (default: {' '.join(DRAFTERS)})",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        help="to measure at; curves are good for the temperature they were measured at "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--verifier",
        choices=sorted(options.VERIFIERS),
        help="what decides (default: traversal for what is drawn, sample-and-match for "
        "the rest)",
    )
    calibration.add_arguments(parser)
    parser.set_defaults(prompts=32, max_tokens=64)
    options.add_drafting(parser)
    parser.add_argument(
        "--plot", type=pathlib.Path, help="draw promised against kept into a file"
    )
    parser.add_argument(
        "--json", action="store_true", help="print what was written and nothing else"
    )


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    if args.plot:
        from jaxspec import plotting  # needs an extra: if it is missing, say so now
    calibration.check(args)
    options.check_files(args, "plot")
    if not 0.0 <= args.temperature < np.inf:
        raise ValueError(
            f"--temperature must not be negative or infinite, got {args.temperature}."
        )
    target = pretrained.load(args.model, args.dtype)
    tokenizer = target.tokenizer
    texts = [calibration.Text.of(args, tokenizer, held_out=h) for h in (False, True)]
    seen = {}
    columns = progress.Progress.get_default_columns()
    with progress.Progress(*columns, console=consoles.Console(stderr=True)) as bar:
        for name in args.drafter:
            task = bar.add_task(name, total=sum(len(text.prompts) for text in texts))
            advance = functools.partial(bar.advance, task)
            seen[name] = _see(args, target, name, texts, advance)
    curves = {name: isotonic.fit(*own.fitted[:2]) for name, own in seen.items()}
    acceptance = by_rank([own.fitted for own in seen.values()])
    record = {
        "environment": timing.environment(),
        "target": str(args.model),
        "draft": str(args.draft_model),
        "tokenizer_hash": tokenizer_files.tokenizer_hash(tokenizer),
        "temperature": args.temperature,
        "text": texts[0].record(args),
        "held_out_text": texts[1].record(args),
        "drafters": [_row(name, own, curves[name]) for name, own in seen.items()],
    }
    survival_file.save(args.out, curves, acceptance, **record)
    if args.plot:
        plotting.save(plotting.reliability(record), args.plot)
    if args.json:
        print(json.dumps(record))
    else:
        _print_table(record, args.out)


def _see(args, target: Pretrained, name: str, texts, advance) -> Seen:
    """The outcomes of a drafter's drafts, on both texts."""
    made = registry.plan(name, options.sources(args))(target.folder).beside(target)
    if made.generate is not speculative_generate:
        raise ValueError(f"{name} drafts on the host, where no outcomes are noted.")
    draws = kinds.KINDS[name.partition(":")[0]].draws
    verifier = args.verifier or ("traversal" if draws else "sample-and-match")
    setup = outcomes.Setup(
        made.params,
        made.target.model,
        made.drafter,
        options.VERIFIERS[verifier](),
    )
    found = (
        outcomes.measure(
            setup,
            text.prompts,
            temperature=args.temperature,
            max_new_tokens=args.max_tokens,
            stops=target.stops,
            batch=min(args.batch, len(text.prompts)),
            seed=args.seed,
            advance=advance,
        )
        for text in texts
    )
    seen = Seen(*found)
    if not all(len(own.kept) for own in seen):
        raise ValueError(
            f"{name} has proposed no drafts for some of the texts; ask for more --prompts."
        )
    return seen


def by_rank(several: list[Outcomes]) -> list[Curve]:
    """Fits curves from a token's probability to acceptance, as many as ranks had drafts."""
    curves = []
    while True:
        parts = [(own, own.reached & (own.rank == len(curves))) for own in several]
        parts = [(own, here & (own.probability > 0.0)) for own, here in parts]
        estimate = np.concatenate([own.probability[here] for own, here in parts])
        kept = np.concatenate([own.kept[here] for own, here in parts])
        if len(kept) < LEAST:
            return curves
        curves.append(isotonic.fit(estimate, kept))


def _row(name: str, seen: Seen, curve: Curve) -> dict[str, Any]:
    """What scores are worth, as they are and by the curve, where nothing was fitted."""
    score, kept = seen.held_out[:2]
    told = isotonic.bins(score, kept)
    mapped = isotonic.bins(isotonic.apply(curve, score), kept)
    return {
        "drafter": name,
        "drafts": len(seen.fitted.kept),
        "held_out_drafts": len(kept),
        "kept": float(kept.mean()),
        "error_as_told": told.error,
        "error_by_curve": mapped.error,
        "as_told": {key: found.tolist() for key, found in told._asdict().items()},
        "by_curve": {key: found.tolist() for key, found in mapped._asdict().items()},
    }


def _print_table(record: dict[str, Any], out: pathlib.Path) -> None:
    where = record["environment"]
    table = tables.Table(
        title=f"{record['draft']} for {record['target']}, T = "
        f"{record['temperature']:g}, jax {where['jax']}, {where['date']}: calibration "
        "error on prompts held out"
    )
    for heading in ("drafter", "drafts", "kept", "as told", "by curve"):
        table.add_column(heading, justify="left" if heading == "drafter" else "right")
    for row in record["drafters"]:
        table.add_row(
            row["drafter"],
            str(row["held_out_drafts"]),
            f"{100 * row['kept']:.1f} %",
            f"{row['error_as_told']:.3f}",
            f"{row['error_by_curve']:.3f}",
        )
    console = terminal.console()
    console.print(table)
    text = record["text"]
    console.print(f"{text['prompts']} prompts, SHA-256 {text['sha256']}; in {out}")
