"""What trees cost on this machine, in autoregressive steps of the same loop.

A call of the target over `n` nodes is timed with a drafter that costs nothing, in the
loop that decodes: `t(n)`. What the draft model adds to a call, over its levels, is `c`.
Each is the least of many short timings: what else a machine does can only add to a time.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxspec import decoding, padding, prefill
from jaxspec.core import Draft, Drafter, LanguageModel, Params, deterministic_draft
from jaxspec.drafting import sequoia
from jaxspec.drafting.model import draft_model
from jaxspec.drafting.static import static_tree
from jaxspec.measure import timing
from jaxspec.trees import TokenTree
from jaxspec.verification.recursive_rejection import recursive_rejection

STEPS = 16  # of the loop, in one timing


class Costs(NamedTuple):
    """Times of one step.

    Attributes:
        autoregressive: seconds.
        verify: `t(n)` by budget, in autoregressive steps.
        level: `c`, in autoregressive steps.
        busy: the median over the least time of the autoregressive loop. Near 1 on a
            machine of one's own; far above, no time is to be trusted.
    """

    autoregressive: float
    verify: dict[int, float]
    level: float
    busy: float


def measure(
    target: LanguageModel,
    draft: LanguageModel,
    params: Params,
    prompt: list[int],
    trees: dict[int, tuple[int, ...]],
    *,
    law: str,
    temperature: float,
    repeats: int,
) -> Costs:
    """Times the loop with each tree, batch 1.

    Args:
        target: the model.
        draft: the draft model.
        params: of both.
        prompt: tokens to begin with.
        trees: parents by budget; the draft model is timed over the one in the middle.
        law: how the draft model's children are chosen.
        temperature: 0 is greedy.
        repeats: timings of which the least counts.
    """
    tokens, lengths = padding.pad_prompts([prompt])
    settings = {
        "target": target,
        "max_new_tokens": STEPS * target.max_path,
        "temperature": temperature,
    }

    def call(drafter):
        state = prefill.init_state(params, tokens, lengths, drafter=drafter, **settings)
        if drafter is None:
            return lambda: (
                decoding.generate(params, state, target=target, max_steps=STEPS).tokens
            )
        return lambda: (
            decoding.speculative_generate(
                params,
                state,
                target=target,
                drafter=drafter,
                verifier=recursive_rejection(),
                max_steps=STEPS,
            )[0].tokens
        )

    budgets = sorted(trees)
    middle = budgets[len(budgets) // 2]
    calls: dict[Any, Any] = {n: call(_free(trees[n])) for n in budgets}
    calls["AR"] = call(None)
    calls["drafted"] = call(draft_model(draft, static_tree(trees[middle], law)))
    times = timing.rounds(calls, repeats)
    least = {name: float(np.min(values)) for name, values in times.items()}
    step = least["AR"]
    added = max(least["drafted"] - least[middle], 0.0)
    return Costs(
        step / STEPS,
        {n: least[n] / step for n in budgets},
        added / step / sequoia.num_levels(trees[middle]),
        float(np.median(times["AR"])) / step,
    )


@functools.cache
def _free(parents: tuple[int, ...]) -> Drafter:
    """Proposes one tree of zeros, again and again."""
    max_path = sequoia.num_levels(parents) + 1

    def propose(params, state, context) -> tuple[Any, Draft]:
        del params
        shape = (len(context.root), len(parents))
        above = jnp.broadcast_to(jnp.array(parents, jnp.int32), shape)
        tokens = jnp.zeros(shape, jnp.int32).at[:, 0].set(context.root)
        return state, deterministic_draft(TokenTree(tokens, above), max_path)

    return Drafter(
        init=lambda *_: (),
        absorb=lambda params, state, *_: state,
        propose=propose,
        observe=lambda params, state, outcome: state,
        max_path=max_path,
        vocab_size=None,
    )
