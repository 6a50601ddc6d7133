"""Weights on disk: bfloat16, whole or refused, and never half written."""

import os

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from checkpoints_conv import native

RNG = np.random.default_rng(0)
PARAMS = {
    "embedding": jnp.array(RNG.normal(size=(5, 4)), jnp.float32),
    "layers": [
        {"mamba2": {"D": jnp.array(RNG.normal(size=3), jnp.float32)}},
        {"mlp": {"kernel": jnp.array(RNG.normal(size=(4, 2)), jnp.bfloat16)}},
    ],
}
LIKE = jax.eval_shape(lambda: PARAMS)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.safetensors"
    native.save(path, PARAMS)
    return path


def test_names_are_joined_by_dots():
    names = ["embedding", "layers.0.mamba2.D", "layers.1.mlp.kernel"]
    assert native.names(PARAMS) == names


@pytest.mark.parametrize("like", [PARAMS, LIKE], ids=["arrays", "shapes"])
def test_what_is_loaded_is_what_was_saved_rounded_to_bfloat16(file, like):
    loaded = native.load(file, like)
    assert jax.tree.structure(loaded) == jax.tree.structure(PARAMS)
    pairs = zip(jax.tree.leaves(loaded), jax.tree.leaves(PARAMS), strict=True)
    for found, saved in pairs:
        assert found.dtype == saved.dtype
        rounded = np.asarray(saved).astype(ml_dtypes.bfloat16).astype(saved.dtype)
        np.testing.assert_array_equal(found, rounded)


def test_a_second_trip_changes_nothing(file, tmp_path):
    native.save(tmp_path / "again", native.load(file, LIKE))
    assert (tmp_path / "again").read_bytes() == file.read_bytes()


def test_a_transposed_array_is_saved_as_it_reads(tmp_path):
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3).T
    native.save(tmp_path / "m", {"w": matrix})
    np.testing.assert_array_equal(
        native.load(tmp_path / "m", {"w": matrix})["w"], matrix
    )


# --- Files that are refused ---


def refusal(file, like=LIKE):
    """What `load` says, which is one line."""
    with pytest.raises(ValueError) as caught:
        native.load(file, like)
    message = str(caught.value)
    assert str(file) in message and "\n" not in message
    return message


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_a_truncated_file_is_refused(file, share):
    raw = file.read_bytes()
    file.write_bytes(raw[: int(share * len(raw))])
    assert "not a whole safetensors file" in refusal(file)


def test_a_missing_tensor_is_named(file):
    more = LIKE | {"head": jax.ShapeDtypeStruct((4, 5), jnp.float32)}
    assert "missing ['head'], left over []" in refusal(file, more)


def test_a_tensor_left_over_is_named(file):
    fewer = {"layers": LIKE["layers"]}
    assert "missing [], left over ['embedding']" in refusal(file, fewer)


def test_a_tensor_of_another_shape_is_named(file):
    other = LIKE | {"embedding": jax.ShapeDtypeStruct((4, 5), jnp.float32)}
    assert "embedding has shape (5, 4), expected (4, 5)" in refusal(file, other)


def test_no_file_is_not_a_damaged_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        native.load(tmp_path / "nothing", LIKE)


# --- Writing ---


def test_nothing_but_the_file_is_left(file):
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


def test_saving_replaces_the_old_file(file):
    native.save(file, {"w": jnp.ones(2)})
    assert native.load(file, {"w": jnp.ones(2)})["w"].tolist() == [1.0, 1.0]


def test_an_interrupted_save_leaves_the_old_file(file, monkeypatch):
    before = file.read_bytes()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        native.save(file, jax.tree.map(jnp.zeros_like, PARAMS))
    assert file.read_bytes() == before
