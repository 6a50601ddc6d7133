"""What drafters are told, made by hand: texts to go on with, and what became of drafts."""

import jax.numpy as jnp
import numpy as np

import tiny
from jaxspec.core import Context, Outcome, emitted_tokens


def of_roots(root, keys=None, settings=None):
    """Texts of which only the root is known."""
    return of_texts(jnp.asarray(root)[:, None], None, keys, settings)


def of_texts(texts, lengths=None, keys=None, settings=None):
    """Texts, a list of lists or padded tokens, without limits to what is verified.

    Behind the end of a list, where a text has nothing, stands a token that may mislead.
    """
    if lengths is None:
        lengths = jnp.array([len(text) for text in texts], jnp.int32)
    if isinstance(texts, list):
        tokens = np.ones((len(texts), max(12, *map(len, texts)) + 8), np.int32)
        for row, text in enumerate(texts):
            tokens[row, : len(text)] = text
        texts = jnp.asarray(tokens)
    settings = tiny.settings(len(texts)) if settings is None else settings
    budget = jnp.full((len(texts),), 2**31 - 1, jnp.int32)
    return Context(texts, lengths, keys, settings, budget)


def outcome(tree, verdict, hidden=None, logits=None):
    """What becomes of a draft that is emitted as the verdict says, uncut."""
    tokens, count = emitted_tokens(tree, verdict)
    return Outcome(tree, verdict, tokens, count, hidden, logits, None, None)
