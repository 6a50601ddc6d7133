"""`jaxspec bench serving` and `bench load`, with a small model."""

import json

import pytest

import folder
from jaxspec.__main__ import main
from jaxspec.bench import load

SIZES = ["--rows", "2", "--max-length", "64", "--drafter", "ngram:4"]


@pytest.fixture
def bench(capsys):
    """Runs a benchmark to its JSON, or to the line of its error."""

    def run(*arguments, status=0):
        assert main(["bench", *arguments, "--model", str(folder.make())]) == status
        captured = capsys.readouterr()
        return captured.err if status else captured.out

    return run


def test_serving_measures_an_engine(bench):
    options = ["--chunk-size", "8", "--repeats", "1", "--max-tokens", "4"]
    options += ["--texts", "4", "--fast"]
    found = json.loads(bench("serving", *SIZES, *options, "--json"))
    names = [row["function"] for row in found["functions"]]
    assert {"AR", "admit", "take", "put"} < {*names}
    assert all(row["milliseconds"] > 0.0 for row in found["functions"])
    assert found["speed"]["tokens_per_second"] > 0.0
    assert 0.0 < found["speed"]["host_share"] < 1.0
    assert found["texts"] == {"texts": 4, "equal": 4, "near_tie": 0, "other": 0}
    recurrent = next(row for row in found["bytes"] if row["model"] == "mamba2-130m")
    assert recurrent["512"] == recurrent["32768"] > 18 * 2**20


def test_load_serves_by_the_minute(bench, tmp_path):
    plot = tmp_path / "load.png"
    options = ["--minutes", "0.02", "--rate", "20", "--max-tokens", "8"]
    found = json.loads(bench("load", *SIZES, *options, "--plot", str(plot), "--json"))
    (minute,) = found["minutes"]
    assert minute["requests"] > 5 and 0.0 < minute["first"][0] <= minute["first"][1]
    assert minute["memory"] > 2**20 and found["compilations"] == 0
    assert plot.stat().st_size > 1000


def test_memory_that_grows_is_an_error():
    def record(*sizes, compilations=0):
        minutes = [{"memory": size} for size in sizes]
        return {"minutes": minutes, "compilations": compilations}

    load.check(record(100, 102, 103, 104))
    load.check(record(100))
    with pytest.raises(ValueError, match="Memory grew"):
        load.check(record(100, 102, 103, 120))
    with pytest.raises(ValueError, match="1 programs"):
        load.check(record(100, 100, compilations=1))


@pytest.mark.parametrize("command", ["serving", "load"])
def test_what_drafts_on_the_host_is_refused(bench, command):
    error = bench(command, "--drafter", "suffix:8", status=2)
    assert "drafts on the host" in error.splitlines()[-1]


def test_a_rate_of_none_is_refused(bench):
    assert "--rate" in bench("load", "--rate", "0", status=2)


def test_policies_are_compared_under_loads(bench, tmp_path):
    path, model = tmp_path / "costs.json", str(folder.make())
    options = ["--rows", "2", "--max-length", "128", "--repeats", "1"]
    tune = ["tune", "costs", "--model", model, "--drafter", "ngram:3", *options]
    assert main([*tune, "--out", str(path)]) == 0
    few = ["--count", "3", "--requests", "9", "--seeds", "1", "--max-tokens", "12"]
    out = bench("goodput", "--costs", str(path), *few, "--json")
    found = json.loads(out.splitlines()[-1])
    assert {*found["loads"]} == {"low", "medium", "saturated", "bursty"}
    for rows in found["loads"].values():
        better = {row["policy"]: row["over_none"] for row in rows}
        assert {*better} == {"0", "1", "2", "paper", "ours"} and better["0"] == 1.0
        assert all(row["mean"] > 0.0 for row in rows)
    error = bench("goodput", "--costs", str(path), "--prompts", "none", status=2)
    assert "none" in error.splitlines()[-1]


def test_costs_of_another_model_are_refused(bench, tmp_path):
    path = tmp_path / "costs.json"
    path.write_text("{}")
    error = bench("goodput", "--costs", str(path), status=2)
    assert "has format None" in error.splitlines()[-1]
