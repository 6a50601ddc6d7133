"""Two drafters in one tree: what one proposes, and what the other does beyond it.

The trees are merged by longest prefix: where both propose a token after the same tokens it
is one node, and their continuations part below it. The first drafter's nodes come first
and the second's fill what is left, so that the surer one, a look-up in the text before
one in a datastore, stands first. No chance is involved, hence every verifier keeps the
target's law.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec import checks, trees
from jaxspec.core import Context, Draft, Drafter, Outcome, deterministic_draft
from jaxspec.core.drafter import Propose
from jaxspec.drafting import survival

Array = jax.Array


class Pair(NamedTuple):
    """Params, or states, of two drafters."""

    first: Any
    second: Any


def fuse(first: Drafter, second: Drafter, num_nodes: int) -> Drafter:
    """Makes a drafter of two that draft without chance; its params are a `Pair`.

    Args:
        first: a drafter that observes what is emitted and nothing else of a verdict, as
            `ngram` and `retrieval` do.
        second: likewise.
        num_nodes: slots of the tree, the root included.

    Raises:
        ValueError: if there is no slot, or the two have vocabularies of different sizes.
            While proposing, if one draws by chance.
    """
    checks.record("first", first, Drafter)
    checks.record("second", second, Drafter)
    if num_nodes < 1:
        raise ValueError(f"Expected num_nodes >= 1, got {num_nodes}.")
    sizes = {n for n in (first.vocab_size, second.vocab_size) if n is not None}
    if len(sizes) > 1:
        raise ValueError(
            f"The two drafters have vocabularies of {sorted(sizes)} tokens."
        )
    return _fuse(first, second, num_nodes)


@functools.cache
def _fuse(first: Drafter, second: Drafter, num_nodes: int) -> Drafter:
    max_path = max(first.max_path, second.max_path)
    vocab_size = second.vocab_size if first.vocab_size is None else first.vocab_size

    def propose(params: Pair, state: Pair, context: Context) -> tuple[Pair, Draft]:
        own, draft = first.propose(params.first, state.first, context)
        other, more = second.propose(params.second, state.second, context)
        check_deterministic(draft)
        check_deterministic(more)
        tree, members = trees.merge(draft.tree, more.tree, num_nodes, max_path)
        scores = jnp.concatenate([draft.score, more.score[:, 1:]], axis=1)
        score = jnp.max(jnp.where(members, scores[:, None], 0.0), axis=2)
        score = survival.settle(tree, survival.ordered(tree, score))
        return Pair(own, other), deterministic_draft(tree, max_path, score)

    return together(first, second, propose, max_path, vocab_size)


def together(
    first: Drafter,
    second: Drafter,
    propose: Propose,
    max_path: int,
    vocab_size: int | None,
) -> Drafter:
    """Makes a drafter whose params and state are a `Pair` of those of two.

    Args:
        first: takes in whatever is absorbed and observed.
        second: likewise.
        propose: makes one draft with both.
        max_path: nodes on the longest path, the root included.
        vocab_size: `V`, or None.
    """

    def init(params: Pair, batch_size: int, max_length: int) -> Pair:
        checks.record("the params of two drafters", params, Pair)
        return Pair(
            first.init(params.first, batch_size, max_length),
            second.init(params.second, batch_size, max_length),
        )

    def absorb(
        params: Pair, state: Pair, tokens: Array, hidden: Array, lengths: Array
    ) -> Pair:
        return Pair(
            first.absorb(params.first, state.first, tokens, hidden, lengths),
            second.absorb(params.second, state.second, tokens, hidden, lengths),
        )

    def observe(params: Pair, state: Pair, outcome: Outcome) -> Pair:
        return Pair(
            first.observe(params.first, state.first, outcome),
            second.observe(params.second, state.second, outcome),
        )

    return Drafter(init, absorb, propose, observe, max_path, vocab_size)


def check_deterministic(draft: Draft) -> None:
    """Refuses a draft that was drawn.

    Raises:
        ValueError: if it has laws, or shares its noise with the emission.
    """
    laws = draft.draft_logits.shape[1]
    if laws or draft.coupled:
        raise ValueError(
            "Expected a drafter without chance, as `ngram` or `retrieval`; got one with "
            f"{laws} laws{' and shared noise' if draft.coupled else ''}."
        )
