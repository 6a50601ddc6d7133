"""What is damaged, odd or somebody else's is refused in one line, and nothing is lost."""

import json
import math
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest
import torch

import checkpoints_conv
import jaxspec
import published
from jaxspec import digests, weights
from weights import NAME, WEIGHTS, as_pickle, as_shards, put, record, tensors


def without(name):
    def harm(path):
        arrays = tensors(path)
        del arrays[name]
        put(path, arrays)

    return harm


def changed(name, change):
    def harm(path):
        put(path, tensors(path) | {name: change(tensors(path).get(name))})

    return harm


def config(**fields):
    return lambda path: record(path, **fields)


def truncated(name, size=-9):
    def harm(path):
        (path / name).write_bytes((path / name).read_bytes()[:size])

    return harm


def removed(name):
    return lambda path: (path / name).unlink()


def without_a_shard(path):
    as_shards(path)
    sorted(path.glob("model-*.safetensors"))[1].unlink()


def with_a_tensor_in_two_shards(path):
    as_shards(path)
    first, second, *_ = sorted(path.glob("model-*.safetensors"))
    shutil.copy(first, second)


def with_weights_elsewhere(name):
    def harm(path):
        as_shards(path)
        index = path / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"backbone.norm_f.weight": name}}))

    return harm


def a_pickle_cut_short(path):
    as_pickle(path)
    truncated("pytorch_model.bin", -999)(path)


class Code:
    """What a pickle could run."""

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("was-run"),)


def a_pickle_of_code(path):
    torch.save({"backbone.norm_f.weight": Code()}, path / "pytorch_model.bin")
    (path / WEIGHTS).unlink()


def a_pickle_of_a_list(path):
    torch.save([torch.ones(2)], path / "pytorch_model.bin")
    (path / WEIGHTS).unlink()


def another_head(path):
    put(path, tensors(path) | {"lm_head.weight": np.ones((280, 32), np.float32)})


HARMS = [
    (
        without("backbone.norm_f.weight"),
        "missing backbone.norm_f.weight, left over noth",
    ),
    (
        changed("backbone.x", lambda _: np.ones(3)),
        "missing nothing, left over backbone.x",
    ),
    (config(num_hidden_layers=3), "missing backbone.layers.2.* and 8 more"),
    (config(num_hidden_layers=1), "left over backbone.layers.1.*"),
    (
        changed("backbone.norm_f.weight", lambda a: a[1:]),
        r"shape \(31,\), expected \(32",
    ),
    (
        changed("backbone.norm_f.weight", np.float64),
        "F64, expected one of F32, F16, BF16",
    ),
    (config(vocab_size=288), r"shape \(280, 32\), expected \(288, 32\)"),
    (truncated(WEIGHTS), "not a whole safetensors file"),
    (truncated(WEIGHTS, 99), "not a whole safetensors file"),
    (removed(WEIGHTS), "has no weights"),
    (without_a_shard, "index.json names model-.*, which is missing"),
    (
        with_weights_elsewhere("../a.safetensors"),
        "names '../a.*; expected a file besid",
    ),
    (with_weights_elsewhere(["a"]), "names \\['a'\\]; expected a file beside it"),
    (with_weights_elsewhere(""), "names ''; expected a file beside it"),
    (with_a_tensor_in_two_shards, "is both in model-.* and in model-"),
    (a_pickle_cut_short, "not a whole file of tensors"),
    (a_pickle_of_code, "not a whole file of tensors"),
    (a_pickle_of_a_list, "holds more than tensors by name"),
    (another_head, "ties the head to the embedding, and lm_head.weight is another"),
    (config(tie_word_embeddings=False), "missing lm_head.weight"),
    (config(model_type="rwkv"), "unknown architecture 'rwkv'; expected .*mamba2"),
    (config(hidden_act="gelu"), "does not implement hidden_act 'gelu'; .* 'silu'"),
    (config(sliding_window=128), "does not implement sliding_window 128"),
    (config(num_heads="four"), "num_heads must be a whole number, got 'four'"),
    (config(num_heads=8), "num_heads \\* head_dim is 128 and expand"),
    (config(use_bias=1), "use_bias must be true or false, got 1"),
    (config(time_step_limit=[0.5, 0.1]), "dt_limits are two numbers that rise"),
    (config(time_step_limit=3), "time_step_limit must be a list"),
    (config(time_step_limit=[1.0]), r"time_step_limit must be 2 numbers, got \[1.0\]"),
    (config(time_step_limit=[{}, 1.0]), r"time_step_limit must be numbers, got \{\}"),
    (config(time_step_limit=[0.0, "x"]), "time_step_limit must be numbers, got 'x'"),
    (config(time_step_limit=[0.0, math.nan]), "config.json is not JSON: it has a NaN"),
    (config(hidden_size=None), "has no field hidden_size"),
    (config(hidden_size=2**31), "hidden_size must be at most 2147483647"),
    (config(num_hidden_layers=10**6), "num_hidden_layers must be at most 16384"),
    (config(layer_norm_epsilon=10**400), "layer_norm_epsilon must be finite"),
    (config(ssm_cfg=[1]), "source: config.json: .* does not implement ssm_cfg"),
    (truncated("config.json"), "is not JSON"),
    (removed("config.json"), "There is no .*config.json"),
    (removed("tokenizer.json"), "no tokenizer .* --tokenizer FILE"),
    (truncated("tokenizer.json"), "is not a tokenizer"),
]


