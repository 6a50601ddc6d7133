"""`jaxspec tune` on small models: files that can be used, objects, one line of error."""

import json

import jax
import numpy as np
import pytest

import folder
import jaxspec
from jaxspec import pretrained, tokenizer_files
from jaxspec.__main__ import main
from jaxspec.drafting import (
    datastore,
    sequoia,
    static,
    survival_file,
    tree_file,
    vocabulary,
)
from jaxspec.measure import engine_costs
from jaxspec.tune import calibration

CODE = "def f{i}(a, b):\n    c = a + {i} + b\n    d = c - {i}\n    return d\n"
FEW = ["--prompts", "5", "--batch", "2", "--max-tokens", "9", "--seed", "3"]


@pytest.fixture
def arguments(tmp_path):
    """Options that name small models and a small library."""
    library = tmp_path / "lib"
    library.mkdir()
    for i in range(60):
        (library / f"m{i}.py").write_text(CODE.format(i=i))
    names = ["--model", folder.make(), "--draft-model", folder.make("M")]
    return [str(name) for name in (*names, "--stdlib", library, *FEW)]


def tune(capsys, *arguments):
    status = main(["tune", *arguments, "--json"])
    out, err = capsys.readouterr()
    assert status == 0, err
    return json.loads(out)


def error_of(capsys, *arguments):
    assert main(["tune", *arguments]) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("jaxspec tune: ")]
    assert out == "" and len(lines) == 1
    return lines[0]


def test_a_tree_is_measured_and_chosen(capsys, tmp_path, arguments):
    out, plot = tmp_path / "tree.json", tmp_path / "tree.png"
    record = tune(
        capsys,
        *("tree", *arguments, "--out", str(out), "--plot", str(plot)),
        *("--temperature", "1.5", "--max-nodes", "4", "--max-path", "3"),
        *("--width", "5", "--repeats", "1"),
    )
    written = json.loads(out.read_text())
    assert written.items() >= record.items()
    assert plot.stat().st_size > 5000
    assert record["law"] == "without_replacement"
    assert record["text"]["prompts"] == 5 and len(record["text"]["sha256"]) == 64
    curve = record["acceptance"]
    assert len(curve) == 5 and 0 < sum(curve) <= 1 and 1 <= record["places"] <= 45
    assert set(record["verify_steps"]) == {"1", "2", "4"}
    assert [tree["num_nodes"] for tree in record["trees"]] == [2, 4]
    for tree in record["trees"]:
        parents = tree_file.load_tree(out, tree["num_nodes"])
        assert parents == tuple(tree["parents"])
        assert static.static_tree(parents).max_path == tree["levels"] + 1 <= 3
        expected = sequoia.expected_tokens(parents, curve)
        assert tree["expected_tokens"] == pytest.approx(expected, abs=1e-4)
        steps = record["verify_steps"][str(tree["num_nodes"])]
        steps += tree["levels"] * record["level_steps"]
        assert tree["speedup"] == pytest.approx(expected / steps, rel=1e-3)
    assert record["busy"] >= 1.0
    best = max(record["trees"], key=lambda tree: tree["speedup"])
    assert tree_file.load_tree(out) == tuple(best["parents"])


def test_a_vocabulary_is_counted_and_chosen(capsys, tmp_path, arguments):
    out = tmp_path / "vocabulary.json"
    record = tune(capsys, "vocabulary", *arguments, "--out", str(out), "--size", "20")
    own = tokenizer_files.tokenizer_hash(folder.tokenizer())
    found = vocabulary.load(out, own)
    assert record["size"] == len(found.keep) <= 20
    assert set(pretrained.load(folder.make()).folder.special_tokens) <= set(found.keep)
    assert found.counts.sum() == record["tokens"] and len(found.counts) == folder.VOCAB
    assert record["seen"] == (found.counts > 0).sum()
    rows = {row["size"]: row for row in record["sizes"]}
    coverage = [rows[size]["coverage"] for size in sorted(rows)]
    assert (np.diff(coverage) > 0).all() and coverage[-1] == 1.0
    assert all(0 <= row["held_out_coverage"] <= 1 for row in rows.values())
    costs = [rows[size]["cost_ratio"] for size in sorted(rows)]
    assert (np.diff(costs) > 0).all()
    assert record["held_out_text"]["sha256"] != record["text"]["sha256"]


