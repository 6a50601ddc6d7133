"""An engine's texts depend on params, prompt and key, and on nothing else."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import engines
import traffic
from jaxspec import serving
from jaxspec.serving import Finish, Request

kinds = pytest.mark.parametrize("kind", engines.KINDS)
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9]


def check_soak(kind, count, seed=1):
    """Whatever happened to a text, it is, or begins, the one of a lone run."""
    engine = engines.fresh(kind)
    tickets = traffic.serve(engine, traffic.requests(seed, count), seed)
    engines.check_idle(engine)
    assert engine.scheduler.num_preemptions > 0 and engine.prefixes.hits > 0
    ends = [ticket.finish for ticket in tickets]
    assert {Finish.STOP, Finish.LENGTH, Finish.ABORT} == {*ends}
    differ = []
    for ticket in tickets:
        expected = traffic.alone(engine, ticket.request)
        if ticket.finish is Finish.ABORT:
            expected = expected[: len(ticket.tokens)]
        if ticket.tokens != expected:
            differ.append(ticket)
    assert not differ, f"{len(differ)} of {len(tickets)} texts differ"


@kinds
def test_texts_are_those_of_lone_runs(kind):
    check_soak(kind, 48)


@pytest.mark.thorough
@kinds
def test_ten_thousand_texts_are_those_of_lone_runs(kind):
    check_soak(kind, 10_000)


@kinds
def test_texts_are_those_of_generate(kind):
    """Another program, so that near ties may part; here there is none."""
    engine = engines.fresh(kind)
    for request in traffic.requests(2, 8):
        ticket = engine.submit(request)
        engine.run()
        np.testing.assert_array_equal(ticket.tokens, engines.generated(kind, request))


def test_a_fork_goes_on_by_its_own_key():
    """After the fork it is what that key writes after the same tokens."""
    engine = engines.fresh("look-up")
    request = Request(prompt=PROMPT, max_new_tokens=20, temperature=1.0, seed=5)
    ticket = engines.begun(engine, request)
    value = engine.take(ticket)
    twins = [engine.resume(value, seed) for seed in (5, 6, 7)]
    engine.run()
    assert twins[0].tokens == ticket.tokens
    for twin in twins[1:]:
        size = len(value.tokens)
        assert twin.tokens[:size] == ticket.tokens[:size]
        assert twin.tokens != ticket.tokens
        prompt = [*PROMPT, *twin.tokens[:size]]
        seed = twin.request.seed
        rest = Request(prompt, 20 - size, temperature=1.0, seed=seed)
        assert twin.tokens[size:] == traffic.alone(engine, rest)


def test_several_texts_share_the_reading_of_their_prompt():
    engine = engines.fresh("draft model")
    request = Request(prompt=PROMPT, max_new_tokens=9, temperature=1.0, seed=40)
    tickets = engine.submit_several(request, 4)
    engine.run()
    assert engine.counts.chunks == 3
    for i, ticket in enumerate(tickets):
        own = dataclasses.replace(request, seed=40 + i)
        assert ticket.tokens == traffic.alone(engine, own)


@kinds
def test_nothing_crosses_but_news_and_controls(kind):
    """Whatever goes to the device or comes from it is asked for in so many words."""
    engine = engines.fresh(kind)
    tickets = [engine.submit(request) for request in traffic.requests(3, 8)]
    with jax.transfer_guard("disallow"):
        engine.run()
    assert all(ticket.finish and ticket.error is None for ticket in tickets)


def test_rounds_go_on_until_a_text_ends():
    """Where nobody waits or listens, the device is asked every so many rounds."""
    engine = engines.fresh("look-up")
    engine.submit(Request(prompt=[1], max_new_tokens=30, draft_budget=0))
    engine.run()
    quiet = engine.counts
    engine = engines.fresh("look-up")
    for _ in engine.stream(engine.submit(Request([1], 30, draft_budget=0))):
        pass
    assert quiet.steps == engine.counts.steps == 30
    assert quiet.turns < 12 < 30 <= engine.counts.turns


def test_a_text_is_streamed_as_it_is_written():
    engine = engines.fresh("look-up")
    request = Request(prompt=PROMPT, max_new_tokens=20, temperature=0.8, stops=(5,))
    ticket = engine.submit(request)
    deltas = list(engine.stream(ticket))
    assert len(deltas) > 3 and deltas[-1].finish is ticket.finish
    assert [t for delta in deltas for t in delta.tokens] == ticket.tokens
    assert [x for delta in deltas for x in delta.logprobs] == ticket.logprobs
    assert ticket.first_token < ticket.ended


class Alternating:
    """A policy of all drafts in one step and none in the next."""

    count = 0

    def budgets(self, tickets):
        self.count += 1
        return [9 * (self.count % 2)] * len(tickets)

    def see(self, ticket, found, budget):
        pass


@kinds
def test_a_text_goes_through_all_steps_by_turns(kind):
    """With drafts and without, where both are programs of their own (vLLM 56531)."""
    engine = fast(kind)
    engine.run()
    policy, engine.policy = engine.policy, Alternating()
    requests = [*traffic.requests(7, 6)]
    tickets = [engine.submit(request) for request in requests]
    for ticket in tickets:
        engine.listen(ticket)  # a step a turn
    engine.run()
    engine.policy = policy
    for ticket in tickets:
        expected = engines.generated(kind, ticket.request)
        np.testing.assert_array_equal(ticket.tokens, expected)


@kinds
def test_drafts_that_pay_change_no_text(kind):
    """The policy learns from the news of an engine, and is heard by it."""
    engine, prices = fast(kind), {}
    engine.run()
    size = engine.machinery.num_nodes
    for rows in engine.machinery.rows:
        for nodes in engine.machinery.nodes:
            prices[rows, nodes] = 1.0 + 0.05 * nodes
    gains = serving.Gains(size, is_whole=kind == "look-up")
    policy = serving.Goodput(serving.StepCosts(prices), gains, probes=0.2)
    before, engine.policy = engine.policy, policy
    requests = [*traffic.requests(13, 12)]
    tickets = [engine.submit(request) for request in requests]
    engine.run()
    engine.policy = before
    assert sum(each.proposed for each in gains._classes.values()) > 5
    for ticket in tickets:
        expected = engines.generated(kind, ticket.request)
        np.testing.assert_array_equal(ticket.tokens, expected)


@kinds
def test_no_knob_of_the_scheduler_changes_a_text(kind):
    """And its log-probabilities by rounding only (SGLang 39342)."""
    requests, written = [*traffic.requests(11, 16)], []
    for ageing, max_waiting, rounds in ((1e-6, 99, 1), (1e6, 99, 3), (1.0, 16, 8)):
        engine = engines.fresh(kind)
        engine.scheduler = serving.Scheduler(
            engines.ROWS, ageing=ageing, max_waiting=max_waiting, rounds=rounds
        )
        tickets = [engine.submit(request) for request in requests]
        engine.run()
        order = sorted(tickets, key=lambda ticket: ticket.request.seed)
        written.append([(ticket.tokens, ticket.logprobs) for ticket in order])
        requests.reverse()
    for texts in zip(*written, strict=True):
        first, *others = texts
        for other in others:
            assert other[0] == first[0]
            np.testing.assert_allclose(other[1], first[1], rtol=0, atol=5e-6)


@kinds
def test_what_is_in_one_row_changes_no_other(kind):
    """By no bit of its state (ik_llama 1932)."""

    def values(other):
        engine = engines.fresh(kind)
        engine.policy = serving.policies.AsAsked()
        mine = [engine.submit(Request(PROMPT[i:], 30, seed=i)) for i in (0, 3)]
        for ticket in (*mine, engine.submit(other)):
            engine.listen(ticket)
        while len(mine[1].tokens) < 9:
            engine.turn()
        found = [engine.take(ticket).value for ticket in mine]
        engine.run()
        return [x.replace(keys=jax.random.key_data(x.keys)) for x in found]

    others = Request([7] * 9, 30), Request([8] * 9, 30, temperature=1.4, seed=99)
    one, another = map(values, others)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(another), strict=True):
        np.testing.assert_array_equal(a, b)


# --- Several sizes ---


@functools.cache
def fast(kind):
    """An engine of several sizes, compiled once."""
    return engines.make(kind, rows=(1, 3), nodes=(1, 3))


@kinds
def test_texts_are_the_same_whatever_the_sizes(kind):
    """But for near ties, which these texts do not have."""
    engine = fast(kind)
    requests = list(traffic.requests(6, 16))
    tickets = traffic.serve(engine, requests, 6, aborts=0.0, forks=0.0)
    assert not engine.is_strict and engine.counts.compilations == 0
    for ticket in tickets:
        expected = engines.generated(kind, ticket.request)
        np.testing.assert_array_equal(ticket.tokens, expected)


def test_a_pool_grows_and_shrinks_with_what_is_asked():
    engine, sizes = fast("draft model"), []

    def run(*budgets):
        tickets = [engine.submit(Request([i], n)) for i, n in enumerate(budgets)]
        for ticket in tickets:
            engine.listen(ticket, True)  # a step a turn
        while not engine.is_idle:
            engine.turn()
            sizes.append(engine._pool.size)
        for ticket in tickets:
            expected = engines.generated("draft model", ticket.request)
            np.testing.assert_array_equal(ticket.tokens, expected)

    run(40)
    assert sizes[-1] == 1
    sizes.clear()
    run(5, 9, 50)
    assert sizes[0] == 1 and 3 in sizes and sizes[-1] == 1


def test_a_step_is_as_wide_as_its_largest_budget():
    engine, seen = fast("look-up"), []
    steps = engine.programs.step
    watched = {
        key: lambda *args, key=key: (seen.append(key), steps[key](*args))[1]
        for key in steps
    }
    engines.use(engine, engine.programs._replace(step=watched))
    for budget, nodes in ((0, 1), (1, 3), (2, 3), (3, 8), (100, 8)):
        seen.clear()
        engine.submit(Request([1, 2, 1], 4, draft_budget=budget))
        engine.run()
        assert {key[1] for key in seen} == {nodes}
    engines.use(engine, engine.programs._replace(step=steps))


@pytest.mark.parametrize("sizes", [{"rows": ()}, {"rows": (0, 2)}, {"nodes": (9,)}])
def test_sizes_out_of_range_are_refused(sizes):
    with pytest.raises(ValueError, match="rows|nodes"):
        engines.make("look-up", **sizes)
