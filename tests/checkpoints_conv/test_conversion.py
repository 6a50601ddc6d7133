"""Conversion: whole or refused in one line, resumable, and the same from every form."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch

import checkpoints_conv
import jaxspec
import published
from checkpoints_conv import conversion, stored
from jaxspec import pretrained

NAME = "mamba2"
WEIGHTS = "model.safetensors"


@pytest.fixture
def source(tmp_path):
    shutil.copytree(published.source(NAME), tmp_path / "source")
    return tmp_path / "source"


def tensors(path):
    return safetensors.numpy.load_file(path / WEIGHTS)


def put(path, arrays):
    safetensors.numpy.save_file(arrays, path / WEIGHTS)


def record(path, **fields):
    """Changes fields of the config."""
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def leaves(path):
    """All params of a converted folder, as they are on disk."""
    names = sorted(part.name for part in (path / stored.PARAMS).iterdir())
    return {
        f"{name}.{leaf}": array
        for name in names
        for leaf, array in stored.flatten(stored.read_part(path, name)).items()
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, err_msg=name)


# --- Every form of the same weights ---


def as_pickle(path):
    state = published.model(NAME).state_dict()  # the tied head is there twice
    torch.save(state, path / "pytorch_model.bin")
    (path / WEIGHTS).unlink()


def as_old_pickle(path):
    state = published.model(NAME).state_dict()
    file = path / "pytorch_model.bin"
    torch.save(state, file, _use_new_zipfile_serialization=False)
    (path / WEIGHTS).unlink()


def as_shards(path):
    published.model(NAME).save_pretrained(path, max_shard_size="12KB")
    (path / WEIGHTS).unlink(missing_ok=True)
    assert len(list(path.glob("model-*.safetensors"))) > 2


def as_shards_of_pickle(path):
    state = list(published.model(NAME).state_dict().items())
    where = {}
    for i, part in enumerate((state[:7], state[7:])):
        torch.save(dict(part), path / f"pytorch_model-{i}.bin")
        where |= {name: f"pytorch_model-{i}.bin" for name, _ in part}
    index = path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    (path / WEIGHTS).unlink()


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
    half = partial / stored.PARAMS / "layers.1.orbax-checkpoint-tmp-0"
    half.mkdir()
    before = {path.name: path.stat().st_mtime_ns for path in half.parent.iterdir()}
    checkpoints_conv.convert(source, dest)
    assert not partial.exists()
    assert_same(leaves(dest), leaves(published.converted(NAME)))
    for name in ("embed", "layers.0"):
        kept = (dest / stored.PARAMS / name).stat().st_mtime_ns
        assert kept == before[name]


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


# --- Damage ---


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
    (config(time_step_limit=[{}, []]), "makes no sense"),
    (config(hidden_size=None), "has no field hidden_size"),
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


@pytest.mark.parametrize(
    "harm, message",
    [
        (
            lambda path: shutil.rmtree(path / "params/layers.1"),
            "has no params/layers.1",
        ),
        (
            lambda path: shutil.rmtree(path / "params/embed/d"),
            "params/embed is damaged",
        ),
        (config(d_model=64), "does not fit its config"),
        (truncated("source.json"), "source.json is damaged"),
    ],
)
def test_damage_of_what_was_converted_is_refused(tmp_path, harm, message):
    path = tmp_path / "model"
    shutil.copytree(published.converted(NAME), path)
    harm(path)
    with pytest.raises(ValueError, match=message) as error:
        jaxspec.load(path)
        pretrained.stop_tokens(path)
    assert "\n" not in str(error.value)


def test_a_published_folder_is_not_loaded_but_converted_first(source, tmp_path):
    with pytest.raises(ValueError, match="jaxspec convert .*source DEST"):
        jaxspec.load(source)
    with pytest.raises(ValueError, match="is a model of jaxspec already"):
        checkpoints_conv.convert(published.converted(NAME), tmp_path / "dest")


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


def test_the_tokenizer_may_be_elsewhere(source, tmp_path):
    (source / "tokenizer.json").unlink()
    other = published.source("mamba")
    for path in (other, other / "tokenizer.json"):
        expected = (other / "tokenizer.json").read_text()
        assert conversion.plan(source, path).tokenizer == expected
