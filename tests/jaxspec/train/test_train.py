"""Training: a run that was killed goes on as if nothing had happened."""

import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import checkpoints_conv
import folder
import tiny
from jaxspec import pretrained, tokenizer_files
from jaxspec.__main__ import main
from jaxspec.train import corpus, evaluate, recipes
from jaxspec.train.recipes import Recipe

CODE = "def f{i}(x):\n    return x + {i}\n\n\nclass C{i}:\n    y = {i}\n"


@pytest.fixture
def stdlib(tmp_path):
    """A standard library of few modules, some of which do not count."""
    root = tmp_path / "lib"
    for i in range(60):
        file = root / "pkg" / f"m{i}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(CODE.format(i=i) * 6)
    for skipped in ("test/t.py", "pkg/tests/t.py", "idlelib/i.py", "lib2to3/l.py"):
        file = root / skipped
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("skipped")
    (root / "site-packages").mkdir()
    (root / "site-packages" / "other.py").write_text("skipped")
    return root


@pytest.fixture
def small(monkeypatch):
    """Recipes that a test can afford."""
    config = folder.config("M*-")
    for name in ("target", "draft"):
        recipe = Recipe(name, config, 6, 2, 16, 1e-2)
        monkeypatch.setitem(recipes.RECIPES, name, recipe)
    with jax.numpy_dtype_promotion("standard"):  # optax does not hold to strict
        yield


def train(capsys, stdlib, out, *options, recipe="target"):
    arguments = ["train", recipe, "--out", str(out), "--stdlib", str(stdlib), "--json"]
    status = main([*arguments, *options])
    printed, err = capsys.readouterr()
    assert status == 0, err
    return json.loads(printed)


def test_modules_are_held_out_by_their_names(stdlib):
    modules = corpus.read_modules(stdlib)
    assert [m.name for m in modules] == sorted(f"pkg.m{i}" for i in range(60))
    held_out = {m.name for m in modules if m.held_out}
    assert held_out == {m.name for m in modules if corpus.is_held_out(m.name)}
    assert 0 < len(held_out) < 15


def test_the_manifest_names_every_file(stdlib):
    modules = corpus.read_modules(stdlib)
    record = corpus.manifest(modules)
    assert set(record["modules"]) == {m.name for m in modules}
    total = sum(entry["bytes"] for entry in record["modules"].values())
    assert total == record["train_bytes"] + record["held_out_bytes"]


def test_gzip_is_measured_per_file():
    texts = ["abc" * 100, "def" * 10]
    packed = sum(len(gzip.compress(t.encode(), 9)) for t in texts)
    assert corpus.gzip_bits_per_byte(texts) == 8 * packed / 330


def test_an_epoch_is_a_function_of_its_arguments():
    documents = [np.arange(100 * i, 100 * i + 40) for i in range(5)]
    first = corpus.epoch(documents, 8, seed=0, index=1)
    np.testing.assert_array_equal(first, corpus.epoch(documents, 8, 0, 1))
    assert (first[:3] != corpus.epoch(documents, 8, 0, 2)[:3]).any()
    assert first.shape[1] == 9
    inputs = first[:, :-1].ravel()
    assert len(set(inputs.tolist())) == len(inputs)  # no token is read twice


def test_bits_per_byte_are_those_of_the_text_read_whole():
    """Against the float64 model, on documents longer than a chunk."""
    rng = np.random.default_rng(0)
    documents = [
        np.append(rng.integers(1, tiny.VOCAB, n), 0).astype(np.int32)
        for n in (600, 30, 3)
    ]
    nats = 0.0
    for document in documents:
        logits = tiny.oracle_logits("small-hybrid", [document[-1], *document[:-1]])
        laws = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        nats -= laws[np.arange(len(document)), document].sum()
    found = evaluate.bits_per_byte(
        tiny.model("small-hybrid"), tiny.params("small-hybrid"), documents, 1000
    )
    assert found == pytest.approx(nats / np.log(2) / 1000, rel=1e-4)


