"""Conversion: whole or refused in one line, resumable, and the same from every form."""

import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tokenizers
import torch

import checkpoints_conv
import folder
import jaxspec
import published
from checkpoints_conv import conversion
from jaxspec import weights
from weights import (
    NAME,
    WEIGHTS,
    as_old_pickle,
    as_pickle,
    as_shards,
    as_shards_of_pickle,
    put,
    record,
    tensors,
)


def leaves(path):
    """All params of a converted folder, as they are on disk."""
    names = sorted(part.stem for part in (path / weights.PARAMS).iterdir())
    return {
        f"{name}.{leaf}": array
        for name in names
        for leaf, array in weights.read_part(path, name).items()
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, err_msg=name)


# --- Every form of the same weights ---


def as_its_authors(path):
    state = published.model(NAME).state_dict()
    state["backbone.embedding.weight"] = state.pop("backbone.embeddings.weight")
    torch.save(state, path / "pytorch_model.bin")
    (path / WEIGHTS).unlink()
    mixer = {"layer": "Mamba2", "headdim": 16, "d_state": 8, "ngroups": 2, "bias": True}
    config = {
        "d_model": published.WIDTH,
        "n_layer": 2,
        "vocab_size": published.VOCAB - 3,
        "pad_vocab_size_multiple": 8,
        "ssm_cfg": mixer | {"dt_limit": [0.01, 0.5]},
        "attn_layer_idx": [],
        "attn_cfg": {},
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "tie_embeddings": True,
    }
    (path / "config.json").write_text(json.dumps(config))


FORMS = [as_pickle, as_old_pickle, as_shards, as_shards_of_pickle, as_its_authors]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_converts_to_the_same_model(source, tmp_path, form):
    form(source)
    checkpoints_conv.convert(source, tmp_path / "dest")
    assert_same(leaves(tmp_path / "dest"), leaves(published.converted(NAME)))
    ours, theirs = (
        (path / "config.json").read_text()
        for path in (tmp_path / "dest", published.converted(NAME))
    )
    assert ours == theirs


def test_mamba_of_its_authors(tmp_path):
    """Their config says nothing of the layer, and the authors' form is exported as HF's."""
    path = tmp_path / "source"
    shutil.copytree(published.source("mamba"), path)
    arrays = tensors(path)
    arrays["backbone.embedding.weight"] = arrays.pop("backbone.embeddings.weight")
    put(path, arrays)
    config = {"d_model": published.WIDTH, "n_layer": 2, "vocab_size": published.VOCAB}
    config |= {"ssm_cfg": {"d_state": 8}, "rms_norm": True, "residual_in_fp32": True}
    (path / "config.json").write_text(json.dumps(config))
    checkpoints_conv.convert(path, tmp_path / "dest")
    assert_same(leaves(tmp_path / "dest"), leaves(published.converted("mamba")))
    checkpoints_conv.export(tmp_path / "dest", tmp_path / "back")
    assert_same(tensors(tmp_path / "back"), tensors(published.source("mamba")))
    assert json.loads((tmp_path / "back/config.json").read_text())["eos_token_id"] == 0


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_the_authors_names_beside_transformers_config(name, tmp_path):
    """Which transformers reads too; they are given back as they were."""
    path = tmp_path / "source"
    shutil.copytree(published.source(name), path)
    arrays = tensors(path)
    arrays["backbone.embedding.weight"] = arrays.pop("backbone.embeddings.weight")
    put(path, arrays)
    checkpoints_conv.convert(path, tmp_path / "dest")
    assert_same(leaves(tmp_path / "dest"), leaves(published.converted(name)))
    checkpoints_conv.export(tmp_path / "dest", tmp_path / "back")
    assert_same(tensors(tmp_path / "back"), arrays)


# --- Interrupted ---


def interrupt(part):
    def advance(name, done, total):
        if name == part:
            raise KeyboardInterrupt

    return advance


def test_an_interrupted_conversion_goes_on(source, tmp_path):
    dest = tmp_path / "dest"
    partial = tmp_path / "dest.partial"
    with pytest.raises(KeyboardInterrupt):
        checkpoints_conv.convert(source, dest, advance=interrupt("layers.1"))
    assert not dest.exists()
    half = partial / (weights.file("layers.1") + ".partial")
    half.touch()
    (half.parent / "some").mkdir()
    (half.parent / ".DS_Store").touch()
    before = {path.name: path.stat().st_mtime_ns for path in half.parent.iterdir()}
    checkpoints_conv.convert(source, dest)
    assert not partial.exists()
    assert_same(leaves(dest), leaves(published.converted(NAME)))
    for name in ("embed", "layers.0"):
        kept = (dest / weights.file(name)).stat().st_mtime_ns
        assert kept == before[f"{name}.safetensors"]


