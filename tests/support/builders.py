"""Builders small enough to be enumerated, and the laws of their drafts."""

import numpy as np

import enumeration
import lossless
import markov
import scripted
from jaxspec.drafting.best_first import best_first
from jaxspec.drafting.dyspec import dyspec
from jaxspec.drafting.fusion import Pair
from jaxspec.drafting.rasd import rasd
from jaxspec.drafting.static import static_tree
from jaxspec.trees import TokenTree

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
RETRIEVED = TokenTree(
    np.array([[2, 0, 1, 2]], np.int32), np.array([[-1, 0, 1, 0]], np.int32)
)


def leaves(width, length, order=None):
    """What a stochastic beam draws, alone or fused in some order.

    At the root it has all tokens, or those that were not retrieved.
    """

    def logits(path):
        own = np.array(lossless.follow(lossless.tables()[1], path))
        if order == "retrieval first" and path == ():
            own[np.intersect1d([0, 2], np.argsort(-own)[:2])] = -np.inf
        return own

    return enumeration.Leaves(logits, width, length)


def fused(builder, order, monkeypatch, beam=None):
    """The law of a builder's tree with the retrieved one: 0 and 2, and 1 after 0."""
    model = markov.language_model(lossless.VOCAB)
    drafter = rasd(model, builder, scripted.fixed(3), keep=2, order=order)
    state = Pair(lossless.past(), ())
    params = Pair(lossless.tables()[1], RETRIEVED)
    return lossless.drafts_of(drafter, params, state, monkeypatch, beam)
