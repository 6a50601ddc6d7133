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

    Args:
        draft: without the batch axis.
        child: `[]`, its slot.
        tested: `[V]` bool, tokens of its earlier siblings.
    """
    size = tested.shape[0]
    itself = jax.nn.one_hot(draft.tree.tokens[child], size, dtype=draft.law.dtype)
    if draft.law.shape[0] == 0:
        return itself
    law = draft.law[draft.law_row[draft.tree.parents[child]]]
    if draft.vocab_ids is not None:
        law = jnp.zeros((size,), law.dtype).at[draft.vocab_ids].set(law)
    rest = jnp.where(tested, 0.0, law)
    mass = jnp.sum(rest)
    rest = rest / jnp.where(mass > 0.0, mass, 1.0)
    kind = draft.kind[child]
    drawn = jnp.where(kind == Draft.IID, law, rest)
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

    def row(key, tree, kind, law, law_row, logits, settings):
        one = draft.replace(tree=tree, kind=kind, law=law, law_row=law_row)
        return verify_row(key, one, logits, settings, needs)

    needs = sampling.needs(settings)
    own = draft.tree, draft.kind, draft.law, draft.law_row
    return jax.vmap(row)(keys, *own, logits, settings)
