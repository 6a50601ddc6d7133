"""`convolve` by one gather of all windows."""

import jax.numpy as jnp


def convolve(window, inputs, tail, weight, bias):
    batch, queries, width = window.shape
    tokens = jnp.concatenate([tail, inputs], axis=1)
    gathered = jnp.take_along_axis(tokens, window.reshape(batch, -1, 1), axis=1)
    gathered = gathered.reshape(batch, queries, width, -1)
    return jnp.sum(gathered * weight[None, None], axis=2) + bias[None, None]
