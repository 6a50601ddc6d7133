"""What blocks share is stored once, and everything else is their own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import folder
import tiny
from jaxspec import pretrained, weights
from jaxspec.models import forms, hybrid, shared

CONFIG = tiny.CONFIGS["shared"]
SETS = CONFIG.layers.count("S")


@pytest.mark.parametrize("scanned", [False, True], ids=["unrolled", "scanned"])
def test_a_set_is_stored_once(scanned):
    init = hybrid.language_model(CONFIG, scan_layers=scanned).init
    params = jax.eval_shape(init, jax.random.key(0))
    projections = [
        (path, leaf.shape[0] if scanned else 1)
        for path, leaf in zip(
            weights.names(params), jax.tree.leaves(params), strict=True
        )
        if path.endswith("attention.qkv_proj.kernel")
    ]
    assert sum(count for _, count in projections) == CONFIG.num_shared < SETS
    assert all(path.startswith("shared.") for path, _ in projections)


def test_what_is_stacked_is_what_is_initialised_stacked():
    init = hybrid.language_model(CONFIG, scan_layers=True).init
    expected = jax.eval_shape(init, jax.random.key(0))
    found = forms.stack(CONFIG, tiny.params("shared"))
    assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, expected)


def test_activations_have_the_dtype_of_the_model():
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    model, params = hybrid.language_model(config), tiny.params("shared")
    carry = model.init_carry(params, 1, 8)
    _, hidden = jax.eval_shape(model.step, params, carry, jnp.array([3]))
    assert hidden.dtype == jnp.bfloat16


def test_what_is_saved_is_loaded(tmp_path):
    config = dataclasses.replace(CONFIG, vocab_size=folder.VOCAB)
    made = jax.jit(hybrid.language_model(config).init)(jax.random.key(0))
    pretrained.save(tmp_path, config, made, folder.tokenizer())
    plain, stacked = (
        pretrained.load(tmp_path, scan_layers=scanned).params
        for scanned in (False, True)
    )
    for name in ("layers", "shared"):
        rounded = jax.tree.map(lambda a: a.astype(jnp.bfloat16), made[name])
        jax.tree.map(np.testing.assert_array_equal, plain[name], rounded)
    again = forms.stack(config, plain)
    jax.tree.map(np.testing.assert_array_equal, stacked, again)


def test_joining_undoes_parting():
    params = tiny.params("shared")
    own, common = params["layers"][0], params["shared"][0]
    whole = shared.join(own, common)
    assert {*whole} == {"norm", "mamba2", "out_proj", *shared.SHARED}
    again = shared.part(whole)
    assert again == (own, common)
