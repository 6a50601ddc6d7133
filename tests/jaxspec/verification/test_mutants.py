"""What is known to be wrong has another law, and the same enumeration sees it.

Each mutant changes one thing: what a builder does after it has drawn, what a draft says of
itself, or how a verifier decides.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import documented
import enumeration
import lossless
from jaxspec import sampling
from jaxspec.core import Draft, Verdict, Verifier
from jaxspec.drafting.beam import stochastic_beam
from jaxspec.drafting.static import static_tree
from jaxspec.trees import TokenTree
from jaxspec.verification.recursive_rejection import recursive_rejection
from jaxspec.verification.traversal import traversal

RRS, TRAVERSAL = recursive_rejection(), traversal()
DISTINCT, IID, ONE = (
    static_tree((2,), "without_replacement"),
    static_tree((2,), "iid"),
    static_tree((1,), "iid"),
)
RETRIEVED = 0  # a token that some datastore says comes next


def sorted_by_law(draft):
    """Siblings in the order of their probability, as STree stores them."""
    tokens = draft.tree.tokens[0, 1:]
    order = np.argsort(-draft.draft_logits[0, 0, tokens], kind="stable")
    draft.tree.tokens[0, 1:] = tokens[order]
    return draft


def called_independent(draft):
    """Draws without replacement, whose residual uses the law that zeroed nothing."""
    draft.kind[:] = Draft.IID
    return draft


def best_kept(draft):
    """The likelier half of what was drawn is kept."""
    logits = draft.draft_logits[0, 0, draft.tree.tokens[0, 1:]]
    draft.tree.parents[0, 1 + int(np.argmin(logits))] = -1
    return draft


def duplicates_dropped(draft):
    """Of two equal draws with replacement one is kept."""
    if draft.tree.tokens[0, 1] == draft.tree.tokens[0, 2]:
        draft.tree.parents[0, 2] = -1
    return draft


def retrieved_first(draft):
    """A retrieved child first; a draw of the whole law dropped if it is the same token.

    What is left was drawn from the law without that token, and is tested against all of it.
    """
    tree, same = draft.tree, draft.tree.tokens[0, 1] == RETRIEVED
    tokens = np.array([[tree.tokens[0, 0], RETRIEVED, tree.tokens[0, 1]]], np.int32)
    parents = np.array([[-1, 0, -1 if same else 0]], np.int32)
    kind = np.array([[0, Draft.DETERMINISTIC, Draft.IID]], np.int32)
    row = np.zeros((1, 3), np.int32)
    return draft.replace(tree=TokenTree(tokens, parents), kind=kind, logits_row=row)


def retrieved_as_drawn(draft):
    """A retrieved child that is tested as if the draft had drawn it."""
    draft.tree.tokens[0, 1] = RETRIEVED
    return draft


def layer_cut(draft):
    """Of the second level only the likelier node is kept."""
    tree = draft.tree
    logits = draft.draft_logits[0, draft.logits_row[0, tree.parents[0, 3:]]]
    laws = np.stack([enumeration.softmax(row) for row in logits])
    found = np.take_along_axis(laws, tree.tokens[0, 3:, None], axis=1)
    tree.parents[0, 3 + int(np.argmin(found))] = -1
    return draft


def subtrees_sorted(draft):
    """The root's children, with all below, in the order of their probability."""
    tree, row = draft.tree, draft.logits_row
    first, second = draft.draft_logits[0, 0, tree.tokens[0, 1:3]]
    if first < second:
        tree.tokens[0, 1:3] = tree.tokens[0, 2:0:-1].copy()
        row[0, 1:3] = row[0, 2:0:-1].copy()
        below = tree.parents[0, 3:]
        tree.parents[0, 3:] = np.where(below > 0, 3 - below, below)
    return draft


def other_law(draft):
    """Drawn from one law, tested against another (a reshaped draft and its plain law)."""
    plain = enumeration.softmax(lossless.follow(lossless.tables()[1], ()))
    reshaped = plain * np.where(plain == plain.max(), 0.25, 1.0)
    draft.draft_logits[0, 0] = np.log(reshaped)
    return draft


