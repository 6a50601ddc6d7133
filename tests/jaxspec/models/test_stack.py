"""A scanned stack does what a written-out one does."""

import itertools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.models import layered
from jaxspec.models.stack import Run, Stack, find_runs

PATTERNS = [
    "M",
    "MMMM",
    "MM*-MM*-M",
    "M*M*M",
    "-M-M*M-M",
    "MM*MM*MM-MM*MM*MM-",
    "M-*",
    "*" + "M-" * 5 + "M*" * 3,
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_runs_written_out_are_the_pattern(pattern):
    runs = find_runs(pattern)
    assert "".join(run.unit * run.count for run in runs) == pattern


@pytest.mark.parametrize(
    "pattern, runs",
    [
        ("M", [("M", 1)]),
        ("MMMM", [("M", 4)]),  # the shortest of the units that cover as much
        ("M*M*M", [("M*", 2), ("M", 1)]),
        ("MM*-MM*-M", [("MM*-", 2), ("M", 1)]),
        ("M*-", [("M", 1), ("*", 1), ("-", 1)]),
        ("MMM*MMM*", [("MMM*", 2)]),  # not three M first
    ],
)
def test_known_runs(pattern, runs):
    assert find_runs(pattern) == tuple(Run(*run) for run in runs)


def block(kind, rng):
    """Toy weights and state: a kind has leaves of its own, and one has no state."""
    number = lambda *shape: jnp.array(rng.normal(size=shape), jnp.float32)  # noqa: E731
    weights = {"M": {"w": number(3)}, "*": (number(3), number(2, 3)), "-": number(3, 3)}
    state = {"M": number(3), "*": {"keys": number(2, 3)}, "-": ()}
    return weights[kind], state[kind]


def apply(kind, x, weights, reads, writes, layer):
    """A residual block that neither commutes nor leaves its state alone."""
    before, state = layered.at((reads, writes), layer)
    if kind == "M":
        state = 0.5 * state + weights["w"] * x * before
        return x + jnp.sin(state), layered.put(writes, state, layer)
    if kind == "*":
        keys = jnp.concatenate([state["keys"][1:], x[None]])
        x = x + jnp.tanh(weights[0] + (keys * weights[1]).sum(0))
        return x, layered.put(writes, {"keys": keys}, layer)
    return x + jnp.cos(x @ weights), writes


def stacks(pattern):
    """Both kinds of stack, with the same weights and states."""
    rng = np.random.default_rng(len(pattern))
    weights, states = zip(*[block(kind, rng) for kind in pattern], strict=True)
    for scanned in (False, True):
        stack = Stack(pattern, scanned)
        yield stack, stack.collect(list(weights)), stack.collect(list(states))


def assert_equal_blocks(first, second, rtol=0.0):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_spread_undoes_collect(pattern):
    (flat, *unrolled), (stack, *scanned) = stacks(pattern)
    for one, other in zip(unrolled, scanned, strict=True):
        assert_equal_blocks(flat.spread(one), stack.spread(other))


def test_a_scanned_storage_stacks_the_blocks_of_a_kind():
    storage = Stack("M*M", True).collect(
        [jnp.zeros(2), {"k": jnp.ones(3)}, jnp.ones(2)]
    )
    assert storage["M"].tolist() == [[0.0, 0.0], [1.0, 1.0]]
    assert storage["*"]["k"].tolist() == [[1.0, 1.0, 1.0]]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_scanned_run_equals_one_written_out(pattern):
    x, found = jnp.array([0.3, -0.2, 0.9]), []
    for stack, weights, states in stacks(pattern):
        run = jax.jit(lambda x, w, s, stack=stack: stack.run(apply, x, w, s, s))
        out, states = run(x, weights, states)
        found.append((out, stack.spread(states)))
    assert_equal_blocks(*found, rtol=2e-5)


@pytest.mark.parametrize("pattern", ["M*MM", "MMMMM", "*M-M"])
@pytest.mark.parametrize("sets", [1, 2])
def test_what_blocks_share_is_used_in_turn(pattern, sets):
    """Every M adds its own weight times the next set's."""
    biases = jnp.arange(1.0, sets + 1)
    expected, turns = 0.0, itertools.cycle(biases)
    for i, kind in enumerate(pattern):
        expected = 2 * expected + i * (next(turns) if kind == "M" else 1)

    def apply(kind, x, params, reads, writes, layer):
        return 2 * x + params["w"] * params.get("b", 1.0), writes

    for scanned in (False, True):
        stack = Stack(pattern, scanned)
        own = stack.collect([{"w": jnp.float32(i)} for i in range(len(pattern))])
        shared = Stack("M" * sets, scanned).collect([{"b": b} for b in biases])
        params = stack.share(operator.or_, own, "M", shared)
        nothing = stack.collect([()] * len(pattern))
        x, _ = stack.run(apply, jnp.float32(0), params, nothing, nothing)
        assert x == expected


@pytest.mark.parametrize("pattern", PATTERNS[:4])
def test_a_scanned_map_equals_one_written_out(pattern):
    def scale(kind, weights, state):
        leaf = jax.tree.leaves(weights)[0]
        factor = jnp.sum(leaf) * {"M": 1.0, "*": 2.0, "-": 3.0}[kind]
        return jax.tree.map(lambda s: s * factor, state)

    found = [
        stack.spread(stack.map(scale, weights, states))
        for stack, weights, states in stacks(pattern)
    ]
    assert_equal_blocks(*found, rtol=1e-6)


@pytest.mark.parametrize("scanned", [False, True])
def test_blocks_that_own_nothing_are_mapped_too(scanned):
    stack = Stack("-M-", scanned)
    storage = stack.collect([(), jnp.ones(2), ()])
    storage = stack.map(lambda kind, state: jax.tree.map(jnp.negative, state), storage)
    assert_equal_blocks(stack.spread(storage), [(), -jnp.ones(2), ()])
