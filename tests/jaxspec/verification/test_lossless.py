"""Whatever builds the tree, and whatever judges it, the text has the target's law."""

import numpy as np
import pytest

import documented
import lossless
import markov
import scripted
from builders import BUILDERS, RETRIEVED, fused, leaves
from jaxspec.drafting.beam import stochastic_beam
from jaxspec.drafting.dyspec import dyspec
from jaxspec.drafting.model import Trimmed, draft_model
from jaxspec.drafting.rasd import ORDERS
from jaxspec.drafting.static import static_tree
from jaxspec.verification.recursive_rejection import recursive_rejection
from jaxspec.verification.sample_and_match import sample_and_match
from jaxspec.verification.traversal import traversal

VERIFIERS = [sample_and_match(), recursive_rejection(), traversal()]


def check(name, drafts, names, monkeypatch):
    """All three verifiers keep the law; traversal emits as much as any that uses laws."""
    written = [
        lossless.Written(verifier, drafts, monkeypatch, names) for verifier in VERIFIERS
    ]
    assert max(w.distance for w in written) < 1e-12
    assert written[2].tokens >= written[1].tokens - 1e-12
    documented.row("lossless", name, *(f"{w.tokens:.3f}" for w in written))


@pytest.mark.parametrize("name", BUILDERS)
def test_the_law_is_the_targets(name, monkeypatch):
    check(name, *lossless.drafts_of_builder(BUILDERS[name], monkeypatch), monkeypatch)


@pytest.mark.parametrize("width, length", [(2, 2), (3, 1)])
def test_the_law_of_a_stochastic_beam(width, length, monkeypatch):
    builder = stochastic_beam(width, length)
    beam = leaves(width, length)
    drafts = lossless.drafts_of_builder(builder, monkeypatch, beam=beam)
    check(f"RSD-S {width} x {length}", *drafts, monkeypatch)


def test_the_law_of_a_trimmed_head(monkeypatch):
    """The draft has two of the three tokens."""
    keep = np.array([0, 2], np.int32)
    table = Trimmed(lossless.tables()[1][:, keep], keep)
    builder = static_tree((2, 1), "without_replacement")
    drafter = draft_model(markov.language_model(lossless.VOCAB), builder)
    drafts = lossless.drafts_of(drafter, table, lossless.past(), monkeypatch)
    check("RSD-C (2, 1), two of three tokens", *drafts, monkeypatch)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("builder", ["chain", "SpecInfer", "RSD-C", "DySpec"])
def test_the_law_of_a_fused_tree(builder, order, monkeypatch):
    build = {
        "chain": static_tree((1, 1), "without_replacement"),
        "SpecInfer": static_tree((2,), "iid"),
        "RSD-C": static_tree((2,), "without_replacement"),
        "DySpec": dyspec(4),
    }[builder]
    drafts = fused(build, order, monkeypatch)
    check(f"RASD, {builder}, {order}", *drafts, monkeypatch)


@pytest.mark.parametrize("order", ORDERS)
def test_the_law_of_a_fused_beam(order, monkeypatch):
    beam = leaves(2, 2, order)
    drafts = fused(stochastic_beam(2, 2), order, monkeypatch, beam)
    check(f"RASD, RSD-S 2 x 2, {order}", *drafts, monkeypatch)


def test_the_law_of_a_tree_that_is_given(monkeypatch):
    """Whatever is looked up, recycled, or comes from the host."""
    drafts = lossless.drafts_of(scripted.fixed(3), RETRIEVED, (), monkeypatch)
    check("looked up", *drafts, monkeypatch)