def test_another_source_begins_anew(source, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        checkpoints_conv.convert(
            source, tmp_path / "dest", advance=interrupt("layers.1")
        )
    arrays = {name: array + 1 for name, array in tensors(source).items()}
    put(source, arrays)
    checkpoints_conv.convert(source, tmp_path / "dest")
    table = leaves(tmp_path / "dest")["embed.embedding"]
    np.testing.assert_array_equal(table, arrays["backbone.embeddings.weight"])


def test_nothing_is_overwritten(source, tmp_path):
    (tmp_path / "dest").mkdir()
    with pytest.raises(ValueError, match="dest exists; give another folder"):
        checkpoints_conv.convert(source, tmp_path / "dest")


# --- What comes with the weights ---


def test_tensors_keep_their_dtypes_and_are_loaded_in_any(source, tmp_path):
    narrow = {
        name: array if name.endswith("A_log") else array.astype(ml_dtypes.bfloat16)
        for name, array in tensors(source).items()
    }
    put(source, narrow)
    checkpoints_conv.convert(source, tmp_path / "dest")
    stored_as = {
        path: leaf.dtype.name for path, leaf in leaves(tmp_path / "dest").items()
    }
    assert stored_as["layers.0.mamba2.in_proj.kernel"] == "bfloat16"
    assert stored_as["layers.0.mamba2.A_log"] == "float32"
    for dtype in (None, "bfloat16", "float32"):
        model, params, _ = jaxspec.load(tmp_path / "dest", dtype)
        mixer = params["layers"][0]["mamba2"]
        expected = dtype or "bfloat16"
        assert mixer["in_proj"]["kernel"].dtype == expected
        assert params["embed"]["embedding"].dtype == expected
        assert mixer["norm"]["scale"].dtype == mixer["A_log"].dtype == jnp.float32
        carry = jax.eval_shape(lambda p, m=model: m.init_carry(p, 1, 8), params)
        assert carry.blocks[0][0].tail.dtype == expected
    with pytest.raises(ValueError, match="dtype must be one of"):
        jaxspec.load(tmp_path / "dest", "float16")


def test_what_the_choice_of_experts_hangs_on_stays_precise():
    params = jaxspec.load(published.converted("nemotron-experts"), "bfloat16").params
    mixer = params["layers"][1]["moe"]
    assert mixer["up_proj"]["kernel"].dtype == "bfloat16"
    assert mixer["correction_bias"].dtype == "float32"


@pytest.mark.parametrize(
    "generation, own, expected",
    [
        ({"eos_token_id": [7, 9]}, 2, [7, 9]),
        ({"eos_token_id": 7}, 2, [7]),
        ({}, 2, [2]),
        (None, [3, 4], [3, 4]),
        (None, None, [0]),  # the tokenizer's end of text
    ],
)
def test_texts_end_as_the_source_says(source, generation, own, expected):
    file = source / "generation_config.json"
    file.unlink(missing_ok=True)
    if generation is not None:
        file.write_text(json.dumps(generation))
    record(source, eos_token_id=own)
    todo = conversion.plan(source)
    assert conversion.provenance(todo)["stop_tokens"] == expected


def test_a_tokenizer_that_clips_and_pads_encodes_whole_prompts(source, tmp_path):
    """And its file goes back as it was, line ends and all."""
    tokenizer = folder.tokenizer()
    whole = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    whole.enable_truncation(4)
    whole.enable_padding(length=6)
    file = source / "tokenizer.json"
    file.write_bytes(whole.to_str(pretty=True).replace("\n", "\r\n").encode())
    checkpoints_conv.convert(source, tmp_path / "dest")
    prompt = "x = 12345678901234567890123456789"
    expected = tokenizer.encode(prompt).ids
    assert len(expected) == 33 and len(whole.encode(prompt).ids) == 6
    assert jaxspec.load(tmp_path / "dest").tokenizer.encode(prompt).ids == expected
    checkpoints_conv.export(tmp_path / "dest", tmp_path / "back")
    assert (tmp_path / "back/tokenizer.json").read_bytes() == file.read_bytes()


def test_the_tokenizer_may_be_elsewhere(source, tmp_path):
    (source / "tokenizer.json").unlink()
    other = published.source("mamba")
    for path in (other, other / "tokenizer.json"):
        expected = (other / "tokenizer.json").read_text()
        assert conversion.plan(source, path).tokenizer == expected
