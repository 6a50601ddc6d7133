"""Whatever builds the tree, and whatever judges it, the text has the target's law."""

import pytest

import documented
import lossless
from jaxspec.drafting.static import static_tree
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
    "likeliest (2, 1)": static_tree((2, 1), "top_k"),
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
