"""A refused draft that is not finite leaves no trace; what hangs from it stays that way."""

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
ACCEPTED = np.array(
    [[0, 1, 3, -1, -1], [0, 2, -1, -1, -1], [0, 1, 3, -1, -1]], np.int32
)
LEVELS = ((0, 1), (1, 3), (3, 8))
thorough = pytest.mark.thorough


def cases():
    """Every mixer with a ring, and every rollback once; the rest is thorough."""
    for case in itertools.product(MODELS, ROLLBACKS, spoiled.KINDS):
        name, rollback, kind = case
        quick = rollback == "lazy" or (name == "hybrid" and kind == "nan")
        yield pytest.param(*case, marks=[] if quick else thorough)


def check_no_trace(name, kind, **settings):
    right, right_carry = spoiled.run(name, kind, GOOD, **settings)
    found, carry = spoiled.run(name, kind, BAD, **settings)
    assert np.isfinite(right).all()
    np.testing.assert_array_equal(found[:, ~SPOILED], right[:, ~SPOILED])
    assert not np.isfinite(found[:, SPOILED]).any()
    jax.tree.map(np.testing.assert_array_equal, carry, right_carry)


@pytest.mark.parametrize("name, rollback, kind", list(cases()))
def test_a_refused_draft_leaves_no_trace(name, rollback, kind):
    check_no_trace(name, kind, rollback=rollback)


def test_a_refused_draft_leaves_no_trace_in_scanned_layers():
    check_no_trace("hybrid", "nan", rollback="lazy", scanned=True)


@pytest.mark.parametrize(
    "machine, rollback, kind, rounds",
    [
        ("tpu", "lazy", "nan", 3),
        ("tpu", "replay", "overflow", 1),
        ("gpu", "lazy", "overflow", 1),
        pytest.param("gpu", "lazy", "nan", 3, marks=thorough),
        pytest.param("gpu", "replay", "nan", 1, marks=thorough),
    ],
)
def test_a_refused_draft_leaves_no_trace_in_kernels(machine, rollback, kind, rounds):
    settings = dict(rollback=rollback, machine=machine, rounds=rounds)
    check_no_trace("kernels", kind, **settings)


@pytest.mark.parametrize("rollback", ROLLBACKS)
@pytest.mark.parametrize("name", ["attention-window", "hybrid"])
def test_a_row_that_keeps_what_is_not_finite_says_so_for_good(name, rollback):
    settings = dict(path=ACCEPTED, rollback=rollback)
    right, _ = spoiled.run(name, "nan", GOOD, **settings)
    found, _ = spoiled.run(name, "nan", BAD, **settings)
    assert np.isnan(found[1:, 0, :-1]).all()  # all nodes of the row that kept it
    np.testing.assert_array_equal(
        found[:, 1:][:, ~SPOILED[1:]], right[:, 1:][:, ~SPOILED[1:]]
    )


@pytest.mark.parametrize("name", ["delta", "hybrid"])
def test_levels_know_what_they_hang_from(name):
    """Level by level, what hangs from a node that is not finite is not either."""
    model, _, _ = spoiled.compiled(name, "replay")
    params = spoiled.params(name, "nan")
    parents = jnp.asarray(spoiled.PARENTS)
    tokens = jnp.where(jnp.asarray(spoiled.IS_BAD), BAD, GOOD)

    @jax.jit
    def by_levels(params, tokens):
        tree = TokenTree(tokens, parents)
        carry = model.init_carry(params, 3, 20)
        tape, seen = model.init_tape(params, 3, tree.num_nodes), []
        for start, stop in LEVELS:
            tape, hidden = model.extend_tree(params, carry, tape, tree, start, stop)
            seen.append(model.logits(params, hidden))
        carry = model.commit(carry, tape, jnp.asarray(spoiled.REFUSED))
        return jnp.concatenate(seen, axis=1), carry

    right, right_carry = by_levels(params, jnp.full_like(tokens, GOOD))
    found, carry = by_levels(params, tokens)
    np.testing.assert_array_equal(found[~SPOILED], right[~SPOILED])
    assert np.isnan(found[SPOILED]).all()
    jax.tree.map(np.testing.assert_array_equal, carry, right_carry)
