"""Text to measure on: the target goes on where functions and classes of Python begin.

Prompts are the first lines of definitions in the standard library of this Python; what
follows is the target's own, at the temperature that is measured for, since that is the
text that drafts are for. Modules that training held out (by a hash of the name, see
`train.corpus`) are kept apart: what is measured on the others is checked on these. No
prompt may be one of an evaluation, nor part of one.
"""

import argparse
import ast
import hashlib
import pathlib
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from jaxspec import decode_state, decoding, pretrained
from jaxspec.bench import prompts as prompt_files
from jaxspec.cli import options
from jaxspec.train import corpus

LEAST_LINES, MOST_LINES = 3, 12  # of a prompt
LEAST_CHARACTERS = 40
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say on which text to measure."""
    parser.add_argument(
        "--model",
        default=options.TARGET,
        help="the target: a shipped name or a folder (default: %(default)s)",
    )
    parser.add_argument(
        "--prompts",
        type=int,
        default=64,
        help="beginnings of functions and classes to go on from (default: %(default)s)",
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=128,
        help="tokens to add to each at most (default: %(default)s)",
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=16,
        help="texts decoded side by side (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="which prompts, and which texts (default: %(default)s)",
    )
    parser.add_argument(
        "--stdlib",
        type=pathlib.Path,
        help="take prompts from this standard library instead of this Python's",
    )
    parser.add_argument(
        "--disjoint-from",
        type=pathlib.Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="jsonl files of prompts to evaluate on, as `bench decode --prompts` takes "
        "them: fail if one of them contains a prompt or is part of one. Our own are "
        "always looked at",
    )


def check(args: argparse.Namespace) -> None:
    """Refuses options that cannot be served, before anything is done.

    Raises:
        ValueError: naming the option.
    """
    options.check_positive(args, "prompts", "max_tokens", "batch")
    if not args.out.parent.is_dir():
        raise ValueError(f"There is no folder {args.out.parent} for --out.")


def read_prompts(
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


def digest(prompts: Sequence[Sequence[int]]) -> str:
    """SHA-256 of prompts as tokens: equal if and only if all tokens are."""
    lines = (" ".join(map(str, prompt)) for prompt in prompts)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def generate_texts(
    target: pretrained.Pretrained,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    batch: int = 16,
    seed: int = 0,
    advance: Callable[[int], None] = lambda texts: None,
) -> list[list[int]]:
    """What the target goes on with, prompt by prompt, up to the end of the text.

    Args:
        target: model, params and tokenizer.
        prompts: tokens.
        max_new_tokens: tokens to add at most.
        temperature: 0 is greedy.
        batch: texts decoded side by side; the result does not depend on it.
        seed: of the noise.
        advance: called with the number of texts that were just written.
    """
    padded, lengths = decode_state.pad_prompts(prompts)
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    keys = fold(jax.random.key(seed), np.arange(len(prompts)))
    params = decode_state.Params(target.params)
    texts = []
    for start in range(0, len(prompts), batch):
        index = np.arange(start, start + batch) % len(prompts)  # the last is filled up
        state = decode_state.init_state(
            params,
            padded[index],
            lengths[index],
            target=target.model,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            stops=pretrained.stop_tokens(target.tokenizer),
            keys=keys[index],
        )
        state = decoding.generate(params, state, target=target.model)
        ends, tokens = np.asarray(state.lengths), np.asarray(state.tokens)
        for row in range(min(batch, len(prompts) - start)):
            begin = len(prompts[start + row])
            texts.append(tokens[row, begin : ends[row]].tolist())
        advance(min(batch, len(prompts) - start))
    return texts
