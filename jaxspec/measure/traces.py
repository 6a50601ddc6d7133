"""Texts with the trees that a drafter proposes at every position of them.

With `sample_and_match` a text does not depend on drafts. So one run, in which a tree is
proposed before every token and none is verified, tells what any number of drafts would have
brought at any place: policies are compared exactly, without a device (`replay`).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec import budgets, compilation, padding, prefill, sampling, stepping
from jaxspec.core import Drafter, LanguageModel, Params
from jaxspec.serving.gains import path, ranks
from jaxspec.verification.sample_and_match import sample_and_match


@dataclasses.dataclass(frozen=True)
class Trace:
    """A text, and what drafts would have brought.

    Attributes:
        prompt: tokens of the prompt.
        tokens: that were added.
        paths: for every position of these, the ranks of the drafts that the text goes
            through from there, root first: `paths[i]` are proposed behind token `i - 1`.
        sizes: by position, how many drafts are proposed.
    """

    prompt: int
    tokens: int
    paths: list[list[int]]
    sizes: list[int]


def record(
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    target: LanguageModel,
    drafter: Drafter,
    max_new_tokens: int,
    temperature: float,
    stops: Sequence[int] = (),
    batch_size: int = 8,
    advance: Callable[[], None] = lambda: None,
) -> list[Trace]:
    """Writes texts token by token, and what a drafter proposes before each.

    Args:
        params: of the target and the drafter.
        prompts: lists of tokens.
        target: the model.
        drafter: what proposes.
        max_new_tokens: of each text.
        temperature: 0 is greedy.
        stops: tokens that end a text.
        batch_size: texts that are written side by side.
        advance: is called for every text.
    """
    found = []
    longest = padding.round_up(max(map(len, prompts)), padding.SIZES) + max_new_tokens
    for first in range(0, len(prompts), batch_size):
        batch = list(prompts[first : first + batch_size])
        seeds = np.arange(first, first + batch_size)
        batch += [[0]] * (batch_size - len(batch))  # the same shape for the last one
        tokens, lengths = padding.pad_prompts(batch)
        state = prefill.init_state(
            params,
            tokens,
            lengths,
            target=target,
            drafter=drafter,
            max_length=longest,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            stops=tuple(stops),
            keys=jax.vmap(sampling.key)(seeds),
        )
        trees = []
        for _ in range(max_new_tokens):
            state, tree = _step(params, state, target=target, drafter=drafter)
            trees.append(tree)
        trees = [np.stack(each) for each in zip(*jax.device_get(trees), strict=True)]
        text, ends = np.asarray(state.tokens), np.asarray(state.lengths)
        for row, prompt in enumerate(prompts[first : first + batch_size]):
            own = text[row, len(prompt) : ends[row]].tolist()
            drafts, parents, score = (each[: len(own), row] for each in trees)
            paths = [
                ranks(parents[i], score[i])[
                    path(drafts[i], parents[i], own[i:])
                ].tolist()
                for i in range(len(own))
            ]
            sizes = (parents[:, 1:] >= 0).sum(axis=1).tolist()
            found.append(Trace(len(prompt), len(own), paths, sizes))
            advance()
    return found


@functools.partial(compilation.jit, static_argnames=("target", "drafter"))
def _step(params, state, *, target, drafter):
    """Proposes a tree, and writes one token as if there was none."""
    state, draft = stepping.propose(params, state, drafter=drafter)
    tree = draft.tree.tokens, draft.tree.parents, draft.score
    draft = budgets.limit(draft, jnp.zeros_like(state.lengths))
    state, outcome = stepping.verify(
        params, state, draft, target=target, verifier=sample_and_match()
    )
    return stepping.observe(params, state, outcome, drafter=drafter), tree
