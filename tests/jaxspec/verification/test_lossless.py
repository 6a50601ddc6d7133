"""Whatever builds the tree, and whatever judges it, the text has the target's law."""

import functools

import numpy as np
import pytest

import documented
import enumeration
import lossless
import markov
import scripted
from jaxspec.drafting.beam import stochastic_beam
from jaxspec.drafting.best_first import best_first
from jaxspec.drafting.dyspec import dyspec
from jaxspec.drafting.fusion import Pair
from jaxspec.drafting.model import Trimmed, draft_model
from jaxspec.drafting.rasd import ORDERS, rasd
from jaxspec.drafting.static import static_tree
from jaxspec.trees import TokenTree
from jaxspec.verification.recursive_rejection import recursive_rejection
from jaxspec.verification.sample_and_match import sample_and_match
from jaxspec.verification.traversal import traversal

VERIFIERS = [sample_and_match(), recursive_rejection(), traversal()]
BUILDERS = {
    "chain (2), drawn": static_tree((1, 1), "iid"),
    "SpecInfer (2, 1)": static_tree((2, 1), "iid"),
    "RSD-C (2, 2)": static_tree((2, 2), "without_replacement"),
    "RSD-C (3, 1)": static_tree((3, 1), "without_replacement"),
    "Sequoia, 4 nodes": static_tree((-1, 0, 0, 1), "without_replacement"),
    "DySpec, 4 nodes": dyspec(4),
    "DySpec, 5 nodes, two per call": dyspec(5, 2),
    "DySpec, worth 0.3": dyspec(5, 2, threshold=0.3),
    "likeliest (2, 1)": static_tree((2, 1), "top_k"),
    "EAGLE-2, 4 nodes": best_first(4, 2, 1),
}


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
    logits = functools.partial(lossless.follow, lossless.tables()[1])
    beam = enumeration.Leaves(logits, width, length)
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


RETRIEVED = TokenTree(
    np.array([[2, 0, 1, 2]], np.int32), np.array([[-1, 0, 1, 0]], np.int32)
)


def fused(builder, order, monkeypatch, beam=None):
    """The law of a builder's tree with the retrieved one: 0 and 2, and 1 after 0."""
    model = markov.language_model(lossless.VOCAB)
    drafter = rasd(model, builder, scripted.fixed(3), keep=2, order=order)
    state = Pair(lossless.past(), ())
    params = Pair(lossless.tables()[1], RETRIEVED)
    return lossless.drafts_of(drafter, params, state, monkeypatch, beam)


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
    """At the root the beam has all tokens, or those that were not retrieved."""

    def logits(path):
        own = np.array(lossless.follow(lossless.tables()[1], path))
        if order == "retrieval first" and path == ():
            own[np.intersect1d([0, 2], np.argsort(-own)[:2])] = -np.inf
        return own

    beam = enumeration.Leaves(logits, 2, 2)
    drafts = fused(stochastic_beam(2, 2), order, monkeypatch, beam)
    check(f"RASD, RSD-S 2 x 2, {order}", *drafts, monkeypatch)


def test_the_law_of_a_tree_that_is_given(monkeypatch):
    """Whatever is looked up, recycled, or comes from the host."""
    drafts = lossless.drafts_of(scripted.fixed(3), RETRIEVED, (), monkeypatch)
    check("looked up", *drafts, monkeypatch)
