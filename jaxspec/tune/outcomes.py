"""What becomes of drafts: decodes, and notes which nodes the verifier kept.

Every node of every tree counts, tested or not: a score is of the whole path. A verdict is
looked at before stops and budgets cut it.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec import compilation, padding, prefill, sampling, stepping
from jaxspec.core import Draft, Drafter, LanguageModel, Params, Verifier
from jaxspec.verification import proposals

Array = jax.Array


class Outcomes(NamedTuple):
    """Drafts `[n]`, and what became of them.

    Attributes:
        score: of each, as it was proposed.
        kept: whether the verifier kept it.
        reached: whether its parent was kept and no earlier sibling.
        rank: its place among its siblings.
        probability: of its token, among those left by its earlier siblings; 0 if it was
            not drawn without replacement.
    """

    score: np.ndarray
    kept: np.ndarray
    reached: np.ndarray
    rank: np.ndarray
    probability: np.ndarray


class Setup(NamedTuple):
    """Who drafts for whom, and who judges.

    Attributes:
        params: of the target and the drafter.
        target: the target.
        drafter: the drafter.
        verifier: the verifier.
    """

    params: Params
    target: LanguageModel
    drafter: Drafter
    verifier: Verifier


def measure(
    setup: Setup,
    prompts: Sequence[Sequence[int]],
    *,
    temperature: float,
    max_new_tokens: int,
    stops: Sequence[int] = (),
    batch: int = 16,
    seed: int = 0,
    advance: Callable[[int], None] = lambda texts: None,
) -> Outcomes:
    """Goes on from prompts and notes the outcomes of all drafts.

    Args:
        setup: target, drafter and verifier.
        prompts: tokens.
        temperature: of the target.
        max_new_tokens: tokens to add at most to each.
        stops: tokens that end a text.
        batch: texts decoded side by side.
        seed: of the noise.
        advance: called with the number of texts that were just written.
    """
    padded, lengths = padding.pad_prompts(prompts)
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    keys = fold(sampling.key(seed), np.arange(len(prompts)))
    static = {name: getattr(setup, name) for name in ("target", "drafter", "verifier")}
    found = []
    for start in range(0, len(prompts), batch):
        index = np.arange(start, start + batch) % len(prompts)
        state = prefill.init_state(
            setup.params,
            padded[index],
            lengths[index],
            target=setup.target,
            drafter=setup.drafter,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            stops=stops,
            keys=keys[index],
        )
        real = np.arange(batch) < len(prompts) - start  # the last batch is filled up
        while not np.asarray(state.done)[real].all():
            state, seen, counts = _step(setup.params, state, **static)
            counts = np.asarray(counts) & real[:, None]
            found.append(
                jax.tree.map(lambda leaf, on=counts: np.asarray(leaf)[on], seen)
            )
        advance(min(batch, len(prompts) - start))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *found)


@functools.partial(compilation.jit, static_argnames=("target", "drafter", "verifier"))
def _step(params, state, *, target, drafter, verifier):
    """A step, the outcomes `[B, N]` of its drafts, and which of them count."""
    state, draft = stepping.propose(params, state, drafter=drafter)
    state, outcome = stepping.verify(
        params, state, draft, target=target, verifier=verifier
    )
    state = stepping.observe(params, state, outcome, drafter=drafter)
    drafts = outcome.tree.parents >= 0
    return state, outcomes(draft, outcome.kept, target.vocab_size), drafts


def outcomes(draft: Draft, kept: Array, vocab_size: int) -> Outcomes:
    """The outcomes `[B, N]` of a draft of which some `[B, N]` were kept."""
    parents, slots = draft.tree.parents, jnp.arange(draft.tree.num_nodes)
    siblings = (parents[:, :, None] == parents[:, None]) & (parents >= 0)[:, None]
    earlier = (
        siblings & (slots[None] < slots[:, None])[None]
    )  # [B, N, N]: `j` before `i`
    passed = jnp.any(earlier & kept[:, None], axis=2)
    above = jnp.take_along_axis(
        kept.at[:, 0].set(True), jnp.maximum(parents, 0), axis=1
    )
    return Outcomes(
        draft.score,
        kept,
        above & ~passed,
        jnp.sum(earlier, axis=2, dtype=jnp.int32),
        _probability(draft, earlier, vocab_size),
    )


def _probability(draft: Draft, earlier: Array, vocab_size: int) -> Array:
    """What each token was drawn with `[B, N]`, 0 if not without replacement."""
    if draft.draft_logits.shape[1] == 0:
        return jnp.zeros(draft.score.shape, jnp.float32)
    vocab_ids = draft.vocab_ids

    def row(one: Draft, earlier: Array) -> Array:
        one = one.replace(vocab_ids=vocab_ids)
        tokens = one.tree.tokens

        def node(slot: Array, earlier: Array) -> Array:
            taken = jnp.where(earlier, tokens, vocab_size)
            tested = jnp.zeros((vocab_size,), bool).at[taken].set(True, mode="drop")
            return proposals.child_law(one, slot, tested)[tokens[slot]]

        return jax.vmap(node)(jnp.arange(len(tokens)), earlier)

    found = jax.vmap(row)(draft.replace(vocab_ids=None), earlier)
    return jnp.where(draft.kind == Draft.WITHOUT_REPLACEMENT, found, 0.0)