def test_a_run_writes_all_that_it_promises(capsys, stdlib, tmp_path, small):
    result = train(capsys, stdlib, tmp_path / "run", "--save-every", "3")
    out = tmp_path / "run"
    assert result["steps"] == 6
    assert result["gzip_bits_per_byte"] > 0 and result["held_out_bits_per_byte"] > 0
    card = (out / "export" / "card.md").read_text()
    assert f"{result['held_out_bits_per_byte']:.3f} bits per byte" in card
    for name in (
        "export/curve.png",
        "export/manifest.json",
        "recipe.json",
        "log.jsonl",
    ):
        assert (out / name).stat().st_size > 0
    model, params, tokenizer = pretrained.load(out / "export")
    tokens = jnp.asarray([tokenizer.encode("def f1(x):").ids])
    carry = model.init_carry(params, 1, 32)
    lengths = jnp.array([tokens.shape[1]])
    _, hidden = jax.jit(model.scan)(params, carry, tokens, lengths)
    assert jnp.isfinite(model.logits(params, hidden)).all()


def test_a_killed_run_goes_on_identically(capsys, stdlib, tmp_path, small, monkeypatch):
    train(capsys, stdlib, tmp_path / "whole", "--save-every", "2")
    real, saves = evaluate.bits_per_byte, []

    def interrupt(*args, **kwargs):
        saves.append(1)
        if len(saves) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "bits_per_byte", interrupt)
        arguments = ["--out", str(tmp_path / "cut"), "--stdlib", str(stdlib), "--json"]
        assert main(["train", "target", *arguments, "--save-every", "2"]) == 130
    capsys.readouterr()
    train(capsys, stdlib, tmp_path / "cut", "--save-every", "2")
    whole, cut = (
        pretrained.load(tmp_path / run / "export").params for run in ("whole", "cut")
    )
    jax.tree.map(np.testing.assert_array_equal, whole, cut)
    steps = [
        json.loads(line)["step"]
        for line in (tmp_path / "cut" / "log.jsonl").read_text().splitlines()
    ]
    assert steps == sorted(set(steps))


def test_a_draft_is_distilled(capsys, stdlib, tmp_path, small):
    train(capsys, stdlib, tmp_path / "teacher")
    teacher = str(tmp_path / "teacher" / "export")
    out = tmp_path / "draft"
    train(capsys, stdlib, out, "--teacher", teacher, "--seed", "1", recipe="draft")
    ours, theirs = pretrained.load(out / "export"), pretrained.load(teacher)
    tokenizer_files.check_same_tokenizer(theirs.tokenizer, ours.tokenizer)


def test_other_blocks_and_a_converted_teacher(capsys, stdlib, tmp_path, small):
    run, published = tmp_path / "teacher", tmp_path / "published"
    result = train(capsys, stdlib, run, "--layers", "MM")
    assert (result["name"], result["layers"]) == ("stdlib-MM", "MM")
    assert "--layers MM" in (run / "export" / "card.md").read_text()
    checkpoints_conv.export(run / "export", published)
    checkpoints_conv.convert(published, tmp_path / "converted")
    teacher = str(tmp_path / "converted")
    train(capsys, stdlib, tmp_path / "draft", "--teacher", teacher, recipe="draft")
    ours = pretrained.load(tmp_path / "draft" / "export")
    theirs = pretrained.load(teacher)
    tokenizer_files.check_same_tokenizer(theirs.tokenizer, ours.tokenizer)


def test_another_run_in_the_same_folder_is_refused(capsys, stdlib, tmp_path, small):
    train(capsys, stdlib, tmp_path / "run", "--save-every", "6")
    arguments = ["--out", str(tmp_path / "run"), "--stdlib", str(stdlib)]
    assert main(["train", "target", *arguments, "--steps", "7"]) == 2
    assert "other settings" in capsys.readouterr().err


def test_an_empty_library_is_refused(capsys, tmp_path, small):
    arguments = ["--out", str(tmp_path / "run"), "--stdlib", str(tmp_path)]
    assert main(["train", "target", *arguments]) == 2
    assert "holds no Python modules" in capsys.readouterr().err
