"""An engine's texts depend on params, prompt and key, and on nothing else."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import engines
import jaxspec as js
import tiny
import traffic
from jaxspec import serving
from jaxspec.serving import Finish, Request

kinds = pytest.mark.parametrize("kind", engines.KINDS)
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9]


def use(engine, programs):
    """Has an engine run other programs."""
    engine._pool.programs = engine._prompts.programs = programs


def check_idle(engine):
    """No row, no byte and no ticket is left behind, and nothing was compiled."""
    assert engine.counts.compilations == 0
    assert engine.scheduler.rows == [None] * engines.ROWS
    assert not engine._values and not len(engine._prompts)
    assert not any(engine._pool.owners)
    nodes = list(engine.prefixes._nodes())
    assert engine.prefixes.num_bytes == sum(node.num_bytes for node in nodes)
    assert engine.prefixes.num_bytes <= engine.prefixes.max_bytes


def check_soak(kind, count, seed=1):
    """Whatever happened to a text, it is, or begins, the one of a lone run."""
    engine = engines.fresh(kind)
    tickets = traffic.serve(engine, traffic.requests(seed, count), seed)
    check_idle(engine)
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
            np.testing.assert_allclose(other[1], first[1], atol=1e-5)


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


def test_a_reader_that_fails_loses_its_own_text_only():
    """As a tokenizer may; nobody listens afterwards, and others go on."""
    engine = engines.fresh("look-up")
    first, second = (engine.submit(Request(PROMPT[i:], 30)) for i in (0, 3))

    def read():
        for delta in engine.stream(first):
            if len(first.tokens) > 4:
                raise UnicodeDecodeError("utf-8", b"?", 0, 1, str(delta.id))

    with pytest.raises(UnicodeDecodeError):
        read()
    assert engine.scheduler.is_quiet
    engine.abort(first)
    engine.run()
    assert first.finish is Finish.ABORT
    assert second.tokens == traffic.alone(engine, second.request)


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
    use(engine, engine.programs._replace(step=watched))
    for budget, nodes in ((0, 1), (1, 3), (2, 3), (3, 8), (100, 8)):
        seen.clear()
        engine.submit(Request([1, 2, 1], 4, draft_budget=budget))
        engine.run()
        assert {key[1] for key in seen} == {nodes}
    use(engine, engine.programs._replace(step=steps))


@pytest.mark.parametrize("sizes", [{"rows": ()}, {"rows": (0, 2)}, {"nodes": (9,)}])
def test_sizes_out_of_range_are_refused(sizes):
    with pytest.raises(ValueError, match="rows|nodes"):
        engines.make("look-up", **sizes)


# --- Aborts, deadlines, faults ---


@pytest.mark.parametrize("turns", range(8))
def test_an_abort_frees_its_row_within_two_turns(turns):
    """Waiting, while its prompt is absorbed, while it runs, and after its end."""
    engine = engines.fresh("look-up")
    ticket = engine.submit(Request(prompt=PROMPT, max_new_tokens=3))
    other = engine.submit(Request(prompt=PROMPT[::-1], max_new_tokens=9))
    for _ in range(turns):
        engine.turn()
    is_over = ticket.finish is not None
    engine.abort(ticket)
    engine.turn()
    engine.turn()
    assert ticket.finish is (Finish.LENGTH if is_over else Finish.ABORT)
    assert ticket.row is None and ticket not in engine.scheduler.rows
    engine.run()
    assert other.tokens == traffic.alone(engine, other.request)
    check_idle(engine)


def test_the_first_of_several_may_leave():
    """The others still want the prompt."""
    engine = engines.fresh("look-up")
    tickets = engine.submit_several(Request(prompt=PROMPT, max_new_tokens=5), 3)
    engine.turn()
    engine.abort(tickets[0])
    engine.run()
    assert [t.finish for t in tickets] == [Finish.ABORT, Finish.LENGTH, Finish.LENGTH]
    check_idle(engine)


def test_a_row_that_is_let_again_hears_nothing_of_the_last_tenant():
    """Its last step may still be on its way (vLLM 45096)."""
    engine = engines.fresh("draft model")
    tickets = []
    for size in range(
        1, 25
    ):  # prompts of all lengths (vLLM 55178), one after the other
        request = Request(prompt=(PROMPT * 2)[:size], max_new_tokens=1 + size % 4)
        tickets.append(engine.submit(request))
    engine.run()
    for ticket in tickets:
        assert ticket.tokens == traffic.alone(engine, ticket.request)


class Clock:
    """Says what it is told."""

    now = 0.0

    def __call__(self):
        return self.now


def test_deadlines_and_a_clock_that_jumps(monkeypatch):
    engine = engines.fresh("look-up")
    clock = Clock()
    monkeypatch.setattr(engine, "_clock", clock)
    late = engine.submit(Request(prompt=PROMPT, max_new_tokens=30, deadline=5.0))
    free = engine.submit(Request(prompt=PROMPT, max_new_tokens=30))
    engine.listen(free, True)  # one round at a time
    for now in (0.0, 1.0, -100.0, 2.0, 3.0, 4.0, 4.5, 4.9):
        clock.now = now
        engine.turn()
    assert late.finish is None
    clock.now = 5.0
    engine.turn()
    assert late.finish is Finish.DEADLINE and 0 < len(late.tokens) < 30
    engine.run()
    assert free.tokens[: len(late.tokens)] == late.tokens
    check_idle(engine)


@pytest.mark.parametrize("program", ["step", "absorb", "admit", "open", "take", "put"])
def test_a_fault_of_the_device_ends_what_ran_and_nothing_else(program):
    engine = engines.fresh("look-up")
    sound, calls = engine.programs, []

    def broken(*args, of):
        calls.append(args)
        if len(calls) == (1 if program in ("take", "put") else 3):
            raise RuntimeError("out of memory\nand more")
        return of(*args)

    requests = list(traffic.requests(4, 12))
    tickets = [engine.submit(request) for request in requests]
    found = getattr(sound, program)
    if isinstance(found, dict):
        each = {key: functools.partial(broken, of=f) for key, f in found.items()}
    else:
        each = functools.partial(broken, of=found)
    use(engine, sound._replace(**{program: each}))
    try:
        engine.run()
    finally:
        use(engine, sound)
    lost = [ticket for ticket in tickets if ticket.finish is Finish.ERROR]
    assert 0 < len(lost) < 12
    assert {ticket.error for ticket in lost} == {"RuntimeError: out of memory"}
    for ticket in tickets:
        if ticket not in lost:
            assert ticket.tokens == traffic.alone(engine, ticket.request)
    check_idle(engine)


def test_logits_that_are_not_finite_end_their_text_alone():
    params, records = engines.machinery("look-up")
    embedding = params.target["embed"]["embedding"]
    spoiled = params.target | {"embed": {"embedding": embedding.at[7].set(np.nan)}}
    engine = serving.Engine(
        js.Params(spoiled),
        **records,
        rows=2,
        max_length=traffic.MAX_LENGTH,
        chunk_size=4,
    )
    bad = engine.submit(Request(prompt=[1, 7, 2], max_new_tokens=9))
    good = engine.submit(Request(prompt=[1, 2], max_new_tokens=9))
    engine.run()
    assert bad.finish is Finish.ERROR and "not finite" in bad.error
    assert good.finish is not None


def test_a_drained_engine_finishes_and_takes_no_more():
    engine = engines.make("look-up", rows=2)
    ticket = engine.submit(Request(prompt=PROMPT, max_new_tokens=5))
    engine.drain()
    assert ticket.finish is Finish.LENGTH
    with pytest.raises(RuntimeError, match="draining"):
        engine.submit(Request(prompt=PROMPT))


BAD = {
    "no prompt": ({"prompt": []}, "at least one token"),
    "a text": ({"prompt": "def f"}, "list of integers"),
    "a token beyond": ({"prompt": [tiny.VOCAB]}, "tokens from 0 to"),
    "too long": ({"max_new_tokens": 60}, "do not fit"),
    "nothing to add": ({"max_new_tokens": 0}, "do not fit"),
    "temperature": ({"temperature": float("nan")}, "temperature"),
    "top_p": ({"top_p": 0.0}, "top_p"),
    "top_k": ({"top_k": -1}, "top_k"),
    "stops": ({"stops": range(9)}, "at most 8 stops"),
    "seed": ({"seed": -1}, "seed"),
    "a seed beyond": ({"seed": 2**32}, "seed"),
    "budget": ({"draft_budget": -1}, "draft_budget"),
    "half a token": ({"max_new_tokens": 2.5}, "integer max_new_tokens"),
    "deadline": ({"deadline": 0.0}, "deadline"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_served_as_it_is_is_refused(name):
    settings, words = BAD[name]
    engine = engines.fresh("look-up")
    with pytest.raises(ValueError, match=words) as error:
        engine.submit(Request(**({"prompt": [1, 2], "max_new_tokens": 3} | settings)))
    assert "\n" not in str(error.value)
    assert engine.is_idle
