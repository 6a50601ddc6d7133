"""Engines of tiny models, and traffic for them."""

import dataclasses
import functools
import random

import numpy as np

import jaxspec as js
import texts
import tiny
from jaxspec import serving
from jaxspec.models import forms

ROWS, MAX_LENGTH, CHUNK = 3, 56, 4
KINDS = {  # drafter, rollback, stacked layers
    "look-up": ("ngram-tree", "replay", False),
    "draft model": ("model-tree", "lazy", True),
    "head": ("head", "joint", False),
}


def machinery(kind):
    """The params, the target and the drafter of an engine."""
    name, rollback, scanned = KINDS[kind]
    drafter, own = texts.make_drafter(name)
    config = tiny.CONFIGS[texts.TARGET]
    target = js.language_model(
        config, rollback=rollback, max_path=texts.MAX_PATH, scan_layers=scanned
    )
    params = tiny.params(texts.TARGET)
    params = forms.stack(config, params) if scanned else params
    return js.Params(params, own), {"target": target, "drafter": drafter}


def make(kind, **options):
    """An engine of its own."""
    params, records = machinery(kind)
    options = {"rows": ROWS, "max_length": MAX_LENGTH, "chunk_size": CHUNK} | options
    return serving.Engine(params, **records, **options)


class Whims:
    """A policy that changes its mind at every step."""

    draw = random.Random(0)

    def budgets(self, tickets):
        return [self.draw.choice([0, 1, 2, 9]) for _ in tickets]

    def see(self, ticket, ran, shown, kept):
        assert not (kept & ~shown).any() and not shown[~ran].any()


@functools.cache
def shared(kind):
    """The engine of a kind, compiled once; leave it idle."""
    return make(kind)


def fresh(kind):
    """The shared engine with an empty cache, and a scheduler that has seen nothing."""
    engine = shared(kind)
    engine.run()
    engine._prompts.prefixes = serving.Prefixes(CHUNK, engine.prefixes.max_bytes)
    engine._prompts.chunks, engine.policy = 0, Whims()
    engine.scheduler = serving.Scheduler(ROWS)
    engine.counts = type(engine.counts)()
    return engine


def requests(seed, count):
    """Requests of all sorts, some with beginnings in common."""
    draw = random.Random(seed)
    beginnings = [[draw.randrange(tiny.VOCAB) for _ in range(12)] for _ in range(3)]
    for i in range(count):
        size = draw.choice([1, 2, 5, 9, 14])
        prompt = [draw.randrange(tiny.VOCAB) for _ in range(size)]
        if draw.random() < 0.6:
            prompt = draw.choice(beginnings) + prompt
        yield serving.Request(
            prompt=prompt,
            max_new_tokens=draw.choice([1, 2, 7, 15, 24]),
            temperature=draw.choice([0.0, 0.8, 1.2]),
            top_k=draw.choice([0, 0, 10]),
            top_p=draw.choice([1.0, 1.0, 0.9]),
            stops=draw.choice([(), (3,), (5, 7)]),
            seed=1000 * seed + i,
            draft_budget=draw.choice([0, 1, 3, 100]),
            priority=draw.choice([0, 0, 1, 2]),
            client=draw.choice("ab"),
        )


def alone(engine, request):
    """The text of a request by itself, without a cache."""
    engine.prefixes.clear()
    plain = dataclasses.replace(request, priority=0, deadline=None)
    ticket = engine.submit(plain)
    engine.run()
    return ticket.tokens


def generated(kind, request):
    """The text of a request by `generate`, another program."""
    params, records = machinery(kind)
    params = js.Params(params.target)
    state = js.init_state(
        params,
        [list(request.prompt)],
        target=records["target"],
        max_length=MAX_LENGTH,
        max_new_tokens=request.max_new_tokens,
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        stops=list(request.stops),
        keys=js.sampling.key(request.seed)[None],
    )
    state = js.generate(params, state, target=records["target"])
    return np.asarray(state.tokens)[0, len(request.prompt) : int(state.lengths[0])]


def traffic(engine, requests, seed, aborts=0.05, forks=0.03):
    """Serves requests that come at random turns, and disturbs them; all tickets."""
    draw, waiting, tickets, values = random.Random(seed), list(requests), [], []
    while waiting or values or not engine.is_idle:
        while waiting and len(engine.scheduler.waiting) < 20 and draw.random() < 0.4:
            tickets.append(engine.submit(waiting.pop()))
        running = [t for t in engine.scheduler.rows if t is not None]
        if running and draw.random() < aborts:
            engine.abort(draw.choice(tickets))
        if running and draw.random() < forks:
            chosen = draw.choice(running)
            try:
                values.append((chosen, engine.suspend(chosen)))
            except ValueError:  # it has not begun, or is over
                pass
        if values and draw.random() < 0.2:
            tickets.append(engine.resume(values.pop()[1]))
        engine.turn()
    return tickets
