"""Rows are taken out of a batch and put into it, whatever axis they are on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec as js
import texts
import tiny
from jaxspec.models import forms
from jaxspec.models.rollback import ROLLBACKS

PAST = {"a": 0, "b": (1, 0)}


def past(batch):
    """Leaves with the rows in front and behind, one of keys."""
    numbers = jnp.arange(2 * batch * 4, dtype=jnp.float32).reshape(2, batch, 4)
    keys = jax.random.split(jax.random.key(0), batch)
    return {"a": jnp.arange(batch), "b": (numbers, keys)}


def same(one, other):
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = map(jax.random.key_data, (a, b))
        np.testing.assert_array_equal(a, b)


def test_the_axis_of_the_rows_is_found():
    assert js.rows.axes(past) == PAST


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("rollback", ROLLBACKS)
def test_one_axis_grows_with_the_batch_and_one_at_most_with_the_length(
    rollback, scanned
):
    model = tiny.model("hybrid", rollback=rollback, max_path=4, scan_layers=scanned)
    params = tiny.params("hybrid")
    if scanned:
        params = forms.stack(tiny.CONFIGS["hybrid"], params)
    found = js.rows.axes(lambda b: model.init_carry(params, b, 20))
    shapes = [
        jax.eval_shape(functools.partial(model.init_carry, params, 3, size))
        for size in (20, 40)
    ]
    for axis, small, large in zip(*map(jax.tree.leaves, (found, *shapes)), strict=True):
        pairs = enumerate(zip(small.shape, large.shape, strict=True))
        grown = [i for i, (a, b) in pairs if a < b]
        assert grown in ([], [axis + 1])


def test_rows_are_taken_as_often_as_they_are_named():
    taken = js.rows.take(PAST, past(5), [3, 0, 3])
    whole = past(5)
    assert taken["a"].tolist() == [3, 0, 3]
    np.testing.assert_array_equal(taken["b"][0], whole["b"][0][:, np.array([3, 0, 3])])
    same(taken["b"][1], whole["b"][1][np.array([3, 0, 3])])


def test_rows_that_are_put_are_there_and_all_else_is_as_it_was():
    new = jax.tree.map(lambda leaf: leaf, js.rows.take(PAST, past(6), [5, 2]))
    found = js.rows.put(PAST, past(4), [0, 3], new)
    same(js.rows.take(PAST, found, [0, 3]), new)
    same(js.rows.take(PAST, found, [1, 2]), js.rows.take(PAST, past(4), [1, 2]))


def test_the_batch_is_donated_and_the_rows_are_not():
    batch, new = past(4), past(1)
    found = js.rows.put(PAST, batch, [2], new)
    assert batch["b"][0].is_deleted() and not new["b"][0].is_deleted()
    assert found["a"].tolist() == [0, 1, 0, 3]


def test_it_works_under_jit_and_with_rows_that_are_data():
    @jax.jit
    def swap(batch, index):
        return js.rows.put(PAST, batch, index, js.rows.take(PAST, batch, index[::-1]))

    found = swap(past(4), jnp.array([1, 3]))
    same(found, js.rows.take(PAST, past(4), [0, 3, 2, 1]))


def test_a_state_can_be_donated_whole():
    """No two leaves share a buffer, not with each other nor with what the caller gave."""
    drafter, own = texts.make_drafter("model-chain")
    lengths = jnp.array([len(prompt) for prompt in texts.PROMPTS])
    keys = jax.random.split(jax.random.key(1, impl="threefry2x32"), 3)
    heat = jnp.full((3,), 0.7)
    params, state = texts.start(drafter, own, keys=keys, temperature=heat, top_p=heat)
    step = jax.jit(
        lambda params, state: js.speculative_generate(
            params, state, target=texts.target(), drafter=drafter, max_steps=1
        )[0],
        donate_argnums=1,
    )
    after = step(params, state)
    after = step(params, after)
    assert int((after.lengths - lengths).min()) >= 2
    assert not keys.is_deleted() and not heat.is_deleted()
    buffers = [
        leaf.unsafe_buffer_pointer()
        for leaf in jax.tree.leaves(texts.start(drafter, own)[1])
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) and leaf.size
    ]
    assert len(set(buffers)) == len(buffers)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: js.rows.axes(lambda b: jnp.zeros((b, b))), "one axis that grows"),
        (lambda: js.rows.axes(lambda b: {"x": jnp.zeros(2)}), r"\['x'\].*\(2,\)"),
        (lambda: js.rows.axes(lambda b: jnp.zeros(2 * b)), r"\(6,\) for 3 rows"),
        (lambda: js.rows.take(PAST, past(3), [3]), "from 0 to 2, got \\[3\\]"),
        (lambda: js.rows.take(PAST, past(3), [-1]), "from 0 to 2, got \\[-1\\]"),
        (lambda: js.rows.take(PAST, past(3), 1), r"rows \[R\] of integers"),
        (lambda: js.rows.take({"a": 0}, past(3), [1]), "another pytree"),
        (lambda: js.rows.put(PAST, past(3), [1, 1], past(2)), "every row once"),
        (
            lambda: js.rows.put(PAST, past(3), [1], past(2)),
            "not of such a batch.*'a'",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
