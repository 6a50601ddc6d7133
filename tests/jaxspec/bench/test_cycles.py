"""The table of static counts: what is compiled for it, and what is made of it."""

import argparse
import json

import pytest

from jaxspec.aot import cases, compile_cases, compilers
from jaxspec.aot.compile_cases import Kernel, Result
from jaxspec.bench import cycles

BUNDLES = {"read": 400, "verify": 900, "convolve": 24, "attend": 640}


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command with a compiler that needs no wheel, and cannot do v6e."""

    class Compiler:
        def __init__(self, target):
            self.target = target

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def __call__(self, case):
            if self.target == "v6e":
                return Result(case, "no room")
            bundles = BUNDLES[case.function] + case.nodes + 100 * bool(case.ring)
            kernel = Kernel(case.op, 3 * bool(case.ring), 2, bundles)
            return Result(case, None, (kernel,))

    monkeypatch.setattr(compile_cases, "Compiler", Compiler)
    monkeypatch.setattr(compilers, "missing", lambda name: None)

    def run(*words):
        parser = argparse.ArgumentParser()
        cycles.add_arguments(parser)
        cycles.run(parser.parse_args(words))
        return capsys.readouterr()

    return run


def test_bundles_are_counted_per_head_and_per_token(run):
    words = "--chip v5e --model nemotron-h-8b mamba-2.8b qwen3.5-9b --nodes 8 64 --json"
    rows = json.loads(run(*words.split()).out)["rows"]
    found = {(row["op"], row["part"], row["nodes"]): row for row in rows}
    heads = 128 * cases.BATCH
    assert found["tree_ssd", "read", 8]["bundles"] == 2 * 408 / heads
    assert found["tree_ssd", "ring", 64]["bundles"] == 2 * 564 / heads
    assert found["tree_ssd", "fold", 64]["bundles"] == 2 * 1064 / heads
    assert found["tree_ssd", "fold", 64]["spills"] == 3
    assert found["tree_scan", "read", 64]["bundles"] == 2 * 464 / 64 / cases.BATCH
    assert found["tree_scan", "ring", 64]["bundles"] == 2 * 564 / 96 / cases.BATCH
    assert found["tree_delta", "ring", 8]["bundles"] == 2 * 508 / 32 / cases.BATCH
    assert found["tree_attention", "512 rows", 8]["unit"] == "head"
    assert found["tree_conv", "convolve", 8]["unit"] == "token"


def test_a_fold_every_fifth_step_is_amortised(run):
    words = "--chip v5e --model mamba2-2.7b --nodes 8 --json"
    rows = json.loads(run(*words.split()).out)["rows"]
    found = {row["part"]: row["bundles"] for row in rows}
    expected = found["ring"] + (found["fold"] - found["ring"]) / 5
    assert found["amortised"] == pytest.approx(expected)


def test_what_does_not_compile_is_said(run):
    words = "--chip v5e v6e --model mamba2-2.7b --nodes 8".split()
    printed = run(*words)
    assert "static, not measured" in " ".join(printed.out.split())
    assert "no room" in printed.err
    rows = json.loads(run(*words, "--json").out)["rows"]
    refused = [row for row in rows if row["chip"] == "v6e"]
    assert refused
    assert all(row["bundles"] is None for row in refused)


def test_a_missing_compiler_is_said_before_anything_is_done(run, monkeypatch):
    monkeypatch.setattr(compilers, "missing", lambda name: f"{name} needs libtpu")
    with pytest.raises(ValueError, match="v5e needs libtpu"):
        run("--chip", "v5e")
