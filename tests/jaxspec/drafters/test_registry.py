"""Drafters by name: their sizes, and what is said of names that are none."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

import folder
import jaxspec
import tiny
from jaxspec import pretrained
from jaxspec.drafters import shapes, sources
from jaxspec.drafters.kinds import KINDS
from jaxspec.drafters.registry import plan
from jaxspec.drafters.sources import Sources
from jaxspec.models import mtp

SOURCES = Sources(draft="stdlib-draft", datastore="store.safetensors")


@pytest.fixture(scope="module")
def target():
    return jaxspec.load("stdlib-8m")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nodes", [4, 8])
def test_every_kind_fits_its_budget(kind, nodes, target, monkeypatch):
    store = object()
    monkeypatch.setattr(sources.datastore, "load", lambda path, tokenizer: store)
    config = dataclasses.replace(tiny.CONFIGS["experts"], mtp="*E")
    head = mtp.mtp_head(config)  # the shipped models have none
    monkeypatch.setattr(pretrained, "mtp_head", lambda folder: head)
    monkeypatch.setattr(pretrained, "load_mtp", lambda target: (head, None))
    made = plan(f"{kind}:{nodes}", SOURCES)(target.folder)
    setup = made.beside(target)
    assert setup.drafter.max_path <= nodes
    assert setup.target.model.max_path == setup.drafter.max_path
    assert plan(f"{kind}:{nodes}", SOURCES)(target.folder).drafter == setup.drafter


@pytest.mark.parametrize(
    "nodes, levels", [(4, (1, 1, 1)), (8, (2, 1, 1)), (16, (3, 1, 1, 1, 1))]
)
def test_branchings_fill_a_budget(nodes, levels):
    assert shapes.branching(nodes) == levels


def test_a_setup_decodes_what_the_target_writes_alone():
    target = jaxspec.load(folder.make())
    setup = jaxspec.drafter("rsd-s:2x2", target, draft=jaxspec.load(folder.make("M")))
    tokens, lengths = jaxspec.pad_prompts([[1, 2, 3]])
    machinery = {"target": setup.target.model, "drafter": setup.drafter}
    state = jaxspec.init_state(
        setup.params, tokens, lengths, **machinery, max_new_tokens=6
    )
    state, info = setup.generate(setup.params, state, **machinery)
    params = jaxspec.Params(target.params)
    plain = jaxspec.init_state(
        params, tokens, lengths, target=target.model, max_new_tokens=6
    )
    plain = jaxspec.generate(params, plain, target=target.model)
    np.testing.assert_array_equal(state.tokens[:, :9], plain.tokens[:, :9])
    assert int(info.drafted.sum()) > 0


@pytest.mark.parametrize(
    "spec, error, message",
    [
        ("magic:8", ValueError, "Unknown drafter 'magic:8'; expected one of"),
        ("", ValueError, "Unknown drafter ''"),
        ("rsd-s:wide", ValueError, "'wide' is no shape of rsd-s.*or WIDTHxLENGTH"),
        ("ngram:0", ValueError, "'0' is no shape of ngram; expected a number of nodes"),
        ("chain:8", ValueError, "chain needs a draft model"),
        ("retrieval:8", ValueError, "retrieval needs a datastore"),
        (8, TypeError, "Expected KIND:SHAPE, as 'ngram:8', got 8"),
    ],
)
def test_a_name_that_is_none_is_said_before_anything_is_loaded(spec, error, message):
    with pytest.raises(error, match=message):
        jaxspec.drafter(spec, None)


def test_the_command_line_is_not_needed():
    found = "[name for name in sys.modules if name.startswith('jaxspec.cli')]"
    code = f"import sys, jaxspec; jaxspec.drafter; print({found})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n"
