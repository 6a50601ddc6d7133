"""The target's law is kept by drafts whose tables are padded to another size.

The target has three tokens, of which the last is the root. A draft of two reads another
token in its place; one of four has a token that the target lacks.
"""

import numpy as np
import pytest

import enumeration
import lossless
import markov
from jaxspec.drafting.beam import stochastic_beam
from jaxspec.drafting.dyspec import dyspec
from jaxspec.drafting.model import draft_model
from jaxspec.drafting.padded import with_vocab_size
from jaxspec.drafting.static import static_tree
from jaxspec.verification.recursive_rejection import recursive_rejection
from jaxspec.verification.sample_and_match import sample_and_match
from jaxspec.verification.traversal import traversal

VERIFIERS = sample_and_match(), recursive_rejection(), traversal()
BUILDERS = {
    "SpecInfer": static_tree((2, 1), "iid"),
    "RSD-C": static_tree((2, 1), "without_replacement"),
    "DySpec": dyspec(4),
    "RSD-S": stochastic_beam(2, 2),
}

sizes = pytest.mark.parametrize("size", [2, 4])


def beam(size):
    """What the draft says of the target's tokens after a path."""
    table = np.asarray(lossless.tables(size, seed=1)[1])

    def logits(path):
        path = [lossless.BEFORE, lossless.ROOT, *path][-2:]
        before, token = np.minimum(path, size - 1)
        own = table[before * size + token][: lossless.VOCAB]
        return np.concatenate([own, np.full(lossless.VOCAB - len(own), -np.inf)])

    return enumeration.Leaves(logits, 2, 2)


@sizes
@pytest.mark.parametrize("name", BUILDERS)
def test_the_law_is_the_targets(size, name, monkeypatch):
    model = with_vocab_size(markov.language_model(size), lossless.VOCAB)
    drafter, table = draft_model(model, BUILDERS[name]), lossless.tables(size, 1)[1]
    leaves = beam(size) if name == "RSD-S" else None
    drafts, names = lossless.drafts_of(
        drafter, table, lossless.past(), monkeypatch, leaves
    )
    for draft in map(lossless.thawed, drafts):
        drafted = draft.tree.tokens[draft.tree.parents >= 0]
        assert drafted.max() < min(size, lossless.VOCAB)
    for verifier in VERIFIERS:
        written = lossless.Written(verifier, drafts, monkeypatch, names)
        assert written.distance < 1e-12
