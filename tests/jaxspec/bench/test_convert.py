"""`jaxspec bench convert` on a model that takes no time."""

import json

import pytest

import folder
import jaxspec
from checkpoints_conv import conversion
from jaxspec.__main__ import main
from jaxspec.bench import convert
from jaxspec.measure import published


@pytest.fixture
def small(monkeypatch):
    config = folder.config("MM")
    monkeypatch.setitem(published.MODELS, "mamba2-2.7b", config)
    return config


def test_it_measures_both_ways_and_leaves_nothing(capsys, small, tmp_path):
    assert main(["bench", "convert", "--folder", str(tmp_path), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    expected = 2 * jaxspec.models.forms.count(small) / 2**30
    assert record["gib"] == pytest.approx(expected)
    for name in ("convert", "export"):
        assert record[name]["seconds"] > 0 and 0.05 < record[name]["peak_gib"] < 4
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_is_a_published_checkpoint(small, tmp_path):
    convert.write(small, tmp_path / "source")
    todo = conversion.plan(tmp_path / "source")
    assert (todo.config.layers, todo.config.dtype) == ("MM", "bfloat16")
