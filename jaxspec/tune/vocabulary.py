"""Chooses the tokens that the draft model is asked for: those that the target writes.

    jaxspec tune vocabulary --size 1024 --out vocabulary.json

The target writes texts, whose tokens are counted; the most frequent are kept, and special
tokens always. `coverage` is the share of the counted tokens that are kept, `held out` the
same of texts that were not counted, which began in modules that training left out: no more
than that can be accepted. `c` is what the draft model reads of its weights in a step, over
what the target reads: with `gamma` drafts per call, memory lets a call take `1 + c gamma`
autoregressive steps (`metrics.memory_bound_speedup`). What is cut is still emitted, and the
law of the text is the target's.

The file is read by `jaxspec.drafting.vocabulary.load`.
"""

import argparse
import json
import pathlib
from typing import Any

import numpy as np
from rich import console as consoles
from rich import progress
from rich import table as tables

from jaxspec import pretrained, tokenizer_files
from jaxspec.cli import options, terminal
from jaxspec.drafting import vocabulary
from jaxspec.measure import synthetic, timing
from jaxspec.models import forms
from jaxspec.tune import calibration

SHARES = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1.0)  # sizes that are shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument(
        "--out", type=pathlib.Path, required=True, help="JSON file to write"
    )
    parser.add_argument(
        "--size",
        type=int,
        default=1024,
        help="tokens to keep, a multiple of 128 for choice; fewer if fewer were seen "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        help="of the texts; 0 repeats itself (default: %(default)s)",
    )
    parser.add_argument(
        "--draft-model",
        default=options.DRAFT,
        help="whose head to trim: a shipped name or a folder (default: %(default)s)",
    )
    calibration.add_arguments(parser)
    parser.set_defaults(prompts=192)
    parser.add_argument(
        "--json", action="store_true", help="print what was found and nothing else"
    )


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    calibration.check(args)
    target = pretrained.load(args.model, args.dtype)
    draft = pretrained.load(args.draft_model, args.dtype)
    tokenizer_files.check_same_tokenizer(target.tokenizer, draft.tokenizer)
    special = target.folder.special_tokens
    vocab_size = target.model.vocab_size
    if not len(special) < args.size <= vocab_size:
        raise ValueError(
            f"--size must be from {len(special) + 1} to {vocab_size}, got {args.size}."
        )
    text = calibration.Text.of(args, target.tokenizer)
    held_out = calibration.Text.of(args, target.tokenizer, held_out=True)
    counts, others = _count(args, target, (text, held_out))
    keep = vocabulary.select(counts, args.size, special)
    hash_ = tokenizer_files.tokenizer_hash(target.tokenizer)
    sizes = {int(share * vocab_size) for share in SHARES} | {args.size}
    rows = [
        _row(vocabulary.select(counts, size, special), counts, others, target, draft)
        for size in sorted(sizes)
        if size >= len(special) + 1
    ]
    rows = list({row["size"]: row for row in rows}.values())  # no more than were seen
    record = {
        "environment": timing.environment(),
        "target": str(args.model),
        "draft": str(args.draft_model),
        "temperature": args.temperature,
        "text": text.record(args),
        "held_out_text": held_out.record(args),
        "tokens": int(counts.sum()),
        "seen": int((counts > 0).sum()),
        "sizes": rows,
    }
    kept = vocabulary.Vocabulary(keep, counts, hash_)
    vocabulary.save(args.out, kept, **record)
    if args.json:
        print(json.dumps(record | {"size": len(keep), "asked": args.size}))
    else:
        _print_table(record, len(keep), args)


def _count(args, target, texts) -> list[np.ndarray]:
    """How often the target wrote each token, on from each set of prompts."""
    counts = []
    columns = progress.Progress.get_default_columns()
    with progress.Progress(*columns, console=consoles.Console(stderr=True)) as bar:
        for text in texts:
            name = "texts held out" if text.held_out else "texts of the target"
            task = bar.add_task(name, total=len(text.prompts))
            written = calibration.generate_texts(
                target,
                text.prompts,
                max_new_tokens=args.max_tokens,
                temperature=args.temperature,
                stops=target.stops,
                batch=args.batch,
                seed=args.seed,
                advance=lambda count, task=task: bar.advance(task, count),
            )
            counts.append(vocabulary.count(written, target.model.vocab_size))
    return counts


def _row(keep, counts, others, target, draft) -> dict[str, Any]:
    """What a size is worth."""
    trimmed = forms.trim_head(draft.params, keep)
    return {
        "size": len(keep),
        "coverage": vocabulary.coverage(counts, keep),
        "held_out_coverage": vocabulary.coverage(others, keep),
        "cost_ratio": _weights_read(trimmed) / _weights_read(target.params),
    }


def _weights_read(params: Any) -> int:
    """Bytes of the weights that a step reads: of a table besides the head, none."""
    table = synthetic.num_bytes(params["embed"]) if "lm_head" in params else 0
    return synthetic.num_bytes(params) - table


def _print_table(record: dict[str, Any], kept: int, args: argparse.Namespace) -> None:
    table = tables.Table(
        title=f"{record['draft']} for {record['target']}, T = "
        f"{record['temperature']:g}: {record['tokens']} tokens, {record['seen']} of them "
        "different"
    )
    for heading in ("size", "coverage", "held out", "c"):
        table.add_column(heading, justify="right")
    for row in record["sizes"]:
        mark = "* " if row["size"] == kept else ""
        table.add_row(
            f"{mark}{row['size']}",
            f"{100 * row['coverage']:.2f} %",
            f"{100 * row['held_out_coverage']:.2f} %",
            f"{row['cost_ratio']:.4f}",
        )
    console = terminal.console()
    console.print(table)
    if kept < args.size:
        console.print(
            f"Only {kept} tokens are kept: no others of {args.size} were seen."
        )
    text = record["text"]
    console.print(
        f"{text['prompts']} prompts, SHA-256 {text['sha256']}; * in {args.out}"
    )
