"""What the README says can be done."""

import pathlib
import re
import shlex

import pytest

import folder
import jaxspec
import texts
from jaxspec.__main__ import parser

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = sorted(
    set(re.findall(r"jaxspec (?:generate|bench|tune|train|info)[^`\n|]*", README))
)


def examples():
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_example_runs(capsys):
    example, _, _, _ = examples()
    assert example.count("\n") <= 20
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out.count("calls of the target") == 2


def test_rows_come_and_go():
    _, example, _, _ = examples()
    assert example.count("\n") <= 20
    drafter, own = texts.make_drafter("ngram-tree")
    weights, state = texts.start(drafter, own, prompts=[[3, 1, 4]], max_new_tokens=9)
    _, another = texts.start(drafter, own, prompts=[[2, 7]], max_new_tokens=9)
    machinery = {"target": texts.target(), "drafter": drafter}
    names = {"js": jaxspec, "weights": weights, "machinery": machinery}
    names |= {"state": state, "another": another, "max_length": texts.MAX_LENGTH}
    exec(compile(example, "README.md", "exec"), names)
    twins, _ = jaxspec.speculative_generate(weights, names["twins"], **machinery)
    alone = jaxspec.generate(weights, state, target=texts.target())
    for row in range(2):
        assert twins.tokens[row].tolist() == alone.tokens[0].tolist()


def test_the_engine_serves(capsys):
    _, _, example, _ = examples()
    assert example.count("\n") <= 20
    model, params, tokenizer = jaxspec.load("stdlib-draft")
    names = {"js": jaxspec, "model": model, "tokenizer": tokenizer}
    names["weights"] = jaxspec.Params(params)
    exec(compile(example, "README.md", "exec"), names)
    assert "[24, 128, 24, 24, 24, 24] length" in capsys.readouterr().out


def test_the_recipe_for_a_pod_runs_on_eight_devices(tmp_path):
    _, _, _, recipe = examples()
    for pod, here in (
        ("jax.distributed.initialize()", "pass"),
        ("data=32, tensor=8", "data=2, tensor=4"),
        ("max_new_tokens=512", "max_new_tokens=6"),
        ("max_steps=64", "max_steps=2"),
    ):
        assert pod in recipe
        recipe = recipe.replace(pod, here)
    names = {"folder": folder.make(), "own": [[1, 2], [3]], "shared_folder": tmp_path}
    exec(compile(recipe, "README.md", "exec"), names)
    assert names["state"].lengths.tolist() == [8, 7]
    assert any(tmp_path.iterdir())


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_are_understood(command):
    arguments = shlex.split(command, comments=True)[1:]
    assert parser().parse_args(arguments).command == arguments[0]


def test_its_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"make ([a-z-]+)", README))
    assert {"demo", "test"} <= targets
    assert all(f"\n{target}:" in makefile for target in targets)


def test_its_links_lead_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)", README)
    assert links and all((ROOT / link).exists() for link in links)
