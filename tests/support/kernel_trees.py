"""The trees every op is tested on, and how its outputs are compared."""

import functools

import jax
import numpy as np
import pytest

from pallas_kernels import topology

TOLERANCE = 2e-5  # of the largest expected value
HUGE = 1e30  # finite, and so are its products with ordinary numbers
FILLINGS = [1.0, HUGE]  # of slots that nobody reads

CHAIN = [-1, 0, 1, 2, 3, 4, 5]
STAR = [-1, 0, 0, 0, 0, 0, 0]
BINARY = [-1, 0, 0, 1, 1, 2, 2]
CATERPILLAR = [-1, 0, 0, 2, 2, 4, 4]
PADDED_INSIDE = [-1, 0, -1, 0, 1, 3, -1]  # slots 2 and 6 hang from nothing
PADDED_AT_END = [-1, 0, 1, 1, -1, -1, -1]


def rows(*parents):
    """A batch of trees, one per row."""
    return np.array(parents, np.int32)


TREES = {
    "one node": rows([-1], [-1], [-1]),
    "chain": rows(CHAIN, CHAIN, CHAIN),
    "star": rows(STAR, STAR, STAR),
    "binary": rows(BINARY, BINARY, BINARY),
    "caterpillar": rows(CATERPILLAR, CATERPILLAR, CATERPILLAR),
    "padded": rows(PADDED_INSIDE, CHAIN, PADDED_AT_END),
    "one per row": rows(CATERPILLAR, BINARY, CHAIN),
}
derive = jax.jit(topology.derive)
windows = jax.jit(topology.windows, static_argnums=1)

every_tree = pytest.mark.parametrize("parents", TREES.values(), ids=TREES.keys())


def real(parents):
    """`[B, N]`, which slots are nodes of the tree rather than padding."""
    return (parents >= 0) | (np.arange(parents.shape[1]) == 0)


def path(parents, node):
    """Slots of one row from the root to `node`, walked by hand."""
    slots = []
    while node >= 0:
        slots.append(int(node))
        node = parents[node]
    return slots[::-1]


def program(transform, op, implementation, **settings):
    """A transformed op, compiled.

    The definitions are unrolled loops: optimizing them takes longer than running.
    """
    op = functools.partial(op, implementation=implementation, **settings)
    level = {"xla_backend_optimization_level": 0}
    options = level if implementation == "reference" else None
    return jax.jit(transform(op), compiler_options=options)


@functools.cache
def jitted(op, implementation, **settings):
    """One program per op, settings and shapes for all tests; returns NumPy arrays."""
    compiled = program(lambda op: op, op, implementation, **settings)

    def call(*args):
        return jax.device_get(compiled(*args))

    return call


def definition(op, *args, **settings):
    """What the plain loop that defines `op` gives in float64."""

    def widen(a):
        kinds = {"f": np.float64, "i": np.int64, "b": np.bool_}
        a = np.asarray(a)
        return a.astype(kinds[a.dtype.kind])

    with jax.enable_x64(True):
        outputs = jitted(op, "reference", **settings)(*jax.tree.map(widen, args))
    assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {np.dtype(np.float64)}
    return outputs


def assert_close(actual, expected):
    """Asserts agreement to `TOLERANCE`, leaf by leaf."""

    def check(actual, expected):
        atol = TOLERANCE * np.max(np.abs(expected))
        np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)

    jax.tree.map(check, actual, expected)


def assert_vmap_is_a_loop(op, calls, in_axes, implementation, **settings):
    """Asserts that `vmap` gives what one call after another does.

    Unmapped arguments are those of the first call.
    """
    stack = functools.partial(jax.tree.map, lambda *leaves: np.stack(leaves))
    columns = [
        column if axis == 0 else column[:1] * len(calls)
        for column, axis in zip(zip(*calls, strict=True), in_axes, strict=True)
    ]
    args = [
        stack(*column) if axis == 0 else column[0]
        for column, axis in zip(columns, in_axes, strict=True)
    ]
    once = jitted(op, implementation, **settings)
    looped = [once(*args) for args in zip(*columns, strict=True)]

    def vmap(op):
        return jax.vmap(op, in_axes)

    mapped = program(vmap, op, implementation, **settings)
    assert_close(mapped(*args), stack(*looped))


def runnable(op):
    """Implementations that run on a CPU: kernels only interpreted."""
    return [n for n in op.implementations() if n not in ("pallas_tpu", "pallas_gpu")]


def shardable(op):
    """Those that also run on several devices: interpreted GPU kernels wait forever."""
    return [n for n in runnable(op) if n != "pallas_gpu_interpret"]


def assert_a_mesh_changes_nothing(op, args, implementation, **settings):
    """Asserts that an op cuts itself into rows and heads under a mesh, and is the same."""
    auto = (jax.sharding.AxisType.Auto,) * 2
    devices = jax.devices("cpu")[:4]
    mesh = jax.make_mesh((2, 2), ("data", "tensor"), auto, devices=devices)
    call = program(lambda op: op, op, implementation, **settings)
    with jax.set_mesh(mesh):
        outputs = call(*args)
        program_text = call.lower(*args).as_text()
    assert "sdy.manual_computation" in program_text
    assert_close(outputs, jitted(op, implementation, **settings)(*args))


def assert_shards_are_parts(op, args, in_specs, out_specs, implementation, **settings):
    """Asserts that four devices, 2 by 2, compute together what one does."""
    auto = (jax.sharding.AxisType.Auto,) * 2
    devices = jax.devices("cpu")[:4]
    mesh = jax.make_mesh((2, 2), ("data", "model"), auto, devices=devices)

    def shard(op):
        checks = "pallas" not in implementation  # kernels do not say what varies
        specs = dict(in_specs=in_specs, out_specs=out_specs)
        return jax.shard_map(op, mesh=mesh, check_vma=checks, **specs)

    together = program(shard, op, implementation, **settings)
    assert_close(together(*args), jitted(op, implementation, **settings)(*args))
