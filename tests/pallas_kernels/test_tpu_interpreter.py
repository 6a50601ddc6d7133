"""The TPU kernels in the interpreter that knows of memories and copies under way.

A few tiny runs: it reports reads out of bounds and races between copies and the rest.
"""

import importlib

import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import stacked, tree_attention, tree_conv, tree_delta
from pallas_kernels.past import Past
from pallas_kernels.tree_attention import pallas_tpu as attention
from pallas_kernels.tree_attention.cache import Cache
from pallas_kernels.tree_conv import pallas_tpu as conv
from pallas_kernels.tree_delta import pallas_tpu as delta
from tests.pallas_kernels import (
    test_tree_attention,
    test_tree_conv,
    test_tree_delta,
    trees,
)
from tests.pallas_kernels.records import RECURRENCES

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
    expected, folded = trees.jitted(case.op.verify, "xla")(*args, state, ring, FOLD)
    real = trees.real(PARENTS)
    trees.assert_close(np.asarray(y)[real], expected[real])
    trees.assert_close(np.asarray(states)[0], folded)


@pytest.mark.parametrize("name", ["ssd, two groups", "scan"])
def test_fold_is_in_order_and_in_bounds(strict, name):
    case = RECURRENCES[name]
    _, inputs, A, _, _, state, _ = case.make_args(PARENTS)
    _, *args = stacked.make(None, jnp.array(state), A, inputs)
    folded = kernels_of(case).fold(*args, interpret=strict)
    expected = trees.jitted(case.op.fold, "xla")(state, A, inputs)
    trees.assert_close(np.asarray(folded)[0], expected)


def test_the_solve_is_in_order_and_in_bounds(strict):
    *args, state, ring = test_tree_delta.make_args(PARENTS)
    past = Past.of(jnp.array(state), ring, layer=None, fold=FOLD)
    found = delta.verify(*args, past, interpret=strict)
    (u, y), states = trees.jitted(tree_delta.verify, "xla")(*args, state, ring, FOLD)
    real = trees.real(PARENTS)
    for a, b in zip(found[0], (u, y), strict=True):
        trees.assert_close(np.asarray(a)[real], b[real])
    trees.assert_close(np.asarray(found[1])[0], states)


def test_convolve_is_in_bounds(strict):
    args = test_tree_conv.make_args(PARENTS)
    found = conv.convolve(*args, interpret=strict)
    trees.assert_close(
        np.asarray(found), trees.jitted(tree_conv.convolve, "xla")(*args)
    )


@pytest.mark.parametrize("window", [None, 3])
def test_attend_is_in_order_and_in_bounds(strict, window):
    *args, keys, values, length = test_tree_attention.make_args(PARENTS)
    settings = dict(window=window, **test_tree_attention.SETTINGS)
    layer, *cache = stacked.make(None, jnp.array(keys), jnp.array(values))
    cache = Cache(*cache, length, layer)
    found = attention.attend(*args, cache, interpret=strict, **settings)
    op = trees.jitted(tree_attention.attend, "xla", **settings)
    real = trees.real(PARENTS)
    expected = op(*args, keys, values, length)
    trees.assert_close(np.asarray(found)[real], expected[real])
