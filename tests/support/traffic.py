"""Traffic for engines of tiny models: requests of all sorts, that come and go."""

import dataclasses
import random

import tiny
from jaxspec import serving

MAX_LENGTH, CHUNK = 56, 4


class Whims:
    """A policy that changes its mind at every step."""

    draw = random.Random(0)

    def budgets(self, tickets):
        return [self.draw.choice([0, 1, 2, 9]) for _ in tickets]

    def see(self, ticket, found, budget):
        assert not (found.kept & ~found.shown).any()
        assert not found.shown[~found.ran].any()
        assert (found.kept.sum(axis=1) <= budget).all()


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
    engine.reset_prefix_cache()
    plain = dataclasses.replace(request, priority=0, deadline=None)
    ticket = engine.submit(plain)
    engine.run()
    return ticket.tokens


def serve(engine, requests, seed, aborts=0.05, forks=0.03):
    """Serves requests that come at random turns, and disturbs them; all tickets."""
    draw, waiting, tickets, values = random.Random(seed), list(requests), [], []
    alive = []
    while waiting or values or not engine.is_idle:
        while waiting and len(alive) < 24 and draw.random() < 0.4:
            alive.append(engine.submit(waiting.pop()))
            tickets.append(alive[-1])
        running = [ticket for ticket in alive if ticket.row is not None]
        if running and draw.random() < aborts:
            engine.abort(draw.choice(tickets))
        if running and draw.random() < forks:
            try:
                values.append(engine.suspend(draw.choice(running)))
            except ValueError:  # it has not begun, or is over
                pass
        if values and draw.random() < 0.2:
            alive.append(engine.resume(values.pop()))
            tickets.append(alive[-1])
        engine.turn()
        alive = [ticket for ticket in alive if ticket.finish is None]
    return tickets
