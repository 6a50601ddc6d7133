"""Options that several commands share, and what they stand for."""

import argparse
import math
import pathlib
from typing import Any

from jaxspec import pretrained
from jaxspec.drafters import registry
from jaxspec.drafters.kinds import KINDS
from jaxspec.drafters.sources import Made, Sources
from jaxspec.models.rollback import ROLLBACKS
from jaxspec.pretrained import Folder
from jaxspec.verification.recursive_rejection import recursive_rejection
from jaxspec.verification.sample_and_match import sample_and_match
from jaxspec.verification.traversal import traversal

TARGET, DRAFT = "stdlib-8m", "stdlib-draft"
VERIFIERS = {
    "sample-and-match": sample_and_match,
    "recursive-rejection": recursive_rejection,
    "traversal": traversal,
}
WIDE = {"seed": 32, "shard_bytes": 63}  # bits of options that need more than int32 has
DRAFTER_HELP = (
    "KIND:SHAPE. The shape is a number of nodes, the root included; `jaxspec info` "
    f"lists the shapes that a kind takes besides. Kinds: {', '.join(KINDS)}"
)


def add_models(parser: argparse.ArgumentParser) -> None:
    """Options that say which models run, and what drafters are made from."""
    parser.add_argument(
        "--model",
        default=TARGET,
        help=f"the target: a shipped name ({TARGET}, {DRAFT}) or a folder that "
        "`jaxspec convert` or `jaxspec train` made (default: %(default)s)",
    )
    add_dtype(parser)
    add_drafting(parser)


def add_drafting(parser: argparse.ArgumentParser) -> None:
    """Options that say what drafters are made from, besides the target."""
    parser.add_argument(
        "--draft-model",
        default=DRAFT,
        help="the draft model of drafters that have one (default: %(default)s)",
    )
    parser.add_argument(
        "--datastore",
        type=pathlib.Path,
        help="text to retrieve from, made by `jaxspec tune datastore`",
    )
    parser.add_argument(
        "--trees",
        type=pathlib.Path,
        help="topologies for `sequoia`, made by `jaxspec tune tree` (default: those "
        "measured with the shipped pair)",
    )
    parser.add_argument(
        "--vocabulary",
        type=pathlib.Path,
        help="tokens that the draft model's head keeps, made by `jaxspec tune "
        "vocabulary` (default: all)",
    )
    parser.add_argument(
        "--survival",
        type=pathlib.Path,
        help="how often drafts are kept, for `dyspec-measured`, made by `jaxspec tune "
        "survival` (default: as measured with the shipped pair at temperature 1)",
    )


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """The option that says in what the models compute."""
    parser.add_argument(
        "--dtype",
        choices=pretrained.DTYPES,
        help="of activations and kernels (default: what each model's config says)",
    )


def add_verifier(parser: argparse.ArgumentParser) -> None:
    """The option that says what decides."""
    parser.add_argument(
        "--verifier",
        default="sample-and-match",
        choices=sorted(VERIFIERS),
        help="what decides which drafts are kept (default: %(default)s)",
    )


def add_rollback(parser: argparse.ArgumentParser, **settings: Any) -> None:
    """The option that says how to roll back; `nargs="+"` lets it be several."""
    parser.add_argument(
        "--rollback",
        choices=["auto", *ROLLBACKS],
        help="how rejected drafts leave no trace in the state (default: auto)",
        **settings,
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Options that say how tokens are chosen."""
    parser.add_argument(
        "--top-k",
        type=int,
        default=0,
        help="keep the K likeliest tokens; 0 keeps all (default: %(default)s)",
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        help="keep the likeliest tokens of mass P (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="texts with equal seeds agree, with speculation and without "
        "(default: %(default)s)",
    )


def check_sampling(args: argparse.Namespace) -> None:
    """Refuses settings that `add_sampling` and `--temperature` take and no law has.

    Raises:
        ValueError: naming the option.
    """
    if not 0 <= args.temperature < math.inf:
        raise ValueError(
            f"--temperature must not be negative or infinite, got {args.temperature}."
        )
    if args.top_k < 0:
        raise ValueError(f"--top-k must not be negative, got {args.top_k}.")
    if not 0 < args.top_p <= 1:
        raise ValueError(f"--top-p must be in (0, 1], got {args.top_p}.")


def check_integers(args: argparse.Namespace) -> None:
    """Refuses numbers beyond what arrays hold, whatever the option.

    Raises:
        ValueError: naming the option.
    """
    for name, value in vars(args).items():
        bits = WIDE.get(name, 31)
        for number in value if isinstance(value, list) else [value]:
            is_integer = isinstance(number, int) and not isinstance(number, bool)
            if is_integer and not -(2**bits) <= number < 2**bits:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} must be below 2**{bits}, got {number}.")


def check_positive(args: argparse.Namespace, *names: str) -> None:
    """Refuses options below what makes sense, before anything is done.

    Raises:
        ValueError: naming the option.
    """
    for name in names:
        value = getattr(args, name)
        for number in value if isinstance(value, list) else [value]:
            if number is not None and number <= 0:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} must be positive, got {number}.")


def check_files(args: argparse.Namespace, *names: str) -> None:
    """Refuses files that cannot be written where they are to be, before anything is done.

    Raises:
        ValueError: naming the option.
    """
    for name in names:
        path = getattr(args, name)
        if path is not None and not path.parent.is_dir():
            raise ValueError(f"There is no folder {path.parent} for --{name}.")
        if path is not None and path.is_dir():
            raise ValueError(f"--{name} must be a file, and {path} is a folder.")


def sources(args: argparse.Namespace) -> Sources:
    """What `add_models`' options name, besides the target."""
    return Sources(
        draft=args.draft_model,
        datastore=args.datastore,
        trees=args.trees,
        vocabulary=args.vocabulary,
        dtype=args.dtype,
        survival=args.survival,
    )


def make(args: argparse.Namespace, drafter: str, target: Folder) -> Made:
    """Makes a drafter from what `add_models`' options name."""
    return registry.plan(drafter, sources(args))(target)


def powers(number: int) -> list[int]:
    """Powers of two below a number, and it."""
    return [*(2**i for i in range(number.bit_length()) if 2**i < number), number]
