"""Prompts to measure with: where functions and classes of the standard library begin.

Of each module one definition, then a second of each, and so on, in an order that the seed
chooses; a prompt is the first third of its lines. Modules that training held out (by a
hash of the name, see `train.corpus`) are kept apart. No prompt may be one that is
evaluated on, nor part of one, nor hold one.
"""

import ast
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from jaxspec.measure import prompts as prompt_files
from jaxspec.train import corpus

LEAST_LINES, MOST_LINES = 3, 12  # of a prompt
LEAST_CHARACTERS = 40
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def read(
    count: int,
    seed: int = 0,
    held_out: bool = False,
    stdlib: str | pathlib.Path | None = None,
    disjoint_from: Sequence[str | pathlib.Path] = (),
) -> list[str]:
    """Beginnings of functions and classes, another choice for every seed.

    Args:
        count: prompts at most; there are fewer where there are fewer definitions.
        seed: of the choice.
        held_out: whether to take the modules that were held out of training, or all
            others.
        stdlib: folder of another standard library than this Python's.
        disjoint_from: files of prompts that are to be evaluated on, besides our own.

    Raises:
        ValueError: if there is nothing to choose from, or a prompt is to be evaluated on.
    """
    modules = corpus.read_modules(stdlib)
    modules = [m for m in modules if m.held_out == held_out and _is_varied(m.name)]
    rng = np.random.default_rng(seed)
    modules = [modules[i] for i in rng.permutation(len(modules))]
    found: dict[str, None] = {}  # in order, each once
    for prompt in _in_turn([_beginnings(m.text, rng) for m in modules]):
        if len(found) == count:
            break
        found[prompt] = None
    if not found:
        raise ValueError("The standard library holds no functions to begin with.")
    for path in (None, *disjoint_from):
        check_disjoint(list(found), prompt_files.read(path), path or "our own prompts")
    return list(found)


def _is_varied(name: str) -> bool:
    """The codecs are a hundred modules of the same few lines."""
    return not name.startswith("encodings.")


def _in_turn(several: list[Iterator[str]]) -> Iterator[str]:
    """One of each, then a second of each, and so on."""
    while several:
        rest = []
        for each in several:
            for prompt in each:
                yield prompt
                rest.append(each)
                break
        several = rest


def _beginnings(text: str, rng: np.random.Generator) -> Iterator[str]:
    """The first lines of the definitions of a module, in random order."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError):
        return
    nodes = [node for node in body if isinstance(node, _DEFINITIONS)]
    lines = text.splitlines()
    for i in rng.permutation(len(nodes)):
        own = lines[nodes[i].lineno - 1 : nodes[i].end_lineno]
        first = own[: min(max(LEAST_LINES, len(own) // 3), MOST_LINES)]
        prompt = "\n".join(first) + "\n"
        if len(own) > LEAST_LINES and len(prompt) >= LEAST_CHARACTERS:
            yield prompt


def check_disjoint(prompts: list[str], others: list[str], name: object) -> None:
    """Refuses prompts that are in others, or others that are in them.

    Args:
        prompts: to measure on.
        others: to evaluate on.
        name: of the others, for the message.

    Raises:
        ValueError: with the first that is.
    """
    for number, other in enumerate(others, 1):
        bare = other.strip()
        for prompt in prompts:
            if prompt.strip() in bare or bare in prompt:
                raise ValueError(
                    f"Prompt {number} of {name} and one to measure on are not disjoint: "
                    f"{bare[:60]!r} and {prompt.strip()[:60]!r}. Choose another --seed."
                )
