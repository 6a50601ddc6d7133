"""`jaxspec convert` and `export`, and a converted model in the other commands."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

import checkpoints_conv
import heads
import jaxspec
import published
from jaxspec import pretrained, tokenizer_files
from jaxspec.__main__ import main
from jaxspec.drafting import vocabulary

PROMPT = "def add(a, b):\n"


def run(capsys, *arguments):
    status = main([*map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    return json.loads(out)


def test_there_and_back_again(capsys, tmp_path):
    dest, back = tmp_path / "model", tmp_path / "back"
    record = run(capsys, "convert", published.source("llama"), dest)
    size = (published.source("llama") / "model.safetensors").stat().st_size
    sizes = {"tensors", "kept", "bytes", "seconds"}
    names = {"family", "layers", "dtype", "source_dtype", "mtp"}
    assert set(record) == names | sizes
    assert (record["kept"], record["mtp"]) == (0, "")
    assert (record["family"], record["layers"]) == ("llama", "*-*-")
    assert (record["dtype"], record["bytes"]) == ("float32", size)
    record = run(capsys, "export", dest, back, "--shard-bytes", 10**9)
    assert record["family"] == "llama"
    theirs = published.source("llama") / "model.safetensors"
    assert (back / "model.safetensors").stat().st_size == pytest.approx(
        theirs.stat().st_size, rel=0.01
    )


def test_a_bar_and_what_to_do_next(capsys, tmp_path):
    dest = tmp_path / "model"
    assert main(["convert", str(published.source("mamba2")), str(dest)]) == 0
    out, err = capsys.readouterr()
    assert "mamba2, 2 blocks" in out and f"generate --model {dest}" in out
    assert "100%" in err
    assert main(["export", str(dest), str(tmp_path / "back")]) == 0
    out, err = capsys.readouterr()
    assert "Mamba2ForCausalLM.from_pretrained(" in out and "100%" in err


def test_float16_is_said_to_become_float32(capsys, tmp_path):
    source, dest = tmp_path / "source", tmp_path / "model"
    shutil.copytree(published.source("llama"), source)
    arrays = safetensors.numpy.load_file(source / "model.safetensors")
    narrow = {name: array.astype(np.float16) for name, array in arrays.items()}
    safetensors.numpy.save_file(narrow, source / "model.safetensors")
    assert main(["convert", str(source), str(dest)]) == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert "are float16" in first and "loaded as float32" in first and len(others) == 1
    record = run(capsys, "convert", source, tmp_path / "again")
    assert (record["source_dtype"], record["dtype"]) == ("float16", "float32")
    run(capsys, "export", dest, tmp_path / "back")
    found = safetensors.numpy.load_file(tmp_path / "back" / "model.safetensors")
    assert {array.dtype.name for array in found.values()} == {"float16"}


def test_what_is_kept_for_export_is_counted(capsys, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(published.source("qwen3_5_text"), source)
    arrays = safetensors.numpy.load_file(source / "model.safetensors")
    arrays["model.visual.norm.weight"] = arrays["model.norm.weight"]
    safetensors.numpy.save_file(arrays, source / "model.safetensors")
    assert run(capsys, "convert", source, tmp_path / "a")["kept"] == 1
    assert main(["convert", str(source), str(tmp_path / "b")]) == 0
    assert ", 1 tensors kept for export alone, " in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_converted_models_generate_with_a_draft_of_another_family(capsys, dtype):
    target, draft = (published.converted(n) for n in ("llama", "small-mamba2"))
    record = run(
        capsys,
        "generate",
        *("--model", target, "--draft-model", draft, "--drafter", "model:2,1"),
        *("--prompt", PROMPT, "--max-tokens", 12, "--dtype", dtype, "--compare"),
    )
    assert len(record["tokens"]) <= 12
    same = record["autoregressive"]
    assert dtype == "bfloat16" or same["identical"] or same["near_ties"]


def test_a_model_drafts_by_its_own_head(capsys):
    record = run(
        capsys,
        "generate",
        *("--model", heads.converted("qwen3_5_text"), "--drafter", "mtp:2,1"),
        *("--prompt", PROMPT, "--max-tokens", 12, "--compare", "--batch", 2),
    )
    same = record["autoregressive"]
    assert same["identical"] or same["near_ties"]


def test_a_head_of_fewer_tokens(capsys, tmp_path):
    """Trimmed as a draft model's is, and the target's is whole."""
    name = "qwen3_5_text"
    keep = np.arange(3, published.VOCAB, 2, dtype=np.int32)
    target = jaxspec.load(heads.converted(name))
    file = tmp_path / "vocabulary.json"
    hash_ = tokenizer_files.tokenizer_hash(target.tokenizer)
    counts = np.ones(published.VOCAB, np.int64)
    vocabulary.save(file, vocabulary.Vocabulary(keep, counts, hash_))
    params = jaxspec.drafter("mtp:3", target, vocabulary=file).params
    assert params.drafter.vocab_ids.tolist() == keep.tolist()
    assert params.drafter.params["lm_head"]["kernel"].shape[1] == len(keep)
    assert params.target is target.params


def error_of(capsys, *arguments):
    status = main([*map(str, arguments)])
    out, err = capsys.readouterr()
    assert status == 2 and out == "" and err.count("\n") == 1
    return err


def test_bad_input_is_one_line(capsys, tmp_path):
    converted, source = published.converted("mamba2"), published.source("mamba2")
    message = error_of(capsys, "convert", tmp_path, tmp_path / "x", "--json")
    assert message.startswith("jaxspec convert: There is no")
    message = error_of(capsys, "convert", source, converted, "--json")
    assert "exists; give another folder" in message
    message = error_of(capsys, "export", source, tmp_path / "x", "--json")
    assert message.startswith("jaxspec export: ") and "jaxspec convert" in message
    message = error_of(capsys, "generate", "--model", converted, "--drafter", "mtp:4")
    assert "has no multi-token-prediction head" in message
    message = error_of(capsys, "generate", "--model", source, "--json")
    assert "convert it first: jaxspec convert" in message


def test_a_draft_of_another_tokenizer_is_refused(capsys):
    options = "--model", published.converted("mamba2"), "--drafter", "model:2"
    message = error_of(capsys, "generate", *options, "--prompt", "x", "--json")
    assert "tokenizer is not the target's" in message


def test_a_refusal_shows_no_bar(capsys, tmp_path):
    assert main(["convert", str(tmp_path), str(tmp_path / "model")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("jaxspec convert: ") and err.count("\n") == 1
    shipped = ["export", "stdlib-8m", str(tmp_path)]
    assert main(shipped) == 2  # the folder exists
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("jaxspec export: ") and err.count("\n") == 1


@pytest.mark.parametrize("size", [0, -1])
def test_shards_have_a_size(capsys, tmp_path, size):
    back = str(tmp_path / "back")
    assert main(["export", "stdlib-8m", back, "--shard-bytes", str(size)]) == 2
    assert f"--shard-bytes must be positive, got {size}" in capsys.readouterr().err
    with pytest.raises(ValueError, match="positive shard_bytes"):
        checkpoints_conv.export(pretrained.find("stdlib-8m"), back, shard_bytes=size)


def test_interrupted_work_with_a_chat_template_is_ours_to_replace(tmp_path):
    source, dest, back = (tmp_path / name for name in ("source", "model", "back"))
    shutil.copytree(published.source("llama"), source)
    (source / "chat_template.jinja").write_text("{{ bos_token }}")
    for partial in (tmp_path / "model.partial", tmp_path / "back.partial"):
        partial.mkdir()
        (partial / "chat_template.jinja").write_text("another")
    checkpoints_conv.convert(source, dest)
    checkpoints_conv.export(dest, back)
    for folder in (dest, back):
        assert (folder / "chat_template.jinja").read_text() == "{{ bos_token }}"
        assert not (folder / "tokenizer_config.json").exists()
