"""Whatever budget cuts a tree, the text has the target's law; wrong cuts have another.

Every builder's drafts are enumerated once and cut by every budget, with the shipped
scores and the shipped `limit`; the verifiers then judge what is left.
"""

import functools

import jax
import numpy as np
import pytest

import lossless
from builders import BUILDERS, fused, leaves
from jaxspec import budgets
from jaxspec.drafting.beam import stochastic_beam
from jaxspec.drafting.dyspec import dyspec
from jaxspec.drafting.static import static_tree
from jaxspec.drafting.survival import Curve
from jaxspec.verification.recursive_rejection import recursive_rejection
from jaxspec.verification.sample_and_match import sample_and_match
from jaxspec.verification.traversal import traversal

VERIFIERS = {
    "sample and match": sample_and_match(),
    "recursive rejection": recursive_rejection(),
    "traversal": traversal(),
}
CURVES = Curve((0.0, 1.0), (0.2, 0.9)), Curve((0.0, 0.5, 1.0), (0.05, 0.1, 0.3))
ALL = BUILDERS | {
    "Sequoia, 4 nodes": static_tree(
        (-1, 0, 0, 1), "without_replacement", acceptance=(0.5, 0.2)
    ),
    "DySpec, 5 nodes, measured": dyspec(5, 2, acceptance=CURVES),
    "RSD-S 2 x 2": stochastic_beam(2, 2),
    "RSD-S 3 x 1": stochastic_beam(3, 1),
}
FUSED = {
    "chain": static_tree((1, 1), "without_replacement"),
    "SpecInfer": static_tree((2,), "iid"),
    "RSD-C": static_tree((2,), "without_replacement"),
    "DySpec": dyspec(4),
    "RSD-S 2 x 2": stochastic_beam(2, 2),
}
SOME = {  # a builder, a budget and a verifier, in every run
    "chain (2), drawn": (1, "traversal"),
    "SpecInfer (2, 1)": (2, "recursive rejection"),
    "Sequoia, 4 nodes": (2, "traversal"),
    "DySpec, 4 nodes": (2, "traversal"),
    "DySpec, 5 nodes, measured": (3, "recursive rejection"),
    "RSD-S 2 x 2": (2, "recursive rejection"),
    "EAGLE-2, 4 nodes": (2, "sample and match"),
}


@functools.cache
def _limit():
    return jax.jit(budgets.limit)


def cut(budget):
    """A change of one draft: the shipped cut, and then padding that nobody tells apart."""

    def change(draft):
        logits = draft.draft_logits  # of float64, and nothing to a budget
        kept = draft.replace(draft_logits=np.zeros((1, 0, 0), np.float32))
        kept = _limit()(kept, np.array([budget], np.int32))
        return blank(jax.tree.map(np.array, kept).replace(draft_logits=logits))

    return change


def blank(draft):
    """Zeros wherever no node is, and in logits that no node was drawn from."""
    node = (draft.tree.parents >= 0) | (np.arange(draft.tree.num_nodes) == 0)[None]
    draft.tree.tokens[~node] = 0
    draft.kind[~node] = 0
    used = {int(draft.logits_row[0, p]) for p in draft.tree.parents[0] if p >= 0}
    for row in range(draft.draft_logits.shape[1]):
        if row not in used:
            draft.draft_logits[0, row] = 0.0
    return draft


def beam_of(name, order=None):
    """What an enumeration needs to know of a stochastic beam, None for other builders."""
    sizes = {"RSD-S 2 x 2": (2, 2), "RSD-S 3 x 1": (3, 1)}
    return leaves(*sizes[name], order) if name in sizes else None


def proposed(name, monkeypatch):
    """The law of a builder's drafts, and the names of its noise."""
    beam = beam_of(name)
    return lossless.drafts_of_builder(ALL[name], monkeypatch, beam=beam)


class Judge:
    """A verifier that judges drafts cut by any budget, compiled once."""

    def __init__(self, verifier, monkeypatch):
        self.program = lossless.judging(VERIFIERS[verifier], monkeypatch)

    def tokens(self, drafts, names, budget=None):
        """Asserts that the law is the target's; how many tokens come of the drafts."""
        drafts = drafts if budget is None else lossless.changed(drafts, cut(budget))
        of = lossless.tables()[0], lossless.settings(), names
        written = lossless.Written.by(self.program, drafts, *of)
        assert written.distance < 1e-12
        return written.tokens


def spread(drafts):
    """Numbers of drafts that occur."""
    return {int((lossless.thawed(key).tree.parents >= 0).sum()) for key in drafts}


@pytest.mark.parametrize("name", SOME)
def test_the_law_of_some_budgets(name, monkeypatch):
    drafts, names = proposed(name, monkeypatch)
    budget, verifier = SOME[name]
    left = lossless.changed(drafts, cut(budget))
    assert max(spread(left)) == budget < max(spread(drafts))
    Judge(verifier, monkeypatch).tokens(left, names)


@pytest.mark.thorough
@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("name", ALL)
def test_the_law_of_every_budget(name, verifier, monkeypatch):
    """More drafts are never worse, and all of them are no cut."""
    drafts, names = proposed(name, monkeypatch)
    judge = Judge(verifier, monkeypatch)
    tokens = [judge.tokens(drafts, names, k) for k in range(ALL[name].num_nodes)]
    assert tokens[0] == pytest.approx(1.0, abs=1e-12)
    assert tokens[-1] == pytest.approx(judge.tokens(drafts, names), abs=1e-12)
    # Traversal may keep less of a node's first child for the sake of a second.
    assert tokens == sorted(tokens) or verifier == "traversal"


@pytest.mark.thorough
@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("order", ["draft first", "retrieval first"])
@pytest.mark.parametrize("name", FUSED)
def test_the_law_of_every_budget_of_a_fused_tree(name, order, verifier, monkeypatch):
    beam = beam_of(name, order)
    drafts, names = fused(FUSED[name], order, monkeypatch, beam)
    judge = Judge(verifier, monkeypatch)
    for budget in range(1 + max(spread(drafts))):
        judge.tokens(drafts, names, budget)
