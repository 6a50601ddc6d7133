"""Strong decays on a path cost the weak ones no digits, whatever their order.

Differences of long sums are where digits go. The truth is a float64 loop over tokens with a
state per node, and every write is of ordinary size, so that no output hides the others.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kernel_trees
from kernel_records import normal, unit
from kernel_trees import jitted
from pallas_kernels import (
    DeltaInputs,
    Inputs,
    Ring,
    topology,
    tree_delta,
    tree_ssd,
)
from pallas_kernels.gated import digits

HEADS, DIM, STATE, RING = 2, 8, 16, 12
MIXTURE = -np.array([0, 1e-6, 1e-2, 1, 10, 100, 1e3, 1e4, 1e5])
WEAK = -0.01
RATES = np.array([-1.0, -4.0], np.float32)


def strong_first(length, strength, count):
    g = np.full(length, WEAK)
    g[:count] = -strength
    return g


def mostly_weak(rng, length):
    return np.where(rng.random(length) < 0.9, WEAK, rng.choice(MIXTURE, length))


DECAYS = {  # log decays of a row's tokens
    "a few first": lambda rng, n: strong_first(n, 100, 8),
    "half first": lambda rng, n: strong_first(n, 1e3, n // 2),
    "strongest first": lambda rng, n: strong_first(n, 1e5, n // 4),
    "strongest last": lambda rng, n: strong_first(n, 1e5, n // 4)[::-1],
    "alternating": lambda rng, n: np.where(np.arange(n) % 2, WEAK, -1e3),
    "weakest": lambda rng, n: np.where(rng.random(n) < 0.5, 0, -1e-6),
    "moderate": lambda rng, n: -60 * rng.random(n),
    "any": lambda rng, n: rng.choice(MIXTURE, n),
    "any, mostly weak": mostly_weak,
}
ROWS = len(DECAYS)
LENGTHS = np.resize(np.array([RING, 0, 5], np.int32), ROWS)  # of the rings
FOLD = np.arange(ROWS) % 2 == 0


class Tokens(NamedTuple):
    """Tokens of all rows, as both ops see them.

    Attributes:
        g: `[B, T, H]` log decays.
        v: `[B, T, H, P]` values, or what is written where it is known.
        k: `[B, T, H, S]` keys, in the activations' dtype.
        q: `[B, T, H, S]` queries, the same.
        beta: `[B, T, H]` of the delta rule.
    """

    g: np.ndarray
    v: np.ndarray
    k: np.ndarray
    q: np.ndarray
    beta: np.ndarray

    @classmethod
    def make(cls, rng, length, dtype):
        """A row for each of `DECAYS`, its heads in different measures."""
        rows = [[make(rng, length) for _ in range(HEADS)] for make in DECAYS.values()]
        g = np.swapaxes(rows, 1, 2) * rng.uniform(0.9, 1.1, (ROWS, length, HEADS))
        k, q = (unit(normal(rng, *g.shape, STATE)).astype(dtype) for _ in range(2))
        beta = rng.uniform(0, 2, g.shape).astype(np.float32)
        return cls(g.astype(np.float32), normal(rng, *g.shape, DIM), k, q, beta)

    def inputs(self, op):
        """The records of an op, every `dt x` of Mamba-2 about as large as `v`."""
        v, k = (a.reshape(*a.shape[:2], -1) for a in (self.v, self.k))
        if op is tree_delta:
            return DeltaInputs(v, self.g, k)
        dt = self.g / RATES
        x = self.v / np.where(dt > 0, dt, 1)[..., None]
        return Inputs(x.reshape(v.shape).astype(k.dtype), dt, k)

    def written(self, op):
        """`dt x`, or values of the delta rule as if they were written, in float64."""
        if op is tree_delta:
            return self.v.astype(np.float64)
        x, dt, _ = (a.astype(np.float64) for a in self.inputs(op))
        return dt[..., None] * x.reshape(self.v.shape)

    def arguments(self, op):
        """What comes between the records and the state."""
        q = self.q.reshape(*self.q.shape[:2], -1)
        if op is tree_delta:
            return self.beta, q
        return RATES, q, np.zeros(HEADS, np.float32)


def walk(op, tokens, parents, state, solve):
    """What the nodes write, and the states after them, `[N, B, ...]`, in float64."""
    g, k, beta = (a.astype(np.float64) for a in (tokens.g, tokens.k, tokens.beta))
    writes, rows = tokens.written(op), np.arange(ROWS)
    states = np.zeros((1 + parents.shape[1], *state.shape))
    states[0] = state
    for i in range(parents.shape[1]):
        decay = np.exp(g[:, i])[..., None, None]
        above = decay * states[parents[:, i] + 1, rows]
        if solve:
            seen = np.einsum("bhps,bhs->bhp", above, k[:, i])
            writes[:, i] = beta[:, i, :, None] * (writes[:, i] - seen)
        states[i + 1] = above + writes[:, i, ..., None] * k[:, i, :, None]
    return writes, states[1:]


def fold(op, tokens, state):
    """The states before and after every token of a chain, in float64."""
    length = tokens.g.shape[1]
    parents = np.tile(np.arange(length) - 1, (ROWS, 1))
    states = walk(op, tokens, parents, state, solve=False)[1]
    return np.concatenate([state[None], states])


class Case(NamedTuple):
    """Arguments of an op, and the truth.

    Attributes:
        nodes: tokens of the tree.
        ring: those before it.
        tree: its topology.
        state: `[B, H, P, S]`.
        folded: the same after the ring.
        outputs: of all nodes, `[B, N, H P]`; what the delta rule writes before them.
    """

    nodes: Tokens
    ring: Tokens
    tree: topology.Topology
    state: np.ndarray
    folded: np.ndarray
    outputs: tuple


@functools.cache
def make_case(op, shape, length, dtype=np.float32):
    """A chain, or deep trees that branch."""
    rng = np.random.default_rng(length)
    nodes, ring = (Tokens.make(rng, count, dtype) for count in (length, RING))
    state = normal(rng, ROWS, HEADS, DIM, STATE)
    folded = fold(op, ring, state)[LENGTHS, np.arange(ROWS)]
    back = 1 if shape == "chain" else rng.integers(1, 4, (ROWS, length))
    parents = np.maximum(np.arange(length) - back, 0) * np.ones((ROWS, 1), np.int32)
    parents[:, 0] = -1
    writes, states = walk(op, nodes, parents, folded, solve=op is tree_delta)
    y = np.einsum("nbhps,bnhs->bnhp", states, nodes.q.astype(np.float64))
    outputs = (writes, y) if op is tree_delta else (y,)
    outputs = tuple(a.reshape(ROWS, length, -1) for a in outputs)
    tree = kernel_trees.derive(parents.astype(np.int32))
    return Case(nodes, ring, tree, state, folded, outputs)


def verify(op, name, case):
    """Outputs and states of `verify`."""
    ring = Ring(case.ring.inputs(op), LENGTHS)
    args = case.tree, case.nodes.inputs(op), *case.nodes.arguments(op)
    outputs, state = jitted(op.verify, name)(*args, case.state, ring, FOLD)
    return outputs if op is tree_delta else (outputs,), state


def errors(found, expected):
    """The largest error of every row, of the row's largest number."""
    axes = tuple(range(1, expected.ndim))
    errors = np.abs(found - expected).max(axes) / np.abs(expected).max(axes)
    return dict(zip(DECAYS, errors, strict=True))


