"""Decodes prompts with each drafter, and autoregressively, in one run.

Each row of the table is one drafter, tree and rollback at one temperature. `speedup` is
tokens per second over the autoregressive loop's, prefill not counted in either; `agree`
says how many texts are the same token for token, and how many part at a near tie (two
candidates whose scores differ by less than 1e-4 of the largest logit). `zlib` is the
compressed size of the texts over their size: repetitive text is easy to draft.

    jaxspec bench decode --model DIR --peer transformers
    jaxspec bench decode --shape mamba2-130m --peer transformers --max-tokens 64

`--peer` has transformers continue the same prompts with the same weights in the same run.
`--shape` draws random weights for a published shape: what a step costs is as with trained
ones, but such a model writes noise, and what a drafter gains of that says nothing.
"""

import argparse
import contextlib
import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

from rich import console as consoles
from rich import progress
from rich import table as tables

from jaxspec import pretrained, tokenizer_files
from jaxspec.cli import options, terminal
from jaxspec.measure import peer as peers
from jaxspec.measure import prompts as prompt_files
from jaxspec.measure import published, speed, synthetic, timing
from jaxspec.models import hybrid
from jaxspec.text import encoding

DEFAULT_DRAFTERS = ("ngram:8", "ngram:chain:7", "model:chain:4", "model:2,2,1")
LOOKUPS = DEFAULT_DRAFTERS[:2]  # what needs no draft model

LEFT = ("drafter", "rollback")  # columns of words


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the benchmark's options."""
    parser.add_argument(
        "--prompts",
        type=pathlib.Path,
        help="jsonl of objects with `prompt`, `question` or `turns` (default: our own)",
    )
    parser.add_argument("--limit", type=int, help="read the first N prompts only")
    parser.add_argument(
        "--drafter",
        action="append",
        metavar="KIND:SHAPE",
        help="may be given again and again (default: "
        f"{' '.join(DEFAULT_DRAFTERS)}): " + options.DRAFTER_HELP,
    )
    parser.add_argument(
        "--temperature",
        type=float,
        nargs="+",
        default=[0.0, 0.8],
        help="one or more temperatures (default: 0 0.8)",
    )
    options.add_sampling(parser)
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=128,
        help="tokens to add at most (default: %(default)s)",
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=1,
        help="prompts decoded side by side (default: %(default)s)",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        help="timings of each text, of which the median counts (default: %(default)s)",
    )
    options.add_models(parser)
    options.add_verifier(parser)
    options.add_rollback(parser, nargs="+", default=["auto"])
    parser.add_argument(
        "--peer",
        choices=["transformers"],
        help="decode the same prompts with it as well (extra `hf`; --batch 1)",
    )
    parser.add_argument(
        "--shape",
        choices=sorted(published.MODELS),
        help="random weights of a published model's shape in place of --model",
    )
    parser.add_argument("--plot", type=pathlib.Path, help="draw the table into a file")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )


def run(args: argparse.Namespace) -> None:
    """Runs the benchmark."""
    options.check_files(args, "plot")
    if args.plot:
        from jaxspec import plotting  # noqa: F401 (needs an extra: if missing, say so now)
    options.check_positive(args, "limit", "batch", "repeats")
    if args.peer:
        peers.check_installed()
        if args.batch > 1:
            raise ValueError(f"--peer takes one prompt at a time, not {args.batch}.")
    with _model(args) as args.model:
        _run(args)


@contextlib.contextmanager
def _model(args: argparse.Namespace) -> Iterator[str]:
    """The target that is meant: a folder of random weights if a shape is named."""
    if args.shape is None:
        yield args.model
        return
    config = published.MODELS[args.shape]
    config = dataclasses.replace(config, dtype=args.dtype or "float32")
    params = synthetic.params(config, hybrid.language_model(config))
    tokenizer = tokenizer_files.load(pretrained.find(options.TARGET))
    with tempfile.TemporaryDirectory() as folder:
        pretrained.save(folder, config, params, tokenizer)
        del params
        yield folder


