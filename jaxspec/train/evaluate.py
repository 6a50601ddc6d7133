"""Held-out bits per byte: the whole of every file, its carry running from end to end."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec import compilation
from jaxspec.core import LanguageModel

_CHUNK = 512


@functools.partial(compilation.jit, static_argnames="model")
def _score(model: LanguageModel, params, carry, tokens, lengths):
    """Absorbs a chunk `[B, T + 1]` and returns the nats of its last `T` tokens."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    carry, hidden = model.scan(params, carry, inputs, lengths)
    laws = jax.nn.log_softmax(model.logits(params, hidden))
    nats = -jnp.take_along_axis(laws, targets[..., None], axis=-1)[..., 0]
    live = jnp.arange(inputs.shape[1])[None] < lengths[:, None]
    return carry, jnp.sum(jnp.where(live, nats, 0.0), axis=1)


def bits_per_byte(
    model: LanguageModel,
    params,
    documents: list[np.ndarray],
    num_bytes: int,
    batch_size: int = 8,
) -> float:
    """Bits that a model needs per byte of text.

    Args:
        model: the model.
        params: its parameters.
        documents: tokens of each text, its end-of-text token last. The first token is
            predicted from an end-of-text token in front.
        num_bytes: bytes of all texts together.
        batch_size: documents scored side by side, of similar length.
    """
    documents = sorted(documents, key=len, reverse=True)
    total = 0.0
    for start in range(0, len(documents), batch_size):
        group = documents[start : start + batch_size]
        group += [np.zeros((0,), np.int32)] * (batch_size - len(group))
        chunks = math.ceil(len(group[0]) / _CHUNK)
        tokens = np.zeros((batch_size, chunks * _CHUNK + 1), np.int32)
        for row, document in enumerate(group):
            if len(document):
                tokens[row, 0] = document[-1]
                tokens[row, 1 : 1 + len(document)] = document
        lengths = np.array([len(document) for document in group])
        # Powers of two, so that the cache of few sizes is compiled for.
        capacity = _CHUNK * 2 ** math.ceil(math.log2(chunks))
        carry = model.init_carry(params, batch_size, capacity, speculative=False)
        for i in range(0, chunks * _CHUNK, _CHUNK):
            live = jnp.asarray(np.clip(lengths - i, 0, _CHUNK), jnp.int32)
            chunk = jnp.asarray(tokens[:, i : i + _CHUNK + 1])
            carry, nats = _score(model, params, carry, chunk, live)
            total += float(jnp.sum(nats))
    return total / math.log(2) / num_bytes
