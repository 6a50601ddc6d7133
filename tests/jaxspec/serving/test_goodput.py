"""Goodput: the rule against brute force, and estimates against what is true."""

import itertools
import random

import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec import budgets
from jaxspec.serving import Request, Ticket, gains, goodput
from jaxspec.serving.gains import Gains
from jaxspec.serving.goodput import Goodput, SmartSpec, StepCosts
from jaxspec.serving.news import News
from jaxspec.trees import TokenTree

NODES = 6  # a chain of five drafts
CHANCES = np.array([0.8, 0.7, 0.5, 0.5, 0.2])  # of each, once those before it survived
TRUE = np.cumsum(np.cumprod(CHANCES))


def ticket(client=""):
    return Ticket(0, Request([1], 10**6, client=client), 0.0)


class Writer:
    """Writes a text of zeros, and drafts of which some are right."""

    def __init__(self, seed, chances=CHANCES):
        self.draw, self.chances = np.random.default_rng(seed), chances

    def step(self, ticket, policy, budget, is_whole=True):
        """One step of a ticket under a budget, told to a policy."""
        fine = self.draw.random(len(self.chances)) < self.chances
        size = len(fine) if is_whole else min(budget, len(fine))
        right = np.minimum.accumulate(fine).astype(bool)
        kept = int(right[:budget].sum())
        drafts = np.array([0, *(~right).astype(int)])
        parents = np.array([i - 1 if i <= size else -1 for i in range(len(fine) + 1)])
        slots = np.arange(len(fine) + 1)
        tokens = np.zeros(len(fine) + 1, int)
        news = News(
            tokens=tokens[None],
            logprobs=tokens[None].astype(np.float32),
            count=np.array([kept + 1]),
            done=np.array([False]),
            ran=np.array([True]),
            drafts=drafts[None],
            parents=parents[None],
            score=np.where(slots > 0, 0.9**slots, 1.0)[None],
            shown=((slots > 0) & (slots <= min(kept + 1, budget)))[None],
            kept=((slots > 0) & (slots <= kept))[None],
        )
        policy.see(ticket, news, budget)
        ticket.tokens += [0] * (kept + 1)


def make(**options):
    return Gains(NODES, fading=1.0, weight=1.0, **options)


# --- Estimates ---


@pytest.mark.parametrize("budget", [1, 2, 5])
def test_what_is_not_verified_is_compared_with_the_text(budget):
    """Here all places are alike, so that it is the same wherever trees begin."""
    found, writer, one = make(is_whole=True), Writer(0), ticket()
    for _ in range(4000):
        writer.step(one, found, budget)
    np.testing.assert_allclose(found.of(one), TRUE, atol=0.05)


def test_what_is_beyond_a_budget_is_no_failure():
    """Where a drafter proposes as much as it may, or a law is kept."""
    for options in ({"is_whole": False}, {"is_exact": False, "is_whole": True}):
        found, writer, one = make(**options), Writer(1), ticket()
        draw = random.Random(0)
        for _ in range(3000):
            budget = draw.choice([1, 2, 5])
            for _ in range(3):
                writer.step(one, found, budget, is_whole=options["is_whole"])
        np.testing.assert_allclose(found.of(one), TRUE, atol=0.06)


def test_a_stretch_that_is_easy_counts_as_often_as_it_is_met():
    """Five easy tokens, then one that is not: `b` drafts bring less than they seem to.

    Whoever takes one token at a time meets five trees that are right, and one that is not.
    """
    found, one = make(is_whole=True), ticket()

    class Regular(Writer):
        at = 0

        def step(self, ticket, policy, budget):
            right = 5 - self.at % 6
            self.chances = np.where(np.arange(5) < right, 1.0, 0.0)
            super().step(ticket, policy, budget)
            self.at += min(right, budget) + 1

    writer = Regular(0)
    for _ in range(600):
        writer.step(one, found, 0)  # with trees, as probes have them
    walked = []
    for budget in range(1, 6):
        at, taken, trees = 0, 0, 0
        while at < 6000:
            brought = min(5 - at % 6, budget)
            at, taken, trees = at + brought + 1, taken + brought, trees + 1
        walked.append(taken / trees)
    np.testing.assert_allclose(found.of(one), walked, atol=0.1)
    assert found.of(one)[4] > 4.8 and walked[4] == 5.0


def test_a_tree_behind_a_step_without_drafts_does_not_count():
    found, writer, one = make(is_whole=True), Writer(2), ticket()
    fresh = found.of(one).copy()
    for budget in (5, 0, 5, 0, 5, 0, 0, 0, 0, 0):
        writer.step(one, found, budget, is_whole=budget > 0)
    np.testing.assert_array_equal(found.of(one), fresh)
    for _ in range(9):
        writer.step(one, found, 5)
    assert (found.of(one) != fresh).any()


def test_a_request_is_known_by_itself_and_by_its_class():
    found, writer = Gains(NODES, weight=8.0, fading=1.0, is_whole=True), Writer(2)
    poor = Writer(3, chances=np.array([0.1, 0.1, 0.1, 0.1, 0.1]))
    first, new, other = ticket(), ticket(), ticket()
    for _ in range(400):
        writer.step(first, found, 5)
    before = found.of(new)
    for _ in range(60):
        poor.step(other, found, 5)
    assert found.of(other)[0] < 0.25 < 0.6 < found.of(new)[0] < before[0]


