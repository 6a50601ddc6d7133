"""Cuts that a budget must not make have another law, and the same enumeration sees it.

A node may go for anything but its own token and what was drawn below it. Under sample and
match the target draws without a look at the drafts, and any cut will do.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import documented
import enumeration
import lossless
from builders import fused, leaves
from jaxspec import budgets, sampling
from jaxspec.core import Verdict, Verifier
from jaxspec.drafting import beam, rasd
from jaxspec.drafting.static import static_tree
from jaxspec.verification import proposals
from jaxspec.verification.recursive_rejection import recursive_rejection
from jaxspec.verification.sample_and_match import sample_and_match
from jaxspec.verification.traversal import traversal

MATCH = sample_and_match()
LAWS = [recursive_rejection(), traversal()]
CHAIN = static_tree((1, 1), "iid")
PAIRS = static_tree((2, 2), "without_replacement")
LONG = static_tree((2, 1), "without_replacement")
SPEED = 1.0, 0.5, 0.45  # of steps with 0, 1 and 2 drafts


def tokens_of(draft):
    return draft.tree.tokens[0].tolist()


def siblings_of(draft, node):
    parents = draft.tree.parents[0]
    return np.flatnonzero((parents == parents[node]) & (parents >= 0)).tolist()


def path_of(draft, node):
    """Tokens from below the root down to a node."""
    path = []
    while node > 0:
        path.append(tokens_of(draft)[node])
        node = int(draft.tree.parents[0, node])
    return path[::-1]


def chance(table, draft, node):
    """The probability of a node's token after its parent's path."""
    *above, token = path_of(draft, node)
    return enumeration.softmax(lossless.follow(table, above))[token]


def keeping(rule):
    """A cut by a rule of one node; what hangs from a node that goes, goes."""

    def change(draft):
        whole = jax.tree.map(np.array, draft)
        for node in range(1, draft.tree.num_nodes):
            above = draft.tree.parents[0, node]
            gone = above > 0 and draft.tree.parents[0, above] < 0
            if gone or (above >= 0 and not rule(whole, node)):
                draft.tree.parents[0, node] = -1
        return draft

    return change


def by_score(budget, score):
    """The shipped cut, by other scores."""

    def change(draft):
        scores = np.array([score(draft, n) for n in range(draft.tree.num_nodes)])
        order = np.asarray(budgets.rank(draft.tree, scores[None].astype(np.float32)))
        return keeping(lambda _, node: order[0, node] < budget)(draft)

    return change


def drawn_chance(draft, node):
    """The draft's probability of what was drawn, down the path."""
    table = lossless.tables()[1]
    below, product = node, 1.0
    while below > 0:
        product *= chance(table, draft, below)
        below = int(draft.tree.parents[0, below])
    return product


def by_the_targets_logits(draft, node):
    """As many drafts as the target is likely to accept, as it says of these tokens."""
    target, own = lossless.tables()
    accepted = chance(target, draft, 1) / chance(own, draft, 1)
    return accepted > 0.9


def own_token(draft, node):
    return node != 1 or tokens_of(draft)[node] == 0


def childs_token(draft, node):
    return node != 1 or tokens_of(draft)[2] == 0


def siblings_token(draft, node):
    return tokens_of(draft)[node] == 0


def parents_token(draft, node):
    return node == 1 or tokens_of(draft)[1] == 0


def elders_token(draft, node):
    elder = siblings_of(draft, node)[0]
    return node == elder or tokens_of(draft)[elder] == 0


WRONG = {  # a builder, a cut
    "a node kept by its own token": (CHAIN, keeping(own_token)),
    "a node kept by its child's token": (CHAIN, keeping(childs_token)),
    "of two siblings the one of a given token kept": (PAIRS, keeping(siblings_token)),
    "nodes kept by the probability of what was drawn": (
        LONG,
        by_score(2, drawn_chance),
    ),
    "drafts as many as this round's target accepts": (
        CHAIN,
        keeping(by_the_targets_logits),
    ),
}
RIGHT = {
    "a node kept by its depth": (CHAIN, keeping(lambda draft, node: node == 1)),
    "a node kept by its parent's token": (CHAIN, keeping(parents_token)),
    "a second sibling kept by the first's token": (PAIRS, keeping(elders_token)),
}


def written(drafts, monkeypatch, **table):
    """Distances under both verifiers that use laws; none under sample and match."""
    judge = functools.partial(lossless.Written, monkeypatch=monkeypatch, **table)
    assert judge(MATCH, drafts).distance < 1e-12
    return [judge(verifier, drafts).distance for verifier in LAWS]


@pytest.mark.parametrize("name", WRONG)
def test_wrong_cuts_have_another_law(name, monkeypatch):
    builder, change = WRONG[name]
    drafts, _ = lossless.drafts_of_builder(builder, monkeypatch)
    found = written(lossless.changed(drafts, change), monkeypatch)
    assert min(found) > 1e-3
    documented.row("mutants", name, f"{found[0]:.3f}")


