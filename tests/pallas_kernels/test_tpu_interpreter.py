"""The TPU kernels in the interpreter that knows of memories and copies under way.

A few tiny runs: it reports reads out of bounds and races between copies and the rest.
"""

import importlib

import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu

import kernel_trees
from kernel_args import SETTINGS, attend_args, convolve_args, delta_args
from kernel_records import RECURRENCES
from pallas_kernels import stacked, tree_attention, tree_conv, tree_delta
from pallas_kernels.past import Past
from pallas_kernels.tree_attention import pallas_tpu as attention
from pallas_kernels.tree_attention.cache import Cache
from pallas_kernels.tree_conv import pallas_tpu as conv
from pallas_kernels.tree_delta import pallas_tpu as delta

PARENTS = np.array([[-1, 0, 0, 2], [-1, 0, -1, 1]], np.int32)
FOLD = np.array([True, False])


@pytest.fixture
def strict():
    """Interpreter settings; a race is an error."""
    yield pltpu.InterpretParams(
        detect_races=True, out_of_bounds_reads="raise", uninitialized_memory="nan"
    )
    found = interpret_pallas_call.races.races_found
    pltpu.reset_tpu_interpret_mode_state()
    assert not found


def kernels_of(case):
    """The module with the TPU kernels of a recurrence."""
    return importlib.import_module(f"{case.op.__name__}.pallas_tpu")


@pytest.mark.parametrize("name", ["ssd, two groups", "scan"])
def test_verify_is_in_order_and_in_bounds(strict, name):
    case = RECURRENCES[name]
    *args, state, ring = case.make_args(PARENTS)
    past = Past.of(jnp.array(state), ring, layer=None, fold=FOLD)
    depth = {} if case.groups else {"max_depth": 3}
    y, states = kernels_of(case).verify(*args, past, interpret=strict, **depth)
    expected, folded = kernel_trees.jitted(case.op.verify, "xla")(
        *args, state, ring, FOLD
    )
    real = kernel_trees.real(PARENTS)
    kernel_trees.assert_close(np.asarray(y)[real], expected[real])
    kernel_trees.assert_close(np.asarray(states)[0], folded)


@pytest.mark.parametrize("name", ["ssd, two groups", "scan"])
def test_fold_is_in_order_and_in_bounds(strict, name):
    case = RECURRENCES[name]
    _, inputs, A, _, _, state, _ = case.make_args(PARENTS)
    _, *args = stacked.make(None, jnp.array(state), A, inputs)
    folded = kernels_of(case).fold(*args, interpret=strict)
    expected = kernel_trees.jitted(case.op.fold, "xla")(state, A, inputs)
    kernel_trees.assert_close(np.asarray(folded)[0], expected)


def test_the_solve_is_in_order_and_in_bounds(strict):
    *args, state, ring = delta_args(PARENTS)
    past = Past.of(jnp.array(state), ring, layer=None, fold=FOLD)
    found = delta.verify(*args, past, interpret=strict)
    (u, y), states = kernel_trees.jitted(tree_delta.verify, "xla")(
        *args, state, ring, FOLD
    )
    real = kernel_trees.real(PARENTS)
    for a, b in zip(found[0], (u, y), strict=True):
        kernel_trees.assert_close(np.asarray(a)[real], b[real])
    kernel_trees.assert_close(np.asarray(found[1])[0], states)


def test_convolve_is_in_bounds(strict):
    args = convolve_args(PARENTS)
    found = conv.convolve(*args, interpret=strict)
    kernel_trees.assert_close(
        np.asarray(found), kernel_trees.jitted(tree_conv.convolve, "xla")(*args)
    )


@pytest.mark.parametrize("window", [None, 3])
def test_attend_is_in_order_and_in_bounds(strict, window):
    *args, keys, values, length = attend_args(PARENTS)
    settings = dict(window=window, **SETTINGS)
    layer, *cache = stacked.make(None, jnp.array(keys), jnp.array(values))
    cache = Cache(*cache, length, layer)
    found = attention.attend(*args, cache, interpret=strict, **settings)
    op = kernel_trees.jitted(tree_attention.attend, "xla", **settings)
    real = kernel_trees.real(PARENTS)
    expected = op(*args, keys, values, length)
    kernel_trees.assert_close(np.asarray(found)[real], expected[real])
