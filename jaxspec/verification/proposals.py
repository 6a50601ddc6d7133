"""What a verifier asks of a tree: a node's next child, and the law it was drawn from."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxspec import sampling
from jaxspec.core import Draft, Verdict

Array = jax.Array


def next_child(parents: Array, node: Array, after: Array) -> tuple[Array, Array]:
    """The first child of `node` in a slot beyond `after`, and whether there is one.

    Siblings are tested in the order of their slots, which is that of their draws.
    """
    slots = jnp.arange(parents.shape[0])
    waiting = (parents == node) & (slots > after) & (slots > 0)
    return jnp.argmax(waiting).astype(jnp.int32), jnp.any(waiting)


def child_law(draft: Draft, child: Array, tested: Array) -> Array:
    """The law `[V]` that a child of one tree was drawn from.

    Zeros, which refuse the child, where the draft's logits leave no law: they are not
    finite, or all that were possible have been tested.

    Args:
        draft: without the batch axis.
        child: `[]`, its slot.
        tested: `[V]` bool, tokens of its earlier siblings.
    """
    size = tested.shape[0]
    dtype, kind = draft.draft_logits.dtype, draft.kind[child]
    itself = jax.nn.one_hot(draft.tree.tokens[child], size, dtype=dtype)
    if draft.draft_logits.shape[0] == 0:
        return itself
    logits = draft.draft_logits[draft.logits_row[draft.tree.parents[child]]]
    if draft.vocab_ids is not None:
        logits = jnp.full((size,), -jnp.inf, dtype).at[draft.vocab_ids].set(logits)
    left = jnp.where(tested & (kind != Draft.IID), -jnp.inf, logits)
    drawn = jnp.where(jnp.isfinite(jnp.max(left)), jax.nn.softmax(left), 0.0)
    return jnp.where(kind == Draft.DETERMINISTIC, itself, drawn)


def verify(
    verify_row: Callable[..., Verdict],
    keys: Array,
    draft: Draft,
    logits: Array,
    settings: sampling.Sampling,
) -> Verdict:
    """Verifies a batch by a verifier of one row that uses the draft's laws.

    Raises:
        ValueError: if the draft shares its noise with the emission: its laws do not say
            how likely it was.
    """
    if draft.coupled:
        raise ValueError(
            "This draft was drawn with the noise that emits (noise='shared'), so that its "
            "laws do not say how likely it was; verify it with sample_and_match."
        )

    needs, vocab_ids = sampling.needs(settings), draft.vocab_ids

    def row(key, one, logits, settings):
        one = one.replace(vocab_ids=vocab_ids)
        return verify_row(key, one, logits, settings, needs)

    return jax.vmap(row)(keys, draft.replace(vocab_ids=None), logits, settings)
