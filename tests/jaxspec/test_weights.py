"""Params on disk, a file per part: rounded once, and what does not fit is named."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxspec import digests, weights

RNG = np.random.default_rng(0)
PARAMS = {
    "embed": {"embedding": jnp.array(RNG.normal(size=(5, 4)), jnp.float32)},
    "layers": (
        {"mamba2": {"D": jnp.array(RNG.normal(size=3), jnp.float32)}},
        {"mlp": {"kernel": jnp.array(RNG.normal(size=(4, 2)), jnp.bfloat16)}},
    ),
}
LIKE = jax.eval_shape(lambda: PARAMS)
PARTS = ["embed", "layers.0", "layers.1"]


@pytest.fixture
def folder(tmp_path):
    assert weights.save(tmp_path, PARAMS, jnp.bfloat16) == PARTS
    return tmp_path


def test_names_are_joined_by_dots():
    found = ["embed.embedding", "layers.0.mamba2.D", "layers.1.mlp.kernel"]
    assert weights.names(PARAMS) == found


@pytest.mark.parametrize("like", [PARAMS, LIKE], ids=["arrays", "shapes"])
def test_what_is_loaded_is_what_was_saved_rounded_to_bfloat16(folder, like):
    loaded = weights.load(folder, like)
    assert jax.tree.structure(loaded) == jax.tree.structure(PARAMS)
    pairs = zip(jax.tree.leaves(loaded), jax.tree.leaves(PARAMS), strict=True)
    for found, saved in pairs:
        assert found.dtype == saved.dtype
        rounded = np.asarray(saved).astype(ml_dtypes.bfloat16).astype(saved.dtype)
        np.testing.assert_array_equal(found, rounded)


def test_the_table_names_every_part(folder):
    table = (folder / digests.TABLE).read_text().splitlines()
    assert [line.split()[1] for line in table] == [weights.file(p) for p in PARTS]
    assert all(weights.is_sound(folder, part) for part in PARTS)


def test_saving_removes_the_parts_of_before(folder):
    fewer = {"layers": PARAMS["layers"][:1]}
    assert weights.save(folder, fewer, jnp.bfloat16) == ["layers.0"]
    files = [path.name for path in (folder / weights.PARAMS).iterdir()]
    assert files == ["layers.0.safetensors"]
    assert not weights.is_sound(folder, "embed")


# --- Parts that are refused ---


def refusal(folder, like):
    """What `load` says, which is one line."""
    with pytest.raises(ValueError) as caught:
        weights.load(folder, like)
    message = str(caught.value)
    assert str(folder) in message and "\n" not in message
    return message


def test_a_part_that_is_missing_is_named(folder):
    more = LIKE | {"head": {"kernel": jax.ShapeDtypeStruct((4, 5), jnp.float32)}}
    assert "it has no params/head.safetensors" in refusal(folder, more)


def test_a_tensor_that_is_missing_is_named(folder):
    more = LIKE["embed"] | {"bias": jax.ShapeDtypeStruct((5,), jnp.float32)}
    assert "missing ['bias'], left over []" in refusal(folder, {"embed": more})


def test_a_tensor_left_over_is_named(folder):
    assert "missing [], left over ['embedding']" in refusal(folder, {"embed": {}})


def test_a_tensor_of_another_shape_is_named(folder):
    other = {"embed": {"embedding": jax.ShapeDtypeStruct((4, 5), jnp.float32)}}
    assert "embedding has shape (5, 4), expected (4, 5)" in refusal(folder, other)