def test_nothing_is_told_to_another_client():
    """Its requests are served as if nobody else was there (vLLM 57533)."""
    found, writer, mine = make(is_whole=True), Writer(4), ticket("me")
    fresh, other = found.of(mine).copy(), ticket("other")
    for _ in range(300):
        writer.step(other, found, 5)
    np.testing.assert_array_equal(found.of(mine), fresh)
    assert (found.of(other) != fresh).any()


def test_estimates_do_not_decrease_and_nothing_stays_behind():
    found, writer = make(is_whole=True), Writer(5)
    for _ in range(20):
        one = ticket()
        for _ in range(7):
            writer.step(one, found, 2)
        assert (np.diff(found.of(one)) >= 0).all()
    del one
    assert len(found._own) == 0


def test_a_path_goes_as_far_as_its_budget():
    np.testing.assert_array_equal(gains.accepted([0, 2, 1], 5), [1, 1, 3, 3])
    np.testing.assert_array_equal(gains.accepted([], 4), [0, 0, 0])
    np.testing.assert_array_equal(gains.accepted([3], 5), [0, 0, 0, 1])


def test_ranks_are_those_of_budgets():
    draw = np.random.default_rng(0)
    for _ in range(20):
        parents = np.array([-1, *(draw.integers(-1, i) for i in range(1, 9))])
        score = draw.choice([0.0, 0.25, 0.5, np.nan], 9).astype(np.float32)
        tree = TokenTree(jnp.zeros((1, 9), jnp.int32), jnp.asarray(parents[None]))
        expected = np.asarray(budgets.rank(tree, jnp.asarray(score[None])))[0]
        is_draft = (parents >= 0) & (np.arange(9) > 0)
        found = gains.ranks(parents, score)
        np.testing.assert_array_equal(found[is_draft], expected[is_draft])
        assert (found[~is_draft] == 9).all()


def test_a_path_follows_the_text():
    drafts, parents = np.array([9, 1, 2, 1, 3]), np.array([-1, 0, 0, 2, 3])
    assert gains.path(drafts, parents, [2, 1, 3, 7]) == [2, 3, 4]
    assert gains.path(drafts, parents, [1, 1]) == [1]
    assert gains.path(drafts, parents, [5]) == gains.path(drafts, parents, [])


# --- The rule ---


def random_case(draw, rows):
    table = np.sort(draw.random((rows, 4)), axis=1)[:, ::-1]
    steps = np.cumsum(draw.choice([0.0, 0.1, 1.0], 4 * rows + 2))
    return table, 1.0 + steps


def test_the_width_of_a_step_is_the_best_of_all():
    draw = np.random.default_rng(0)
    for _ in range(200):
        table, seconds = random_case(draw, int(draw.integers(1, 4)))
        costs = {n: float(seconds[n]) for n in (1, 2, 3, 5)}
        goodputs = {n: (len(table) + table[:, : n - 1].sum()) / costs[n] for n in costs}
        chosen = goodput.best(np.cumsum(table.sum(axis=0)), len(table), costs)
        assert goodputs[chosen] == pytest.approx(max(goodputs.values()))


def test_packed_budgets_are_those_of_brute_force():
    draw = np.random.default_rng(1)
    for _ in range(60):
        table, seconds = random_case(draw, 2)
        found, value = goodput.packed(np.cumsum(table, axis=1), seconds)

        def goodput_of(sizes, table=table, seconds=seconds):
            gain = sum(row[:size].sum() for row, size in zip(table, sizes, strict=True))
            return (len(table) + gain) / seconds[sum(sizes)]

        every = itertools.product(range(5), repeat=2)
        assert value == pytest.approx(max(map(goodput_of, every)))
        assert goodput_of(found) == pytest.approx(value)


def test_costs_are_a_staircase():
    costs = StepCosts({(1, 1): 1.0, (1, 4): 0.9, (4, 1): 2.0, (4, 4): 3.0})
    assert costs.of(1) == {1: 1.0, 4: 1.0}
    assert costs.of(2) == costs.of(9) == {1: 2.0, 4: 3.0}
    with pytest.raises(ValueError, match="positive costs"):
        StepCosts({(1, 1): 0.0})


@pytest.mark.parametrize("make_policy", [SmartSpec, Goodput], ids=["paper", "ours"])
@pytest.mark.parametrize(
    ("chances", "cost", "expected"),
    [(0.9, 0.02, 5), (0.9, 2.0, 0), (0.02, 0.1, 0)],
    ids=["sure and cheap", "dear", "hopeless"],
)
def test_drafts_are_chosen_where_they_pay(make_policy, chances, cost, expected):
    costs = StepCosts({(2, n): 1.0 + cost * (n - 1) for n in range(1, NODES + 1)})
    options = [costs] if make_policy is SmartSpec else [costs, make(is_whole=True)]
    policy = make_policy(*options, probes=0.0)
    writer, rows = Writer(0, np.full(5, chances)), [ticket(), None]
    for _ in range(200):
        writer.step(rows[0], policy, max(policy.budgets(rows)[0], 1))
    assert policy.budgets(rows) == [expected] * 2
    assert policy.budgets([None, None])[0] in (0, expected)
