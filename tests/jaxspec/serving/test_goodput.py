"""Goodput: the rule against brute force, and estimates against what is true."""

import itertools
import random

import numpy as np
import pytest

from jaxspec.serving import Request, Ticket, goodput, survivals
from jaxspec.serving.goodput import Goodput, SmartSpec, StepCosts
from jaxspec.serving.news import News
from jaxspec.serving.survivals import Survivals

NODES = 6  # a chain of five drafts
CHANCES = np.array([0.8, 0.7, 0.5, 0.5, 0.2])  # of each, once those before it survived
TRUE = np.cumprod(CHANCES)


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
    return Survivals(NODES, fading=1.0, weight=1.0, **options)


# --- Estimates ---


@pytest.mark.parametrize("budget", [0, 1, 5])
def test_what_is_not_verified_is_compared_with_the_text(budget):
    """Every text is written further, and says what became of all drafts."""
    found, writer, one = make(is_whole=True), Writer(0), ticket()
    for _ in range(4000):
        writer.step(one, found, budget)
    # Texts here are zeros, so a wrong draft is wrong and a right one is right.
    np.testing.assert_allclose(found.of(one), TRUE, atol=0.03)


def test_what_is_beyond_a_budget_is_no_failure():
    """Where a drafter proposes as much as it may, or a law is kept."""
    for options in ({"is_whole": False}, {"is_exact": False, "is_whole": True}):
        found, writer, one = make(**options), Writer(1), ticket()
        draw = random.Random(0)
        for _ in range(8000):
            budget = draw.choice([0, 1, 2, 5])
            writer.step(one, found, budget, is_whole=options["is_whole"])
        np.testing.assert_allclose(found.of(one), TRUE, atol=0.04)


def test_a_request_is_known_by_itself_and_by_its_class():
    found, writer = Survivals(NODES, weight=8.0, fading=1.0, is_whole=True), Writer(2)
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
    fresh = found.of(mine).copy()
    for _ in range(300):
        writer.step(ticket("other"), found, 5)
    np.testing.assert_array_equal(found.of(mine), fresh)


def test_estimates_do_not_increase_and_nothing_stays_behind():
    found, writer = make(is_whole=True), Writer(5)
    for _ in range(20):
        one = ticket()
        for _ in range(7):
            writer.step(one, found, 2)
        assert (np.diff(found.of(one)) <= 0).all()
    del one
    assert len(found._known) == 0


def test_ranks_are_those_of_budgets():
    import jax.numpy as jnp

    from jaxspec import budgets
    from jaxspec.trees import TokenTree

    draw = np.random.default_rng(0)
    for _ in range(20):
        parents = np.array([-1, *(draw.integers(-1, i) for i in range(1, 9))])
        score = draw.choice([0.0, 0.25, 0.5, np.nan], 9).astype(np.float32)
        tree = TokenTree(jnp.zeros((1, 9), jnp.int32), jnp.asarray(parents[None]))
        expected = np.asarray(budgets.rank(tree, jnp.asarray(score[None])))[0]
        is_draft = (parents >= 0) & (np.arange(9) > 0)
        found = survivals.ranks(parents, score)
        np.testing.assert_array_equal(found[is_draft], expected[is_draft])
        assert (found[~is_draft] == 9).all()


def test_a_path_follows_the_text():
    drafts, parents = np.array([9, 1, 2, 1, 3]), np.array([-1, 0, 0, 2, 3])
    assert survivals.path(drafts, parents, [2, 1, 3, 7]) == [2, 3, 4]
    assert survivals.path(drafts, parents, [1, 1]) == [1]
    assert survivals.path(drafts, parents, [5]) == survivals.path(drafts, parents, [])


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
        chosen = goodput.best(table, costs)
        assert goodputs[chosen] == pytest.approx(max(goodputs.values()))


def test_packed_budgets_are_those_of_brute_force():
    draw = np.random.default_rng(1)
    for _ in range(60):
        table, seconds = random_case(draw, 2)
        found, value = goodput.packed(table, seconds)

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