@pytest.mark.parametrize("harm, message", HARMS)
def test_damage_is_refused_in_one_line(source, tmp_path, monkeypatch, harm, message):
    monkeypatch.chdir(tmp_path)
    harm(source)
    with pytest.raises(ValueError, match=message) as error:
        checkpoints_conv.convert(source, tmp_path / "dest")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_tensors_of_one_parameter_have_one_dtype(tmp_path):
    path = tmp_path / "source"
    shutil.copytree(published.source("llama"), path)
    name = "model.layers.0.self_attn.k_proj.weight"
    put(path, tensors(path) | {name: tensors(path)[name].astype(np.float16)})
    with pytest.raises(
        ValueError, match="must have one dtype, got .*k_proj.weight F16"
    ):
        checkpoints_conv.convert(path, tmp_path / "dest")


LATER = "model.layers.3.shared_transformer"


def test_what_blocks_share_may_be_there_again_but_not_otherwise(tmp_path):
    """As in a file of torch's, which names it at every use."""
    path = tmp_path / "source"
    shutil.copytree(published.source("zamba2"), path)
    again = {
        name: tensor.numpy()
        for name, tensor in published.model("zamba2").state_dict().items()
        if name.startswith(LATER)
    }
    assert again and not again.keys() & tensors(path).keys()
    put(path, tensors(path) | again)
    checkpoints_conv.convert(path, tmp_path / "dest")
    name = f"{LATER}.self_attn.k_proj.weight"
    put(path, tensors(path) | {name: again[name] + 1})
    with pytest.raises(
        ValueError, match=r"share .*layers\.0.*k_proj.weight, and .*\.3"
    ):
        checkpoints_conv.convert(path, tmp_path / "other")


