"""Export: what was converted comes back bit by bit, and transformers loads it."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

import checkpoints_conv
import folder
import jaxspec
import published
import tiny
from checkpoints_conv import families
from checkpoints_conv.source import read_config

every_family = pytest.mark.parametrize("name", list(published.FAMILIES))


def load(path):
    """The model, and whether every tensor had its place."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    return model.eval()


@every_family
def test_tensors_come_back_bit_by_bit(name, tmp_path):
    path = tmp_path / "back"
    checkpoints_conv.export(published.converted(name), path, shard_bytes=40_000)
    assert (path / "model.safetensors.index.json").is_file()
    expected = safetensors.numpy.load_file(published.source(name) / "model.safetensors")
    found = {}
    for shard in path.glob("*.safetensors"):
        found |= safetensors.numpy.load_file(shard)
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        assert found[key].dtype == array.dtype
        np.testing.assert_array_equal(found[key], array, err_msg=key)
    again, ours = load(path).state_dict(), published.model(name).state_dict()
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[key], ours[key]) for key in ours)
    for file in ("config.json", "generation_config.json", "tokenizer.json"):
        theirs = json.loads((published.source(name) / file).read_text())
        assert json.loads((path / file).read_text()) == theirs


def test_what_is_not_of_transformers_comes_back_too(tmp_path):
    source, back = published.source("mamba_in_llama"), tmp_path / "back"
    checkpoints_conv.export(published.converted("mamba_in_llama"), back)
    found, expected = (
        safetensors.numpy.load_file(path / "model.safetensors")
        for path in (back, source)
    )
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array, err_msg=key)
    for file in ("config.json", "mamba_config.json"):
        ours, theirs = (
            json.loads((path / file).read_text()) for path in (back, source)
        )
        assert ours == theirs
    config = families.find(read_config(source)).read(read_config(source))
    family = families.FAMILIES["mamba_in_llama"]
    assert family.read(family.describe(config)) == config


@every_family
def test_a_family_writes_the_configs_that_it_reads(name):
    """So that a model of jaxspec can be published without having been converted."""
    record = json.loads((published.source(name) / "config.json").read_text())
    family = families.find(record)
    config = family.read(record)
    assert family.read(family.describe(config)) == config


def test_a_model_of_jaxspec_is_exported_in_the_form_of_a_family(tmp_path):
    source = folder.make("MM")
    checkpoints_conv.export(source, tmp_path / "out")
    model = load(tmp_path / "out")
    assert model.config.model_type == "mamba2" and model.config.eos_token_id == 0
    ours, params, _ = jaxspec.load(source)
    tokens = np.arange(5, 14)[None]
    carry = ours.init_carry(params, 1, 16)
    _, hidden = ours.scan(params, carry, jnp.asarray(tokens), jnp.array([9]))
    with torch.no_grad():
        expected = model(torch.tensor(tokens)).logits
    assert tiny.relative_error(ours.logits(params, hidden), expected) < 1e-4


def without_a_layer(path):
    (path / "params/layers.1.safetensors").unlink()


def without_a_config(path):
    (path / "config.json").unlink()


@pytest.mark.parametrize(
    "harm, message",
    [
        (without_a_layer, "has lost params/layers.1"),
        (without_a_config, "expected a model of jaxspec"),
    ],
)
def test_damage_is_refused(tmp_path, harm, message):
    path = tmp_path / "model"
    shutil.copytree(published.converted("mamba2"), path)
    harm(path)
    with pytest.raises(ValueError, match=message):
        checkpoints_conv.export(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_interrupted_export_begins_anew(tmp_path):
    left = tmp_path / "out.partial" / "0.safetensors"
    left.parent.mkdir()
    left.touch()
    checkpoints_conv.export(published.converted("mamba2"), tmp_path / "out")
    assert not left.exists() and load(tmp_path / "out")


def test_what_somebody_else_left_is_not_removed(tmp_path):
    mine = tmp_path / "out.partial" / "thesis.txt"
    mine.parent.mkdir()
    mine.touch()
    with pytest.raises(ValueError, match="no export that was interrupted"):
        checkpoints_conv.export(published.converted("mamba2"), tmp_path / "out")
    assert mine.exists()


def test_what_no_family_has_is_refused(tmp_path):
    with pytest.raises(ValueError, match="No family .* layers 'M\\*-'"):
        checkpoints_conv.export(folder.make("M*-"), tmp_path / "out")
    with pytest.raises(ValueError, match="exists; give another"):
        checkpoints_conv.export(folder.make("MM"), tmp_path)
