"""The comparison of drafters: what it records, and that it goes on where it was cut."""

import json
import pathlib

import numpy as np
import pytest

import folder
from jaxspec import pretrained
from jaxspec.__main__ import main
from jaxspec.measure import resampling

TREES = pathlib.Path(pretrained.__file__).parent / "assets" / "tuned" / "tree-T0.json"
PROMPTS = ["def add(a, b):\n", "def sub(a", "return a"]


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the benchmark on small models; returns its record, or its error."""
    paths = [tmp_path / "some.jsonl", tmp_path / "other.jsonl"]
    for path in paths:
        path.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS))

    def call(*options):
        models = ["--model", str(folder.make()), "--draft-model", str(folder.make("M"))]
        status = main(
            ["bench", "drafters", "--prompts", *map(str, paths), *models, "--json"]
            + ["--max-tokens", "8", "--temperature", "0", "1", *options]
        )
        out, err = capsys.readouterr()
        return err if status else json.loads(out)

    return call


def test_what_it_records(run, tmp_path):
    few = "--kind", "ngram", "suffix", "chain", "--nodes", "2"
    record = run(
        *few, "--repeats", "1", "--steps", "2", "--plot", str(tmp_path / "a.png")
    )
    cases = {(r["kind"], r["verifier"]) for r in record["rows"]}
    laws = {("chain", "recursive-rejection"), ("chain", "traversal")}
    looked_up = {(name, "sample-and-match") for name in ("ngram", "suffix")}
    assert cases == looked_up | laws
    assert len(record["rows"]) == 4 * 2 * 2  # temperatures, domains
    for row in record["rows"]:
        assert row["low"] <= row["block_efficiency"] <= row["high"]
        assert row["block_efficiency"] == row["tokens"] / row["target_calls"]
        assert len(PROMPTS) <= row["tokens"] <= 8 * len(PROMPTS)
        assert row["speed"] == row["block_efficiency"] / row["step"]
        assert row["step_low"] <= row["step"] <= row["step_high"]
        assert row["speed_low"] <= row["speed"] <= row["speed_high"]
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_it_goes_on_where_it_was_cut(run, tmp_path):
    out = "--out", str(tmp_path / "out.json"), "--nodes", "2", "--repeats"
    first = run("--kind", "ngram", *out, "0")
    assert all(row["step"] is None for row in first["rows"])
    both = run("--kind", "ngram", "chain", *out, "0")
    assert both["rows"][: len(first["rows"])] == first["rows"]
    timed = run("--kind", "ngram", *out, "1", "--steps", "2")
    assert [r["step"] is None for r in timed["rows"]] == [
        row["kind"] == "chain" for row in both["rows"]
    ]
    for other in (("--seed", "1"), ("--dtype", "bfloat16"), ("--trees", str(TREES))):
        assert "another --out" in run("--kind", "ngram", *out, "0", *other)


def test_the_interval_of_a_median():
    low, middle, high = resampling.median(np.array([1.0, 5.0, 2.0, 4.0, 3.0]))
    assert (low, middle, high) == (1.0, 3.0, 5.0)
    assert resampling.median(np.ones(3)) == (1.0, 1.0, 1.0)


def test_the_interval_holds_the_mean():
    rng = np.random.default_rng(0)
    calls = rng.integers(10, 30, 40)
    tokens = calls + rng.integers(0, 30, 40)
    low, middle, high = resampling.ratio(tokens, calls)
    assert low < middle == tokens.sum() / calls.sum() < high
    assert resampling.ratio(2 * calls, calls) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize(
    "options, message",
    [
        (("--kind", "magic"), "Unknown kind 'magic'"),
        (("--kind", "retrieval"), "needs a datastore"),
        (("--nodes", "0"), "--nodes must be positive"),
        (("--limit", "1", "2", "3"), "Expected one --limit or 2"),
        (("--longest", "1"), "no prompt of up to 1"),
        (("--limit", "1", "-1"), "--limit must be positive, got -1"),
        (("--out", "no/folder/out.json"), "no folder no/folder for --out"),
        (("--plot", "no/folder/a.png"), "no folder no/folder for --plot"),
        (("--out", "."), "--out must be a file"),
    ],
)
def test_bad_input_is_one_line(run, options, message):
    assert message in run("--kind", "ngram", "--nodes", "4", *options)
