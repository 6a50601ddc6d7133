"""Draft models whose table has another number of rows than the target's.

Tables of one tokenizer are padded to different multiples: 50280 and 50288, 151936 and
152064. Rows beyond the tokenizer mean nothing, so such models can draft for each other:

    a larger table     logits are cut to the target's tokens;
    a smaller table    tokens that it lacks have logits of minus infinity, and are never
                       drafted; where the target emits one, the draft model reads its last.

What the draft model reads for a token that it lacks changes what it drafts next and
nothing else: the target's law is kept whatever the drafts are.
"""

import functools

import jax
import jax.numpy as jnp

from jaxspec.core import LanguageModel
from jaxspec.trees import TokenTree

Array = jax.Array


def with_vocab_size(model: LanguageModel, vocab_size: int) -> LanguageModel:
    """Makes a model speak of `vocab_size` tokens, whatever its own table has.

    The params stay the model's. Those of a trimmed head (`drafting.vocabulary`) must name
    tokens that both tables have, and their logits stay of these.

    Args:
        model: any `LanguageModel` of the target's tokenizer.
        vocab_size: the target's.

    Raises:
        ValueError: if the size is not positive.
    """
    if vocab_size < 1:
        raise ValueError(f"vocab_size must be positive, got {vocab_size}.")
    return model if vocab_size == model.vocab_size else _resize(model, vocab_size)


@functools.cache
def _resize(model: LanguageModel, vocab_size: int) -> LanguageModel:
    own = model.vocab_size
    missing = vocab_size - own

    def known(tokens: Array) -> Array:
        return jnp.minimum(tokens, own - 1)

    def known_tree(tree: TokenTree) -> TokenTree:
        return tree.replace(tokens=known(tree.tokens))

    def step(params, carry, token: Array):
        return model.step(params, carry, known(token))

    def scan(params, carry, tokens: Array, lengths: Array):
        return model.scan(params, carry, known(tokens), lengths)

    def extend_tree(params, carry, tape, tree: TokenTree, start: int, stop: int):
        return model.extend_tree(params, carry, tape, known_tree(tree), start, stop)

    def scan_tree(params, carry, tree: TokenTree):
        return model.scan_tree(params, carry, known_tree(tree))

    def logits(params, hidden: Array) -> Array:
        found = model.logits(params, hidden)
        if missing < 0 or found.shape[-1] < own:  # cut, or of a trimmed head
            return found[..., :vocab_size]
        widths = [(0, 0)] * (found.ndim - 1) + [(0, missing)]
        return jnp.pad(found, widths, constant_values=-jnp.inf)

    return model._replace(
        step=step,
        scan=scan,
        extend_tree=extend_tree,
        scan_tree=scan_tree,
        logits=logits,
        vocab_size=vocab_size,
    )