def assert_exact(found, expected, tolerance=kernel_trees.TOLERANCE):
    """Asserts it row by row."""
    wrong = {k: e for k, e in errors(found, expected).items() if not e < tolerance}
    assert not wrong


OPS = {"ssd": tree_ssd, "delta": tree_delta}
XLA, TPU, GPU = "xla", "pallas_tpu_interpret", "pallas_gpu_interpret"
thorough = pytest.mark.thorough


def over(*cases):
    """Parametrizes by an op, its implementation and the rest of every case."""
    params = []
    for title, *case in cases:
        marks = case[3:]
        name = "-".join(map(str, (title, *case[:3])))
        params.append(pytest.param(OPS[title], *case[:3], marks=marks, id=name))
    return pytest.mark.parametrize("op, name, shape, length", params)


@over(
    *((op, XLA, shape, 256) for op in OPS for shape in ("chain", "trees")),
    *((op, TPU, shape, 64) for op in OPS for shape in ("chain", "trees")),
    *((op, GPU, "chain", 40) for op in OPS),
    *((op, TPU, shape, 256, thorough) for op in OPS for shape in ("chain", "trees")),
    *((op, GPU, "trees", 64, thorough) for op in OPS),
    *(("ssd", GPU, shape, 256, thorough) for shape in ("chain", "trees")),
)
def test_a_path_keeps_its_digits(op, name, shape, length):
    case = make_case(op, shape, length)
    found, state = verify(op, name, case)
    for output, expected in zip(found, case.outputs, strict=True):
        assert_exact(output, expected)
    kept = np.where(FOLD[:, None, None, None], case.folded, case.state)
    assert_exact(state, kept)