def test_trees_of_a_trimmed_model_are_measured(capsys, tmp_path, arguments):
    words, out = tmp_path / "vocabulary.json", tmp_path / "tree.json"
    tune(capsys, "vocabulary", *arguments, "--out", str(words), "--size", "20")
    options = ["--max-nodes", "2", "--width", "3", "--repeats", "1"]
    options += ["--temperature", "1", "--vocabulary", str(words), "--out", str(out)]
    assert main(["tune", "tree", *arguments, *options]) == 0
    assert "SHA-256" in capsys.readouterr().out
    record = json.loads(out.read_text())
    assert record["vocabulary"] == "vocabulary.json"
    assert tree_file.load_tree(out) == (-1, 0)


def test_a_datastore_is_made(capsys, tmp_path, arguments):
    out = "--out", str(tmp_path / "store.safetensors")
    evaluated = tmp_path / "evaluation.jsonl"
    own = CODE.format(i=7)
    evaluated.write_text(json.dumps({"prompt": own}))
    text = tmp_path / "text.txt"
    text.write_text(own + CODE.format(i=8))
    model, library = arguments[:2], arguments[4:6]
    options = "--disjoint-from", str(evaluated), *out
    options = *model, *library, *FEW, "--prompts", "2", *options
    record = tune(capsys, "datastore", *options, "--text", str(text), __file__)
    assert (record["left_out"], record["documents"]) == (1, 3)  # this file, two texts
    target = pretrained.load(folder.make())
    store = datastore.load(tmp_path / "store.safetensors", target.tokenizer)
    assert len(store.tokens) == record["tokens"]


def test_survival_is_measured_and_grown_by(capsys, tmp_path, arguments, monkeypatch):
    """Both texts are of few prompts: the numbers are of chance, and their sums are not."""
    monkeypatch.setattr("jaxspec.tune.survival.LEAST", 10)
    out, plot = tmp_path / "survival.json", tmp_path / "survival.png"
    names = "chain:2", "rsd-c:3"
    options = "--drafter", *names, "--out", str(out), "--plot", str(plot)
    record = tune(capsys, "survival", *arguments, *options, "--temperature", "1.5")
    assert plot.stat().st_size > 5000
    assert record["held_out_text"]["sha256"] != record["text"]["sha256"]
    rows = {row["drafter"]: row for row in record["drafters"]}
    assert tuple(rows) == names
    for name, row in rows.items():
        curve = survival_file.load_curve(out, name)
        assert list(curve.share) == sorted(curve.share)
        assert sum(row["by_curve"]["count"]) == row["held_out_drafts"] > 0
        assert 0 <= row["error_by_curve"] <= 1 and 0 <= row["kept"] <= 1
    with pytest.raises(ValueError, match="curves of .* not of chain:8"):
        survival_file.load_curve(out, "chain:8")
    acceptance = survival_file.load_acceptance(out)
    assert 1 <= len(acceptance) <= 2
    made = jaxspec.drafter(
        "dyspec-measured:4",
        jaxspec.load(folder.make()),
        draft=folder.make("M"),
        survival=out,
    )
    assert made.drafter.max_path == 4


def test_texts_are_the_targets_own():
    target = pretrained.load(folder.make())
    prompts = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
    for temperature in (0.0, 1.0):
        found, batches = [], []
        for batch in (2, 3):
            written = calibration.generate_texts(
                target,
                prompts,
                max_new_tokens=12,
                temperature=temperature,
                stops=target.stops,
                batch=batch,
                seed=4,
                advance=batches.append,
            )
            found.append(written)
        assert found[0] == found[1] and batches == [2, 1, 3]
        tokens, lengths = jaxspec.pad_prompts(prompts[1:2])
        params = jaxspec.Params(target.params)
        state = jaxspec.init_state(
            params,
            tokens,
            lengths,
            target=target.model,
            max_new_tokens=12,
            temperature=temperature,
            stops=target.stops,
            keys=jax.random.fold_in(jax.random.key(4), 1)[None],
        )
        state = jaxspec.generate(params, state, target=target.model)
        assert found[0][1] == state.tokens[0, 1 : int(state.lengths[0])].tolist()


