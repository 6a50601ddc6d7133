"""A language model that is a table: the next token depends on the last two.

It has every function of the contract, no arithmetic but the look-up, and logits of
whatever dtype the table has, so that a whole step can be enumerated in float64.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec import ragged
from jaxspec.core import LanguageModel


def table(vocab, seed, dtype=np.float32, sharpness=1.0):
    """Params: logits `[V * V, V]` of what follows each pair of tokens."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(sharpness * rng.normal(size=(vocab * vocab, vocab)), dtype)


@functools.cache
def language_model(vocab, max_path=8):
    """Makes the model. Its carry is the last token read, its tape the tokens of a tree."""

    def place(before, token):
        return (before * vocab + token)[..., None].astype(jnp.float32)

    def init_carry(params, batch_size, max_length, speculative=True):
        return jnp.zeros((batch_size,), jnp.int32)

    def step(params, carry, token):
        return token, place(carry, token)

    def scan(params, carry, tokens, lengths):
        before = jnp.concatenate([carry[:, None], tokens], axis=1)
        return ragged.take_one(before, lengths), place(before[:, :-1], tokens)

    def init_tape(params, batch_size, num_nodes):
        return jnp.zeros((batch_size, num_nodes), jnp.int32)

    def extend_tree(params, carry, tape, tree, start, stop):
        tape = tape.at[:, start:stop].set(tree.tokens[:, start:stop])
        above = tree.parents[:, start:stop]
        before = ragged.take(tree.tokens, jnp.maximum(above, 0))
        before = jnp.where(above >= 0, before, carry[:, None])
        return tape, place(before, tree.tokens[:, start:stop])

    def scan_tree(params, carry, tree):
        tape = init_tape(params, *tree.parents.shape)
        tape, hidden = extend_tree(params, carry, tape, tree, 0, tree.num_nodes)
        return carry, tape, hidden

    def keep(tape, slots):
        return jnp.where(slots >= 0, ragged.take(tape, jnp.maximum(slots, 0)), 0)

    def commit(carry, tape, path):
        count = jnp.sum(path >= 0, axis=1)
        last = jnp.maximum(ragged.take_one(path, jnp.maximum(count - 1, 0)), 0)
        return jnp.where(count > 0, ragged.take_one(tape, last), carry)

    def logits(params, hidden):
        return params[hidden[..., 0].astype(jnp.int32)]

    def init(key):
        return jax.random.normal(key, (vocab * vocab, vocab))

    return LanguageModel(
        init=init,
        init_carry=init_carry,
        step=step,
        scan=scan,
        prepare=lambda params, carry: carry,
        init_tape=init_tape,
        extend_tree=extend_tree,
        scan_tree=scan_tree,
        keep=keep,
        commit=commit,
        logits=logits,
        vocab_size=vocab,
        max_path=max_path,
    )
