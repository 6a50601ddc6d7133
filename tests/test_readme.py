"""What the README says can be done."""

import pathlib
import re
import shlex

import pytest

from jaxspec.cli.__main__ import parser

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = sorted(
    set(re.findall(r"jaxspec (?:generate|bench|train|info)[^`\n|]*", README))
)


def test_the_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert example.count("\n") <= 20
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out.count("calls of the target") == 2


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