@over(
    ("ssd", TPU, "chain", 256),
    ("ssd", GPU, "chain", 40),
    ("delta", TPU, "chain", 256, thorough),
    ("delta", GPU, "chain", 64, thorough),
)
def test_half_precision_is_that_of_the_activations(op, name, shape, length):
    """The weights of 256 nodes are rounded, and so are a TPU's sums of decays, once."""
    case = make_case(op, shape, length, jnp.bfloat16)
    found, _ = verify(op, name, case)
    assert_exact(found[-1], case.outputs[-1], 1e-2)
    assert_exact(found[0], case.outputs[0], 1e-2 if op is tree_ssd else 1e-3)


@over(
    *((op, XLA, "trees", 256) for op in OPS),
    *((op, TPU, "trees", 64) for op in OPS),
    *((op, GPU, "trees", 64, thorough) for op in OPS),
)
def test_the_last_nodes_keep_their_digits(op, name, shape, length):
    """As a drafter reads the next level of a tree, what is above it known."""
    case, new = make_case(op, shape, length), 5
    inputs, arguments = case.nodes.inputs(op), case.nodes.arguments(op)
    if op is tree_delta:
        written = case.outputs[0][:, :-new].astype(np.float32)
        values = np.concatenate([written, inputs.u[:, -new:]], axis=1)
        inputs = inputs._replace(u=values)
        arguments = [a[:, -new:] for a in arguments]
    else:
        arguments = arguments[0], arguments[1][:, -new:], arguments[2]
    ring = Ring(case.ring.inputs(op), LENGTHS)
    read = jitted(op.read, name)
    found = read(case.tree, inputs, *arguments, case.state, ring)
    found = found if op is tree_delta else (found,)
    for output, expected in zip(found, case.outputs, strict=True):
        assert_exact(output, expected[:, -new:])


@over(
    *((op, XLA, "chain", 256) for op in OPS),
    *((op, TPU, "chain", 64) for op in OPS),
    *((op, GPU, "chain", 64, thorough) for op in OPS),
)
def test_a_chain_is_folded_to_its_digits(op, name, shape, length):
    rng = np.random.default_rng(0)
    tokens = Tokens.make(rng, length, np.float32)
    state = normal(rng, ROWS, HEADS, DIM, STATE)
    rates = (RATES,) if op is tree_ssd else ()
    found = jitted(op.fold, name)(state, *rates, tokens.inputs(op))
    assert_exact(found, fold(op, tokens, state)[-1])


def test_coarse_sums_are_exact():
    rng = np.random.default_rng(1)
    g = np.concatenate([rng.choice(MIXTURE, 64), -150 * rng.random(64), [-1e5] * 128])
    g = g.astype(np.float32)
    coarse, fine = jax.device_get(jax.jit(digits.cut)(g))
    np.testing.assert_array_equal(coarse * 2**8, np.round(coarse * 2**8))
    np.testing.assert_allclose(coarse.astype(np.float64) + fine, np.maximum(g, -150))
    assert np.abs(fine).max() <= 1.01 * 2**-9
    for order in (slice(None), slice(None, None, -1), rng.permutation(256)):
        assert np.cumsum(coarse[order])[-1] == coarse.astype(np.float64).sum()
    assert np.exp(np.float32(digits.LEAST)) == np.exp2(np.float32(digits.LEAST)) == 0
