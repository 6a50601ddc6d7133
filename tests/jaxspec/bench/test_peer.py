"""Another library's generation, side by side with ours."""

import json

import pytest

from jaxspec.__main__ import main

pytest.importorskip("transformers", reason="the peer is not installed (extra `hf`)")

import published  # noqa: E402


def arguments(**more):
    options = {"--model": str(published.converted("mamba2")), "--max-tokens": "6"}
    options |= {"--limit": "2", "--repeats": "1", "--drafter": "ngram:4"} | more
    flat = [word for pair in options.items() for word in pair]
    return ["bench", "decode", *flat, "--peer", "transformers"]


def test_it_writes_the_same_text(capsys):
    assert main([*arguments(**{"--temperature": "0"}), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["peer"]["name"] == "transformers"
    (row,) = record["rows"]
    assert row["peer"]["identical"] == row["peer"]["texts"] == 2
    assert row["peer"]["autoregressive_over_peer"] > 0.0


def test_it_takes_one_prompt_at_a_time(capsys):
    assert main(arguments(**{"--batch": "2"})) == 2
    assert "one prompt at a time" in capsys.readouterr().err
