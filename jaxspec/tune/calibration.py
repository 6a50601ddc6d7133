"""Text to measure on: the target goes on from prompts, at the temperature to measure for.

Drafts are made for text that the target writes, so that is what is measured on.
"""

import argparse
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import tokenizers

from jaxspec import decoding, padding, prefill, pretrained, sampling
from jaxspec.cli import options
from jaxspec.core import Params
from jaxspec.measure.prompts import digest
from jaxspec.text import encoding
from jaxspec.tune import prompts as prompt_files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say on which text to measure."""
    parser.add_argument(
        "--model",
        default=options.TARGET,
        help="the target: a shipped name or a folder (default: %(default)s)",
    )
    options.add_dtype(parser)
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
    options.check_files(args, "out")


class Text(NamedTuple):
    """What the target goes on from.

    Attributes:
        prompts: tokens of each.
        held_out: whether they are of modules held out of training.
    """

    prompts: list[list[int]]
    held_out: bool

    @classmethod
    def of(
        cls,
        args: argparse.Namespace,
        tokenizer: tokenizers.Tokenizer,
        held_out: bool = False,
    ) -> "Text":
        """Reads what the options of `add_arguments` ask for."""
        found = prompt_files.read(
            args.prompts, args.seed, held_out, args.stdlib, args.disjoint_from
        )
        return cls([encoding.encode(tokenizer, prompt) for prompt in found], held_out)

    def record(self, args: argparse.Namespace) -> dict[str, Any]:
        """What to write down, so that the same text can be made and checked."""
        return {
            "prompts": len(self.prompts),
            "held_out": self.held_out,
            "sha256": digest(self.prompts),
            "seed": args.seed,
            "max_tokens": args.max_tokens,
            "disjoint_from": [path.name for path in args.disjoint_from],
        }


def generate_texts(
    target: pretrained.Pretrained,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    stops: Sequence[int] = (),
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
        stops: tokens that end a text.
        batch: texts decoded side by side; the result does not depend on it.
        seed: of the noise.
        advance: called with the number of texts that were just written.
    """
    padded, lengths = padding.pad_prompts(prompts)
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    keys = fold(sampling.key(seed), np.arange(len(prompts)))
    params = Params(target.params)
    texts = []
    for start in range(0, len(prompts), batch):
        index = np.arange(start, start + batch) % len(prompts)  # the last is filled up
        state = prefill.init_state(
            params,
            padded[index],
            lengths[index],
            target=target.model,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            stops=stops,
            keys=keys[index],
        )
        state = decoding.generate(params, state, target=target.model)
        ends, tokens = np.asarray(state.lengths), np.asarray(state.tokens)
        for row in range(min(batch, len(prompts) - start)):
            begin = len(prompts[start + row])
            texts.append(tokens[row, begin : ends[row]].tolist())
        advance(min(batch, len(prompts) - start))
    return texts
