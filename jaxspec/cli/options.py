"""Options that several commands share, and what they stand for."""

import argparse
from typing import Any, NamedTuple

from jaxspec import pretrained
from jaxspec.core import Drafter
from jaxspec.decode_state import Params
from jaxspec.drafting.model import draft_model
from jaxspec.drafting.ngram import ngram
from jaxspec.models.rollback import ROLLBACKS, Rollback
from jaxspec.verification.sample_and_match import sample_and_match

TARGET, DRAFT = "stdlib-8m", "stdlib-draft"
VERIFIERS = {"sample-and-match": sample_and_match}
DEFAULT_TREES = {"ngram": "8", "model": "chain:4"}

TREE_HELP = """\
shape of the draft tree. `chain:K`: one chain of K drafts. `N` (ngram only): several \
matches merged into a tree of N nodes, the root included. `A,B,...` (model only): every \
node at depth 0 has A children, at depth 1 B, and so on."""


class Setup(NamedTuple):
    """A target and a drafter, ready to decode."""

    target: pretrained.Pretrained
    drafter: Drafter
    params: Params


def add_model(parser: argparse.ArgumentParser) -> None:
    """Options that say which models run."""
    parser.add_argument(
        "--model",
        default=TARGET,
        help=f"the target: a shipped name ({TARGET}, {DRAFT}) or a folder with "
        "config.json, model.safetensors and tokenizer.json (default: %(default)s)",
    )
    parser.add_argument(
        "--draft-model",
        default=DRAFT,
        help="the draft model of `--drafter model` (default: %(default)s)",
    )
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


def parse_tree(drafter: str, text: str | None) -> dict[str, Any]:
    """Turns `--tree` into the arguments of a drafter's factory.

    Raises:
        ValueError: if it is no tree for that drafter.
    """
    text = text or DEFAULT_TREES[drafter]
    is_chain = text.startswith("chain:")
    try:
        sizes = tuple(int(part) for part in text.removeprefix("chain:").split(","))
    except ValueError:
        sizes = ()
    if len(sizes) == 1 and is_chain and sizes[0] >= 1:
        length = sizes[0]
        if drafter == "model":
            return {"builder": (1,) * length}
        return {"num_nodes": length + 1, "max_path": length + 1, "num_matches": 1}
    if drafter == "model" and sizes and not is_chain and min(sizes) >= 1:
        return {"builder": sizes}
    if drafter == "ngram" and len(sizes) == 1 and not is_chain and sizes[0] >= 2:
        path = min(sizes[0], 8)
        matches = max(4, -(-(sizes[0] - 1) // (path - 1)))
        return {"num_nodes": sizes[0], "max_path": path, "num_matches": matches}
    expected = "A,B,..." if drafter == "model" else "N >= 2"
    raise ValueError(
        f"{text!r} is no tree for the {drafter} drafter; expected chain:K or {expected}."
    )


def load(
    args: argparse.Namespace, drafter: str, tree: str | None, rollback: Rollback
) -> Setup:
    """Loads the models that `add_model`'s options name, and makes the drafter."""
    shape = parse_tree(drafter, tree)
    max_path = shape.get("max_path") or len(shape["builder"]) + 1
    target = pretrained.load(args.model, rollback=rollback, max_path=max_path)
    if drafter == "ngram":
        return Setup(target, ngram(**shape), Params(target.params))
    draft = pretrained.load(args.draft_model, max_path=max_path)
    pretrained.check_same_tokenizer(target.tokenizer, draft.tokenizer)
    params = Params(target.params, draft.params)
    return Setup(target, draft_model(draft.model, **shape), params)