@pytest.mark.parametrize(
    "bad, message",
    [
        (("tree", "--max-nodes", "1"), "--max-nodes and --max-path must be at least 2"),
        (("tree", "--width", "0"), "--width must be positive"),
        (("tree", "--prompts", "0"), "--prompts must be positive"),
        (("tree", "--temperature", "-1"), "temperature must not be negative"),
        (("tree", "--width", "999"), "width from 1 to 280"),
        (("tree", "--vocabulary", "no/file"), "no/file"),
        (("tree", "--disjoint-from", "no/file"), "no/file"),
        (("tree", "--out", "no/folder/tree.json"), "no folder no/folder"),
        (("tree", "--plot", "no/folder/tree.png"), "no folder no/folder for --plot"),
        (("survival", "--temperature", "-1"), "--temperature must not be negative"),
        (("survival", "--drafter", "ngram:4"), "ngram:4 has proposed no drafts"),
        (("survival", "--drafter", "suffix:4"), "suffix:4 drafts on the host"),
        (("survival", "--drafter", "no:4"), "Unknown drafter 'no:4'"),
        (("tree", "--out", "."), "--out must be a file, and . is a folder"),
        (("vocabulary", "--size", "281"), "--size must be from 2 to 280"),
        (("vocabulary", "--size", "1"), "--size must be from 2 to 280"),
        (("vocabulary", "--model", "nowhere"), "nowhere"),
    ],
)
def test_bad_input_is_one_line(capsys, tmp_path, arguments, bad, message):
    out = tmp_path / "out.json"
    subject, *options = bad
    line = error_of(capsys, subject, *arguments, "--out", str(out), *options)
    assert message in line
    assert not out.exists()


def test_prompts_that_are_evaluated_on_are_one_line(capsys, tmp_path, arguments):
    evaluated = tmp_path / "evaluation.jsonl"
    lines = [{"prompt": CODE.format(i=i)} for i in range(60)]
    evaluated.write_text("\n".join(map(json.dumps, lines)))
    out = ["--out", str(tmp_path / "out.json"), "--disjoint-from", str(evaluated)]
    assert "not disjoint" in error_of(capsys, "tree", *arguments, *out)


def test_a_draft_that_is_never_accepted_is_said(
    capsys, tmp_path, arguments, monkeypatch
):
    none = np.array([0, 0, 7])
    monkeypatch.setattr("jaxspec.tune.acceptance.measure", lambda *_, **__: none)
    out = ["--out", str(tmp_path / "out.json")]
    assert "at none of 7 places" in error_of(capsys, "tree", *arguments, *out)


def test_costs_are_measured_and_read_back(capsys, tmp_path):
    path, plot = tmp_path / "costs.json", tmp_path / "costs.png"
    sizes = ["--rows", "2", "--max-length", "64", "--chunk-size", "8", "--repeats", "2"]
    options = [
        "--model",
        str(folder.make()),
        "--drafter",
        "ngram:3",
        "--out",
        str(path),
    ]
    record = tune(capsys, "costs", *options, *sizes, "--plot", str(plot))
    assert [step[:2] for step in record["steps"]] == [
        [rows, nodes] for rows in (1, 2) for nodes in (1, 2, 3)
    ]
    costs = engine_costs.load(path)
    assert costs.chunk_size == 8 and costs.chunk > 0.0 and costs.admit > 0.0
    assert costs.steps.of(2)[3] >= costs.steps.of(2)[1] > 0.0
    assert plot.stat().st_size > 1000
    path.write_text(path.read_text().replace("ngram:3", "ngram:4"))
    with pytest.raises(ValueError, match="is damaged"):
        engine_costs.load(path)
    error = error_of(capsys, "costs", *options, *sizes, "--nodes", "4")
    assert "nodes of at most 3" in error
