"""Prompts begin definitions of the library, by the seed, and nothing that is judged."""

import json

import pytest

from jaxspec.measure import prompts as evaluated
from jaxspec.train import corpus
from jaxspec.tune import prompts

CODE = '''\
import os


def first_{i}(argument, other):
    """Says what it is, of {i}."""
    total = argument + {i}
    total += other
    return total


class Second{i}:
    """A class of module {i}."""

    def method(self):
        return {i}


def short():
    return 0
'''


@pytest.fixture
def library(tmp_path):
    for i in range(60):
        (tmp_path / f"m{i}.py").write_text(CODE.format(i=i))
    (tmp_path / "broken.py").write_text("def broken(:\n    pass\n")
    (tmp_path / "encodings").mkdir()
    (tmp_path / "encodings" / "cp1.py").write_text(CODE.format(i="_cp1"))
    return tmp_path


def test_they_begin_definitions(library):
    found = prompts.read(1000, stdlib=library)
    modules = [m for m in corpus.read_modules(library) if not m.held_out]
    every = "".join(m.text for m in modules)
    assert all(prompt in every for prompt in found)
    assert all(prompt.startswith(("def first_", "class Second")) for prompt in found)
    assert not any("cp1" in prompt for prompt in found)
    numbered = sum(m.name.startswith("m") for m in modules)
    assert len(found) == len(set(found)) == 2 * numbered
    assert found[0].count("\n") == prompts.LEAST_LINES


def test_each_module_has_its_turn(library):
    found = prompts.read(20, stdlib=library)
    numbers = ["".join(filter(str.isdigit, prompt.split("\n")[0])) for prompt in found]
    assert len(set(numbers)) == 20


def test_modules_held_out_are_kept_apart(library):
    ours = prompts.read(1000, stdlib=library)
    others = prompts.read(1000, held_out=True, stdlib=library)
    assert others and not set(ours) & set(others)


def test_the_seed_chooses(library):
    def read(seed):
        return prompts.read(8, seed, stdlib=library)

    assert read(0) == read(0) != read(1)


def test_nothing_to_begin_with_is_said(tmp_path):
    (tmp_path / "m0.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match="no functions to begin with"):
        prompts.read(4, stdlib=tmp_path)


@pytest.mark.parametrize("inside", [True, False])
def test_what_is_evaluated_on_is_refused(library, tmp_path, inside):
    one = prompts.read(5, stdlib=library)[3].strip()
    other = one[5:-5] if inside else f"Please go on:\n{one}\n    x"
    path = tmp_path / "evaluation.jsonl"
    lines = [{"prompt": "def unlike(anything): pass  # else"}, {"question": other}]
    path.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ValueError, match="Prompt 2 of .*evaluation.jsonl"):
        prompts.read(5, stdlib=library, disjoint_from=[path])
    assert prompts.read(2, stdlib=library, disjoint_from=[path])


def test_our_own_prompts_are_always_looked_at(library):
    own = evaluated.read()[0]
    lines = own.splitlines()
    text = "\n".join(["def f(argument_of_no_use):", *(f"    {x!r}" for x in lines)])
    for i in range(60):
        (library / f"m{i}.py").write_text(f"{text}\n    return {i}\n")
    prompts.read(4, stdlib=library)  # quoted, they are other text
    with pytest.raises(ValueError, match="Prompt 1 of our own prompts"):
        prompts.check_disjoint([own[:60]], [own], "our own prompts")