def test_a_part_that_was_lost_is_missed(tmp_path):
    """Also one that loading has no use for."""
    path = tmp_path / "model"
    shutil.copytree(published.converted(NAME), path)
    (path / "params/layers.1.safetensors").unlink()
    with pytest.raises(
        ValueError, match="has lost params/layers.1.safetensors; convert"
    ):
        checkpoints_conv.export(path, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_file_put_beside_a_model_is_no_damage(tmp_path):
    path = tmp_path / "model"
    shutil.copytree(published.converted(NAME), path)
    for name in weights.CHAT:
        (path / name).write_text("{}")
    jaxspec.load(path)


def provenance(**fields):
    return lambda path: record(path, weights.SOURCE, **fields)


@pytest.mark.parametrize(
    "harm, message",
    [
        (
            lambda path: (path / "params/layers.1.safetensors").unlink(),
            "has no params/layers.1",
        ),
        (
            truncated("params/embed.safetensors"),
            "params/embed.safetensors is not a whole",
        ),
        (config(d_model=64), "does not fit its config"),
        (truncated("source.json"), "source.json is damaged"),
        (provenance(format=1), "its format is 1, expected 3; convert or train again"),
    ],
)
def test_damage_of_what_was_converted_is_refused(tmp_path, harm, message):
    path = tmp_path / "model"
    shutil.copytree(published.converted(NAME), path)
    harm(path)
    digests.write(path)  # so that the contents have to say it
    with pytest.raises(ValueError, match=message) as error:
        jaxspec.load(path)
    assert "\n" not in str(error.value)


def test_a_flipped_bit_of_any_file_of_what_was_converted_is_refused(tmp_path):
    path = tmp_path / "model"
    shutil.copytree(published.converted(NAME), path)
    rng = np.random.default_rng(0)
    for file in sorted(own for own in path.rglob("*") if own.is_file()):
        raw = bytearray(file.read_bytes())
        at = rng.integers(len(raw))
        raw[at] ^= 1 << rng.integers(8)
        whole = file.read_bytes()
        file.write_bytes(raw)
        with pytest.raises(ValueError, match=re.escape(file.name)) as error:
            jaxspec.load(path)
        assert "\n" not in str(error.value)
        file.write_bytes(whole)
    jaxspec.load(path)


def test_a_folder_of_before_is_to_be_converted_again(tmp_path):
    path = tmp_path / "model"
    shutil.copytree(published.converted(NAME), path)
    record(path, format_version=1)
    record(path, weights.SOURCE, format=1)
    for table in path.rglob(digests.TABLE):
        table.unlink()
    for read in (jaxspec.load, checkpoints_conv.export):
        arguments = [path, tmp_path / "out"][: 1 + (read is checkpoints_conv.export)]
        with pytest.raises(
            ValueError, match="config.json: .*version 1.*convert"
        ) as error:
            read(*arguments)
        assert "\n" not in str(error.value)


def test_a_damaged_part_of_an_interrupted_conversion_is_made_again(source, tmp_path):
    dest, partial = tmp_path / "dest", tmp_path / "dest.partial"
    checkpoints_conv.convert(source, dest)
    whole = jaxspec.load(dest).params
    dest.rename(partial)
    file = partial / weights.file("layers.1")
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    checkpoints_conv.convert(source, dest)
    again = jaxspec.load(dest).params
    jax.tree.map(np.testing.assert_array_equal, again, whole)


@pytest.mark.parametrize("fields", [{"family": "rwkv"}, {"form": 7}, {"form": "0"}])
def test_a_family_that_there_is_not_is_not_exported(tmp_path, fields):
    path = tmp_path / "model"
    shutil.copytree(published.converted(NAME), path)
    provenance(**fields)(path)
    digests.write(path)
    with pytest.raises(ValueError, match="names family .*, which there is not"):
        checkpoints_conv.export(path, tmp_path / "back")


def test_what_somebody_else_left_is_not_removed(source, tmp_path):
    mine = tmp_path / "dest.partial" / "thesis.txt"
    mine.parent.mkdir()
    mine.touch()
    with pytest.raises(ValueError, match="no conversion that was interrupted"):
        checkpoints_conv.convert(source, tmp_path / "dest")
    assert mine.exists()


def test_a_published_folder_is_not_loaded_but_converted_first(source, tmp_path):
    with pytest.raises(ValueError, match="jaxspec convert .*source DEST"):
        jaxspec.load(source)
    with pytest.raises(ValueError, match="is a model of jaxspec already"):
        checkpoints_conv.convert(published.converted(NAME), tmp_path / "dest")
