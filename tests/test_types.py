"""The contracts are typed: a checker accepts what keeps them, and reports what does not."""

import json
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PREAMBLE = """
from typing import Any
import jax
import jaxspec as js
from jax import Array

def init(params: Any, batch_size: int, max_length: int) -> Array: ...
def absorb(
    params: Any, state: Array, tokens: Array, hidden: Array, lengths: Array
) -> Array: ...
def propose(params: Any, state: Array, context: js.Context) -> tuple[Array, js.Draft]: ...
def observe(params: Any, state: Array, outcome: js.Outcome) -> Array: ...
def verify(
    keys: Array, draft: js.Draft, logits: Array, how: js.sampling.Sampling
) -> js.Verdict: ...
def build(reader: js.Reader, tape: Any, context: js.Context) -> js.Built: ...

def make(key: Array) -> Any: ...
def init_carry(
    params: Any, batch_size: int, max_length: int, speculative: bool = True
) -> Any: ...
def step(params: Any, carry: Any, token: Array) -> tuple[Any, Array]: ...
def scan(
    params: Any, carry: Any, tokens: Array, lengths: Array
) -> tuple[Any, Array]: ...
def pair_scan(
    params: Any, carry: Any, tokens: Array, before: Array, lengths: Array
) -> tuple[Any, Array]: ...
def prepare(params: Any, carry: Any) -> Any: ...
def init_tape(params: Any, rows: int, slots: int) -> Any: ...
def extend(
    params: Any, carry: Any, tape: Any, tree: js.TokenTree, first: int, last: int
) -> tuple[Any, Array]: ...
def pair_extend(
    params: Any, carry: Any, tape: Any, tree: js.TokenTree, before: Array,
    first: int, last: int
) -> tuple[Any, Array]: ...
def scan_tree(
    params: Any, carry: Any, tree: js.TokenTree
) -> tuple[Any, Any, Array]: ...
def keep(tape: Any, slots: Array) -> Any: ...
def commit(carry: Any, tape: Any, path: Array) -> Any: ...
def logits(params: Any, hidden: Array) -> Array: ...
"""
MADE = {
    "drafter": "js.Drafter(init, absorb, propose, observe, 4, None)",
    "verifier": "js.Verifier(verify)",
    "builder": "js.Builder(build, 4, 3, 4, 1)",
    "model": "js.LanguageModel(make, init_carry, step, scan, prepare, init_tape,"
    " extend, scan_tree, keep, commit, logits, 3, 4)",
    "head": "js.DraftHead(make, init, pair_scan, init_tape, pair_extend, keep, logits,"
    " 3, 4)",
}
WRONG = {  # what is defined otherwise, and the error that is due
    "a drafter's arguments in another order": (
        "def propose(params: Any, context: js.Context, state: Array)"
        " -> tuple[Array, js.Draft]: ...",
        MADE["drafter"],
        "Propose",
    ),
    "a drafter that returns the draft first": (
        "def propose(params: Any, state: Array, context: js.Context)"
        " -> tuple[js.Draft, Array]: ...",
        MADE["drafter"],
        "Propose",
    ),
    "a drafter that returns the state alone": (
        "def propose(params: Any, state: Array, context: js.Context) -> Array: ...",
        MADE["drafter"],
        "Propose",
    ),
    "a drafter that asks for more": (
        "def init(params: Any, batch_size: int, max_length: int, more: int)"
        " -> Array: ...",
        MADE["drafter"],
        "Init",
    ),
    "a drafter's functions in another order": (
        "",
        "js.Drafter(init, absorb, observe, propose, 4, None)",
        "Propose",
    ),
    "a verifier that is shown logits first": (
        "def verify(keys: Array, logits: Array, draft: js.Draft,"
        " how: js.sampling.Sampling) -> js.Verdict: ...",
        MADE["verifier"],
        "Verify",
    ),
    "a builder that returns the draft": (
        "def build(reader: js.Reader, tape: Any, context: js.Context) -> js.Draft: ...",
        MADE["builder"],
        "Build",
    ),
    "a model without `speculative`": (
        "def init_carry(params: Any, batch_size: int, max_length: int) -> Any: ...",
        MADE["model"],
        "InitCarry",
    ),
    "a model whose step returns the hidden first": (
        "def step(params: Any, carry: list[int], token: Array)"
        " -> tuple[Array, list[int]]: ...",
        MADE["model"],
        "Step",
    ),
    "a model whose tree comes before its tape": (
        "def extend(params: Any, carry: Any, tree: js.TokenTree, tape: dict[str, Array],"
        " first: int, last: int) -> tuple[Any, Array]: ...",
        MADE["model"],
        "ExtendTree",
    ),
    "a head that reads as a model does": (
        "",
        MADE["head"].replace("pair_scan", "scan"),
        "Scan",
    ),
}


def checked(*arguments):
    """The errors that the checker reports, each in a line."""
    command = [sys.executable, "-m", "pyrefly", "check", *map(str, arguments)]
    command += ["--python-interpreter-path", sys.executable, "--output-format", "json"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode in (0, 1), run.stderr
    found = json.loads(run.stdout)["errors"]
    assert bool(run.returncode) == bool(found), run.stderr
    return [f"{e['path']}:{e['line']}: {e['description']}" for e in found]


def snippet(path, more):
    path.write_text(f"{PREAMBLE}\n{more}\n")
    return checked("--config", ROOT / "pyproject.toml", path)


def test_the_contracts_and_what_uses_them_are_well_typed():
    assert checked() == []


@pytest.mark.parametrize("name", MADE)
def test_what_keeps_a_contract_is_accepted(name, tmp_path):
    assert snippet(tmp_path / "snippet.py", f"made = {MADE[name]}") == []


@pytest.mark.parametrize("name", WRONG)
def test_what_breaks_a_contract_is_reported(name, tmp_path):
    definition, made, protocol = WRONG[name]
    found = snippet(tmp_path / "snippet.py", f"{definition}\nmade = {made}")
    assert any(re.search(rf"\b{protocol}\b", error) for error in found), found


def test_no_error_is_silenced():
    for name in PYPROJECT["tool"]["pyrefly"]["project-includes"]:
        path = ROOT / name
        assert path.exists(), name
        for file in path.rglob("*.py") if path.is_dir() else [path]:
            assert not re.search(r"#\s*(type|pyrefly|pyright):", file.read_text()), file


@pytest.mark.parametrize("package", ["jaxspec", "pallas_kernels", "checkpoints_conv"])
def test_packages_say_that_they_are_typed(package):
    assert (ROOT / package / "py.typed").exists()
    assert "py.typed" in PYPROJECT["tool"]["setuptools"]["package-data"][package]
