"""Options of commands that make an engine, and the engine that they say."""

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

from rich import progress

from jaxspec import decoding, pretrained
from jaxspec.cli import options, terminal
from jaxspec.drafters.sources import Setup
from jaxspec.serving import Engine


def add_arguments(parser: argparse.ArgumentParser, *, drafter: str, rows: int) -> None:
    """Adds what an engine is made of.

    Args:
        parser: of the command.
        drafter: the default.
        rows: the default.
    """
    parser.add_argument(
        "--drafter",
        default=drafter,
        metavar="KIND:SHAPE",
        help="(default: %(default)s): " + options.DRAFTER_HELP,
    )
    parser.add_argument(
        "--rows",
        type=int,
        default=rows,
        help="texts side by side at most (default: %(default)s)",
    )
    parser.add_argument(
        "--max-length", type=int, default=512, help="of a text (default: %(default)s)"
    )
    parser.add_argument(
        "--chunk-size",
        type=int,
        default=64,
        help="tokens of a prompt that are read at a time (default: %(default)s)",
    )
    options.add_models(parser)
    options.add_verifier(parser)
    options.add_rollback(parser, default="auto")


def add_prompts(parser: argparse.ArgumentParser) -> None:
    """Adds the option that says what to go on from."""
    parser.add_argument(
        "--prompts",
        type=pathlib.Path,
        help="jsonl of objects with `prompt`, `question` or `turns` (default: our own)",
    )


def load(args: argparse.Namespace, drafter: str) -> Setup:
    """Loads the target and a drafter that an engine takes.

    Raises:
        ValueError: if it drafts on the host.
    """
    folder = pretrained.read(args.model, args.dtype)
    made = options.make(args, drafter, folder)
    if made.generate is not decoding.speculative_generate:
        raise ValueError(
            f"{drafter} drafts on the host; an engine takes what drafts on the device."
        )
    return made.beside(folder.load(rollback=args.rollback))


def make(
    args: argparse.Namespace,
    setup: Setup,
    bar: progress.Progress,
    *,
    nodes: Sequence[int] = (),
    **settings: Any,
) -> Engine:
    """Makes the engine, and shows how far it is.

    Args:
        args: of the command.
        setup: from `load`.
        bar: to show it on.
        nodes: numbers of nodes that a step may verify, besides the drafter's own; with
            some there are several numbers of rows, too.
        **settings: of `Engine`.
    """
    options.check_positive(args, "rows", "max_length", "chunk_size")
    return Engine(
        setup.params,
        target=setup.target.model,
        drafter=setup.drafter,
        verifier=options.VERIFIERS[args.verifier](),
        rows=options.powers(args.rows) if nodes else args.rows,
        nodes=nodes,
        max_length=args.max_length,
        chunk_size=args.chunk_size,
        watch=terminal.compiles(bar),
        **settings,
    )
