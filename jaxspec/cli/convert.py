"""Converts a published checkpoint into a folder that every other command takes.

SOURCE is a folder as the Hugging Face Hub keeps it: config.json, the weights in
safetensors or PyTorch's .bin (one file or several; nothing pickled is executed), and
tokenizer.json. DEST holds jaxspec's config, the tokenizer with its chat template, and a
safetensors file per layer, in the dtypes of the source. Memory holds a layer and the file
that is mapped; a conversion that was interrupted goes on where it stopped, and DEST appears
when it is whole. Of a model that sees, the text's part is used and the other tensors are
kept, so that `jaxspec export` gives all of them back. The head of a model that predicts a
token further (Qwen3-Next, Qwen3.5) drafts for it.

    jaxspec convert mamba2-130m-hf mamba2-130m
    jaxspec convert state-spaces/mamba-130m mamba-130m --tokenizer gpt-neox-20b
    jaxspec generate --model mamba2-130m --draft-model mamba-130m --drafter model:8
    jaxspec generate --model qwen3.5-0.8b --drafter mtp:4
"""

import argparse
import json
import pathlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich import console as consoles
from rich import progress

import checkpoints_conv
from checkpoints_conv import families
from jaxspec import weights
from jaxspec.cli import terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.epilog = f"Families: {', '.join(families.FAMILIES)}, state-spaces/mamba."
    parser.add_argument("source", type=pathlib.Path, help="folder of the checkpoint")
    parser.add_argument("dest", type=pathlib.Path, help="folder to make")
    parser.add_argument(
        "--tokenizer",
        type=pathlib.Path,
        help="a tokenizer.json, or a folder with one (default: SOURCE)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    started = time.perf_counter()
    with progress_bar(args.json) as advance:
        done = checkpoints_conv.convert(
            args.source, args.dest, tokenizer=args.tokenizer, advance=advance
        )
    record = {
        "family": done.family.name,
        "layers": done.config.layers,
        "dtype": done.config.dtype,
        "source_dtype": done.dtype,
        "mtp": done.config.mtp,
        "tensors": len(done.source.entries),
        "kept": sum(len(p.leaves) for p in done.parts if p.name == weights.KEPT),
        "bytes": sum(path.stat().st_size for path in done.source.files),
        "seconds": time.perf_counter() - started,
    }
    if args.json:
        print(json.dumps(record))
    else:
        _print(args.dest, record)


def _print(dest: pathlib.Path, record: dict[str, Any]) -> None:
    """Says what was converted, and what to do next."""
    console = terminal.console()
    if record["source_dtype"] == "float16":
        console.print(
            "The weights are float16, which jaxspec does not compute in: they stay so in "
            f"{dest}, and are loaded as {record['dtype']} or, by --dtype, as bfloat16.",
            soft_wrap=True,
        )
    kept = f"{record['kept']} tensors kept for export alone, "
    console.print(
        f"{dest}: {record['family']}, {len(record['layers'])} blocks, "
        f"{kept if record['kept'] else ''}"
        f"{record['bytes'] / 2**30:.2f} GiB in {record['seconds']:.1f} s. Go on with: "
        f"jaxspec generate --model {dest}{' --drafter mtp' * bool(record['mtp'])}",
        soft_wrap=True,
    )


@contextmanager
def progress_bar(is_quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Shows a bar on standard error from the first part on, not before a refusal.

    Yields:
        The function that moves it: part, done, total.
    """
    console = consoles.Console(stderr=True, quiet=is_quiet)
    bar = progress.Progress(*progress.Progress.get_default_columns(), console=console)
    task = bar.add_task("", total=None)

    def advance(part: str, done: int, total: int) -> None:
        bar.start()
        bar.update(task, description=part, completed=done, total=total)

    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()