def _run(args: argparse.Namespace) -> None:
    """Runs it with a target that there is."""
    texts = prompt_files.read(args.prompts)[: args.limit]
    names = args.drafter or list(LOOKUPS if args.shape else DEFAULT_DRAFTERS)
    folder = pretrained.read(args.model, args.dtype)
    drafters = {name: options.make(args, name, folder) for name in names}
    target = folder.load()
    setups = {
        (name, rollback): made.beside(target.having(rollback=rollback))
        for name, made in drafters.items()
        for rollback in args.rollback
    }
    peer = None
    if args.peer:
        peer = peers.Transformers(folder.path, folder.config.dtype)
    ids = [encoding.encode(target.tokenizer, text) for text in texts]
    rows = []
    columns = progress.Progress.get_default_columns()
    with progress.Progress(*columns, console=consoles.Console(stderr=True)) as bar:
        for temperature in args.temperature:
            settings = {
                "max_new_tokens": args.max_tokens,
                "temperature": temperature,
                "top_k": args.top_k,
                "top_p": args.top_p,
                "stops": [*target.stops],
            }
            jobs = speed.jobs(ids, args.batch, args.seed, settings)
            task = bar.add_task(f"T = {temperature:g}", total=len(jobs))
            rows += speed.measure(
                setups,
                jobs,
                verifier=options.VERIFIERS[args.verifier](),
                repeats=args.repeats,
                peer=peer,
                advance=lambda task=task: bar.advance(task),
            )
    record = {
        "environment": timing.environment(),
        "prompts": str(args.prompts or "own"),
        "num_prompts": len(texts),
        "batch": args.batch,
        "max_tokens": args.max_tokens,
        "shape": args.shape,
        "peer": peer and peer.environment(),
        "rows": rows,
    }
    if args.plot:
        from jaxspec import plotting

        title = f"{len(texts)} prompts, {record['environment']['processor']}"
        plotting.save(plotting.speedups(rows, title), args.plot)
    if args.json:
        print(json.dumps(record))
    else:
        _print_table(record)


def _print_table(record: dict[str, Any]) -> None:
    where = record["environment"]
    table = tables.Table(
        title=f"{record['num_prompts']} prompts ({record['prompts']}), up to "
        f"{record['max_tokens']} tokens, batch {record['batch']}, "
        f"{where['processor']} x {where['cores']}, jax {where['jax']}, {where['date']}"
    )
    for heading in (
        "drafter",
        "rollback",
        "T",
        "tokens",
        "calls",
        "tokens/call",
        "tok/s",
        "AR tok/s",
        "speedup",
        "agree",
        "zlib",
    ):
        table.add_column(heading, justify="left" if heading in LEFT else "right")
    for row in record["rows"]:
        agree = f"{row['identical']}/{row['texts']}"
        if row["near_ties"]:
            agree += f" +{row['near_ties']} near ties"
        if row["different"]:
            agree += f" [red]{row['different']} differ[/red]"
        table.add_row(
            row["name"],
            row["rollback"],
            f"{row['temperature']:g}",
            str(row["tokens"]),
            str(row["target_calls"]),
            f"{row['block_efficiency']:.2f}",
            f"{row['tokens_per_second']:.0f}",
            f"{row['autoregressive_tokens_per_second']:.0f}",
            f"{row['speedup']:.2f}",
            agree,
            f"{row['zlib_ratio']:.2f}",
        )
    terminal.console().print(table)
    if peer := record["peer"]:
        found = {row["temperature"]: row["peer"] for row in record["rows"]}
        for temperature, own in found.items():
            _print_peer(record, peer, temperature, own)


def _print_peer(record, peer, temperature: float, own: dict[str, Any]) -> None:
    """What the peer's speed was, and ours over it."""
    if not own["tokens_per_second"]:
        return
    ratios = [f"autoregressive {own['autoregressive_over_peer']:.2f} x"]
    for row in record["rows"]:
        if row["temperature"] == temperature:
            ratio = row["tokens_per_second"] / own["tokens_per_second"]
            ratios.append(f"{row['name']} {ratio:.2f} x")
    agree = ""
    if own["texts"]:
        agree = f"; texts that agree: {own['identical']}/{own['texts']}"
        agree += f" +{own['near_ties']} near ties" if own["near_ties"] else ""
    terminal.console().print(
        f"T = {temperature:g}: {peer['name']} {peer['version']} (torch {peer['torch']}, "
        f"{peer['device']}, {peer['threads']} threads) "
        f"{own['tokens_per_second']:.1f} tokens/s; ours {', '.join(ratios)}{agree}"
    )
