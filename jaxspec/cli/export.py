"""Writes a model as safetensors that transformers loads.

SOURCE is a folder that `jaxspec convert` or `jaxspec train` made, or a shipped name. What
was converted goes back to the names, shapes, dtypes and config that it had, bit by bit, in
transformers' form where it came in that of state-spaces/mamba; its chat template comes
along, the files of processors do not. What jaxspec trained is written in the form of a
family that has such a model, if any.

    jaxspec export mamba2-130m mamba2-130m-hf
"""

import argparse
import json
import pathlib
import time

import checkpoints_conv
from checkpoints_conv import exporting
from jaxspec import pretrained
from jaxspec.cli import convert, options, terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("source", help="a folder, or the name of a model that ships")
    parser.add_argument("dest", type=pathlib.Path, help="folder to make")
    parser.add_argument(
        "--shard-bytes",
        type=int,
        default=exporting.SHARD_BYTES,
        help="size of a file of weights, which memory holds (default: %(default)s)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    options.check_positive(args, "shard_bytes")
    started = time.perf_counter()
    folder = pretrained.find(args.source)
    with convert.progress_bar(args.json) as advance:
        done = checkpoints_conv.export(
            folder, args.dest, shard_bytes=args.shard_bytes, advance=advance
        )
    seconds = time.perf_counter() - started
    record = {"family": done.family.name, "seconds": seconds}
    if args.json:
        print(json.dumps(record))
    else:
        architecture = done.family.architecture
        terminal.console().print(
            f"{args.dest}: {done.family.name} in {seconds:.1f} s. Go on with: "
            f"transformers.{architecture}.from_pretrained({str(args.dest)!r})",
            soft_wrap=True,
        )
