"""Ragged rows against NumPy loops, for one row and for several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec import ragged

BATCHES = {1: [2], 3: [4, 0, 2]}  # batch size to where each row starts
TAILS = [(), (2,)]


def numbers(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("batch", BATCHES)
def test_write_replaces_a_slice_of_every_row(batch, tail):
    buffer, values = numbers(batch, 7, *tail), -1 - numbers(batch, 3, *tail)
    expected = buffer.copy()
    for row, start in enumerate(BATCHES[batch]):
        expected[row, start : start + 3] = values[row]
    found = jax.jit(ragged.write)(buffer, values, jnp.array(BATCHES[batch]))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("batch", BATCHES)
def test_write_keeps_the_dtype_of_the_buffer(batch):
    buffer, start = jnp.zeros((batch, 7), jnp.int8), jnp.array(BATCHES[batch])
    found = ragged.write(buffer, jnp.ones((batch, 3), bool), start)
    assert found.dtype == jnp.int8
    assert found.sum(axis=1).tolist() == [3] * batch


@pytest.mark.parametrize("tail", [(4,), (4, 2)])
@pytest.mark.parametrize("batch", BATCHES)
def test_write_at_writes_into_one_layer(batch, tail):
    buffer, values = -1 - numbers(3, batch, 7, *tail), numbers(batch, 3, *tail)
    start = jnp.array(BATCHES[batch])
    found = ragged.write_at(jnp.int32(1), jnp.array(buffer), jnp.array(values), start)
    expected = buffer.copy()
    expected[1] = ragged.write(jnp.array(buffer[1]), jnp.array(values), start)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("batch", BATCHES)
def test_take_gathers_entries_of_every_row(batch, tail):
    buffer = numbers(batch, 7, *tail)
    index = np.array([[6, 0, 0, 3], [1, 2, 3, 4], [5, 5, 6, 0]])[:batch]
    expected = np.stack([b[i] for b, i in zip(buffer, index, strict=True)])
    np.testing.assert_array_equal(ragged.take(jnp.array(buffer), index), expected)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("batch", BATCHES)
def test_take_one_gathers_an_entry_of_every_row(batch, tail):
    buffer, index = numbers(batch, 7, *tail), BATCHES[batch]
    expected = np.stack([b[i] for b, i in zip(buffer, index, strict=True)])
    found = ragged.take_one(jnp.array(buffer), jnp.array(index))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("tail", [(), (4,), (4, 2)])
@pytest.mark.parametrize("condition", [[True], [False], [True, False, True]])
def test_select_chooses_whole_rows(condition, tail):
    yes = numbers(len(condition), *tail)
    expected = np.stack(
        [y if c else -y - 1 for c, y in zip(condition, yes, strict=True)]
    )
    found = ragged.select(jnp.array(condition), jnp.array(yes), jnp.array(-yes - 1))
    np.testing.assert_array_equal(found, expected)