@pytest.mark.parametrize("name", RIGHT)
def test_right_cuts_have_the_targets_law(name, monkeypatch):
    builder, change = RIGHT[name]
    drafts, _ = lossless.drafts_of_builder(builder, monkeypatch)
    assert max(written(lossless.changed(drafts, change), monkeypatch)) < 1e-12


def best_speed_seen_afterwards(draft):
    """The number of drafts of most tokens per time, given what the first of them is."""
    first, second = 0.8, 0.9 * (tokens_of(draft)[1] == 0)
    tokens = 1.0, 1.0 + first, 1.0 + first + first * second
    count = int(np.argmax(np.multiply(tokens, SPEED)))
    return keeping(lambda _, node: node <= count)(draft)


def test_a_budget_chosen_afterwards_has_another_law(monkeypatch):
    """Two tokens: the first draft is kept where it is the one that promises more."""

    def table(*law):
        return jnp.log(jnp.tile(jnp.array([*law, 0.0]), (9, 1)))

    with jax.enable_x64(True):
        target, own = table(0.7, 0.3), table(0.5, 0.5)
    drafts, _ = lossless.drafts_of_builder(CHAIN, monkeypatch, own)
    wrong = lossless.changed(drafts, best_speed_seen_afterwards)
    found = written(wrong, monkeypatch, table=target)
    assert found == pytest.approx([0.15, 0.15], abs=1e-9)
    documented.row("mutants", "a budget chosen by the drawn drafts", f"{found[0]:.3f}")


def forgets_the_refused(keys, draft, logits, settings):
    """Drops a sibling that it saw refused, and tests the next as if it were the first."""
    wanted, one = jax.nn.softmax(logits[0, 0]), jax.tree.map(lambda x: x[0], draft)
    tested = jnp.zeros(wanted.shape, bool)
    first, second = one.tree.tokens[1], one.tree.tokens[2]
    law = proposals.child_law(one, 1, tested)
    other = proposals.child_law(one, 2, tested.at[first].set(True))
    key = functools.partial(jax.random.fold_in, keys[0])
    kept = sampling.accept(key(7), wanted[first], law[first])
    also = sampling.accept(key(8), wanted[second], other[second])
    node = jnp.where(kept, 1, jnp.where(also, 2, 0)).astype(jnp.int32)
    rest = jnp.log(sampling.residual(wanted, other))
    last = sampling.draw(key(9), jnp.where(node > 0, logits[0, node], rest))[None]
    path = jnp.where(node > 0, jnp.stack([0 * node, node]), jnp.array([0, -1]))
    accepted = (node > 0).astype(jnp.int32)[None]
    return Verdict(path[None].astype(jnp.int32), accepted, last, jnp.zeros((1, 2)))


def test_a_cut_after_a_refusal_was_seen_has_another_law(monkeypatch):
    builder = static_tree((2,), "without_replacement")
    drafts, _ = lossless.drafts_of_builder(builder, monkeypatch)
    found = lossless.Written(Verifier(forgets_the_refused), drafts, monkeypatch)
    assert found.distance > 1e-3
    name = "a sibling dropped once it was refused"
    documented.row("mutants", name, f"{found.distance:.3f}")


def worst_cut(drafts, size, monkeypatch):
    """The largest distance over budgets, under traversal."""
    found = []
    for budget in range(1, size):
        left = lossless.changed(drafts, by_score(budget, lambda d, n: d.score[0, n]))
        found.append(lossless.Written(LAWS[1], left, monkeypatch).distance)
    return max(found)


def test_a_beam_cut_by_another_order_than_its_own_has_another_law(monkeypatch):
    """A later sibling's value, which its elder's token decides, can oust other nodes."""
    monkeypatch.setattr(
        beam,
        "_scores",
        lambda levels, size: jnp.concatenate([each.score for each in levels], axis=1),
    )
    builder = beam._stochastic_beam.__wrapped__(2, 2)
    drafts, _ = lossless.drafts_of_builder(builder, monkeypatch, beam=leaves(2, 2))
    found = worst_cut(drafts, 5, monkeypatch)
    assert found > 1e-3
    name = "a stochastic beam cut against its order"
    documented.row("mutants", name, f"{found:.3f}")


def test_retrieved_nodes_before_drawn_ones_have_another_law(monkeypatch):
    """A retrieved node's room depends on which of the others was drawn as well."""
    monkeypatch.setattr(
        rasd,
        "_scores",
        lambda tree, drawn, found, order: jnp.where(drawn >= 0.0, 0.5 * drawn, 1.0),
    )
    builder = static_tree((2,), "iid")
    drafts, _ = fused(builder, "draft first", monkeypatch)
    found = worst_cut(drafts, 5, monkeypatch)
    assert found > 1e-3
    documented.row("mutants", "retrieved drafts kept before drawn ones", f"{found:.3f}")
