"""Aborts, deadlines and faults: what ends, ends alone, and leaves nothing behind."""

import functools

import numpy as np
import pytest

import engines
import jaxspec as js
import tiny
import traffic
from jaxspec import serving
from jaxspec.serving import Finish, Request

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9]


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
    engines.check_idle(engine)


def test_the_first_of_several_may_leave():
    """The others still want the prompt."""
    engine = engines.fresh("look-up")
    tickets = engine.submit_several(Request(prompt=PROMPT, max_new_tokens=5), 3)
    engine.turn()
    engine.abort(tickets[0])
    engine.run()
    assert [t.finish for t in tickets] == [Finish.ABORT, Finish.LENGTH, Finish.LENGTH]
    engines.check_idle(engine)


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
    engines.check_idle(engine)


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
    engines.use(engine, sound._replace(**{program: each}))
    try:
        engine.run()
    finally:
        engines.use(engine, sound)
    lost = [ticket for ticket in tickets if ticket.finish is Finish.ERROR]
    assert 0 < len(lost) < 12
    assert {ticket.error for ticket in lost} == {"RuntimeError: out of memory"}
    for ticket in tickets:
        if ticket not in lost:
            assert ticket.tokens == traffic.alone(engine, ticket.request)
    engines.check_idle(engine)


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