def one_node_for_both(draft):
    """Two equal draws share the subtree of the first."""
    tokens, parents = draft.tree.tokens[0], draft.tree.parents[0]
    if tokens[1] == tokens[2]:
        parents[parents == 2] = 1
        parents[2] = -1
    return draft


CHANGES = {  # a builder, what is done to its drafts, a verifier
    "siblings sorted by probability (STree)": (DISTINCT, sorted_by_law, RRS),
    "the same, traversal": (DISTINCT, sorted_by_law, TRAVERSAL),
    "drawn without, tested with replacement": (DISTINCT, called_independent, RRS),
    "draws dropped for a low probability": (DISTINCT, best_kept, RRS),
    "equal draws dropped": (IID, duplicates_dropped, RRS),
    "retrieved first, equal draws dropped": (ONE, retrieved_first, RRS),
    "retrieved, tested as drawn": (ONE, retrieved_as_drawn, RRS),
    "tested against a law not drawn from": (ONE, other_law, RRS),
    "a level cut to the likelier draw": (
        static_tree((2, 1), "without_replacement"),
        layer_cut,
        RRS,
    ),
    "equal draws in one node, traversal": (
        static_tree((2, 1), "iid"),
        one_node_for_both,
        TRAVERSAL,
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_drafts_have_another_law(name, monkeypatch):
    builder, change, verifier = CHANGES[name]
    drafts, _ = lossless.drafts_of_builder(builder, monkeypatch)
    assert lossless.Written(verifier, drafts, monkeypatch).distance < 1e-12
    wrong = lossless.Written(verifier, lossless.changed(drafts, change), monkeypatch)
    assert wrong.distance > 1e-3
    documented.row("mutants", name, f"{wrong.distance:.3f}")


def test_a_sorted_beam_has_another_law(monkeypatch):
    logits = functools.partial(lossless.follow, lossless.tables()[1])
    beam = enumeration.Leaves(logits, 2, 2)
    builder = stochastic_beam(2, 2)
    drafts, _ = lossless.drafts_of_builder(builder, monkeypatch, beam=beam)
    wrong = lossless.changed(drafts, subtrees_sorted)
    found = lossless.Written(RRS, wrong, monkeypatch).distance
    assert found > 1e-3
    documented.row("mutants", "siblings of RSD-S sorted by probability", f"{found:.3f}")


def accepts_what_is_likeliest(keys, draft, logits, settings):
    """Follows the argmax, and draws from the whole law where the tree ends."""
    best = jnp.argmax(logits[0, 0]).astype(jnp.int32)
    hit = (draft.tree.tokens[0, 1] == best).astype(jnp.int32)
    key = jax.random.fold_in(keys[0], 9)
    last = sampling.draw(key, logits[0, hit])[None]
    path = jnp.where(hit > 0, jnp.array([0, 1]), jnp.array([0, -1])).astype(jnp.int32)
    return Verdict(path[None], hit[None], last, jnp.zeros((1, 2)))


def keeps_all_it_wanted(wanted, proposed):
    return wanted


def keeps_the_token(wanted, proposed):
    return jnp.abs(wanted - proposed) / jnp.sum(jnp.abs(wanted - proposed))


DECISIONS = {  # what is replaced, and by what
    "no residual": (sampling, "residual", keeps_all_it_wanted),
    "residual of absolute differences": (sampling, "residual", keeps_the_token),
}


@pytest.mark.parametrize("name", DECISIONS)
def test_wrong_decisions_have_another_law(name, monkeypatch):
    where, what, wrong = DECISIONS[name]
    drafts, _ = lossless.drafts_of_builder(DISTINCT, monkeypatch)
    monkeypatch.setattr(where, what, wrong)
    found = lossless.Written(RRS, drafts, monkeypatch)
    assert found.distance > 1e-3
    documented.row("mutants", name, f"{found.distance:.3f}")


def test_accepting_the_likeliest_has_another_law(monkeypatch):
    drafts, _ = lossless.drafts_of_builder(ONE, monkeypatch)
    wrong = Verifier(accepts_what_is_likeliest)
    found = lossless.Written(wrong, drafts, monkeypatch)
    assert found.distance > 1e-3
    documented.row("mutants", "greedy acceptance of a draft", f"{found.distance:.3f}")
