"""What the delta rule writes is exact to float32 even where keys resemble each other.

Texts repeat themselves, and so do keys. The systems are solved in float64 by substitution;
a Neumann series, which must not be used, fails on the same ones.
"""

import functools

import jax
import numpy as np
import pytest

import kernel_trees
from kernel_records import normal, unit
from kernel_trees import jitted
from pallas_kernels import DeltaInputs, topology, tree_delta
from pallas_kernels.tree_delta import xla

COSINES, BETAS = (0.5, 0.9), (0.9, 1.9)


# The definition is a loop, whose program would be long.
NAMES = [name for name in kernel_trees.runnable(tree_delta) if name != "reference"]
lengths = pytest.mark.parametrize("length", [8, 16, 32, 64])


def resembling_keys(rng, cosine, *shape):
    """Keys whose products with each other are about `cosine`."""
    own = normal(rng, *shape) / np.sqrt(shape[-1])
    common = unit(normal(rng, shape[-1]), shape[-1])
    return unit(np.sqrt(cosine) * common + np.sqrt(1 - cosine) * own, shape[-1])


def make_long_chains(length, width=64):
    """Arguments of `read`: a row per cosine and beta, one head, an empty state."""
    rng = np.random.default_rng(length)
    batch = len(COSINES) * len(BETAS)
    k = np.concatenate(
        [resembling_keys(rng, c, len(BETAS), length, width) for c in COSINES]
    )
    beta = np.tile(np.array(BETAS, np.float32), len(COSINES))[:, None, None]
    g = -0.02 * rng.uniform(0, 1, (batch, length, 1)).astype(np.float32)
    return (
        topology.chain(batch, length),
        DeltaInputs(normal(rng, batch, length, 8), g, k.astype(np.float32)),
        np.broadcast_to(beta, (batch, length, 1)),
        k.astype(np.float32),
        np.zeros((batch, 1, 8, width), np.float32),
    )


def solve(matrix, right):
    """Forward substitution of `(I + matrix) u = right` in float64."""
    u = right.astype(np.float64)
    for i in range(u.shape[1]):
        u[:, i] -= np.einsum("bj,bjp->bp", matrix[:, i, :i], u[:, :i])
    return u


def neumann(matrix, right):
    """`(I + A)^-1 = (I - A) (I + A^2) (I + A^4) ...` in float32."""
    power, inverse = -matrix, np.eye(matrix.shape[1], dtype=np.float32) - matrix
    for _ in range((matrix.shape[1] - 1).bit_length() - 1):
        power = power @ power
        inverse = inverse + inverse @ power
    return inverse @ right


@functools.cache
def make_systems(length):
    """The triangular systems of those chains in float64, and their solutions."""
    _, (v, g, k), beta, _, _ = make_long_chains(length)
    sums, k = np.cumsum(g[..., 0], axis=1, dtype=np.float64), k.astype(np.float64)
    decay = np.exp(np.tril(sums[:, :, None] - sums[:, None]))
    matrix = np.tril(beta * decay * np.einsum("bis,bjs->bij", k, k), -1)
    return matrix, beta * v, solve(matrix, beta * v)


def errors(u, expected):
    """The largest error of every row, of the row's largest number."""
    return np.abs(u - expected).max(axis=(1, 2)) / np.abs(expected).max(axis=(1, 2))


@lengths
def test_doubling_blocks_costs_no_digits_where_neumann_does(length):
    matrix, right, expected = make_systems(length)
    matrix = matrix.astype(np.float32)
    inverse = np.asarray(jax.jit(xla.inverse)(matrix))
    assert errors(inverse @ right, expected).max() < 1e-6
    if length >= 32:  # hence this table can tell
        assert errors(neumann(matrix, right), expected).max() > 1e-2


@lengths
@pytest.mark.parametrize("name", NAMES)
def test_keys_that_resemble_each_other_cost_no_digits(name, length):
    """Scores and decays, the system itself, are rounded to float32 here as well."""
    u, _ = jitted(tree_delta.read, name)(*make_long_chains(length))
    assert errors(u, make_systems(length)[2]).max() < 1e-5
