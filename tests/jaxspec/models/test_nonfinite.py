"""A refused draft that is not finite leaves no trace; what hangs from it stays that way."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spoiled
from jaxspec.models.rollback import ROLLBACKS
from jaxspec.trees import TokenTree
from spoiled import BAD, GOOD, SPOILED

MODELS = ["mamba1", "mamba2-groups", "delta", "attention-window", "falcon-h1"]
MODELS += ["shared", "experts", "hybrid"]
thorough = pytest.mark.thorough


def cases():
    """Every mixer with a ring, and every rollback once; the rest is thorough."""
    for case in itertools.product(MODELS, ROLLBACKS, spoiled.KINDS):
        name, rollback, kind = case
        quick = rollback == "lazy" or (name == "delta" and kind == "overflow")
        yield pytest.param(*case, marks=[] if quick else thorough)


def check_no_trace(name, kind, **settings):
    right, right_carry = spoiled.run(name, kind, GOOD, **settings)
    found, carry = spoiled.run(name, kind, BAD, **settings)
    assert np.isfinite(right).all()
    np.testing.assert_array_equal(found[:, ~SPOILED], right[:, ~SPOILED])
    assert not np.isfinite(found[:, SPOILED]).any()
    jax.tree.map(np.testing.assert_array_equal, carry, right_carry)


@pytest.mark.parametrize("name, rollback, kind", cases())
def test_a_refused_draft_leaves_no_trace(name, rollback, kind):
    check_no_trace(name, kind, rollback=rollback)


def test_a_refused_draft_leaves_no_trace_in_scanned_layers():
    check_no_trace("hybrid", "nan", rollback="lazy", scanned=True)


@pytest.mark.parametrize("kind", ["nan", pytest.param("overflow", marks=thorough)])
@pytest.mark.parametrize("rollback", ["replay", "lazy"])
@pytest.mark.parametrize("machine", ["tpu", "gpu"])
def test_a_refused_draft_leaves_no_trace_in_kernels(machine, rollback, kind):
    check_no_trace("kernels", kind, rollback=rollback, machine=machine)
