"""What the suites of the two scans do to records of tokens."""

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import Inputs


def cut(inputs, start, stop):
    """The records of some of the tokens."""
    return Inputs(*(a[:, start:stop] for a in inputs))


def pad(inputs, slots):
    """The records with unused slots after them."""
    widths = [(0, 0), (0, slots), (0, 0), (0, 0)]
    return Inputs(*(np.pad(a, widths[: a.ndim]) for a in inputs))


def halve(inputs):
    """The records of bfloat16 activations; step sizes stay float32."""
    x, B = inputs.x.astype(jnp.bfloat16), inputs.B.astype(jnp.bfloat16)
    return inputs._replace(x=x, B=B)


def widen(tree):
    """The same numbers in float32."""
    return jax.tree.map(lambda a: a.astype(np.float32), tree)


def overwrite(tree, nodes, value):
    """The arrays with `value` in all slots but those of `nodes` `[B, N]`."""

    def fill(a):
        mask = nodes.reshape(nodes.shape + (1,) * (a.ndim - 2))
        return np.where(mask, a, np.float32(value))

    return jax.tree.map(fill, tree)
