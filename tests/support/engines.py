"""Engines of tiny models."""

import functools

import numpy as np

import jaxspec as js
import texts
import tiny
import traffic
from jaxspec import serving
from jaxspec.models import forms

ROWS = 3
KINDS = {  # drafter, rollback, stacked layers
    "look-up": ("ngram-tree", "replay", False),
    "draft model": ("model-tree", "lazy", True),
    "head": ("head", "joint", False),
}
MORE = KINDS | {"snapshots": ("model-chain", "snapshot", True)}  # all rollbacks


def machinery(kind):
    """The params, the target and the drafter of an engine."""
    name, rollback, scanned = MORE[kind]
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
    options = {
        "rows": ROWS,
        "max_length": traffic.MAX_LENGTH,
        "chunk_size": traffic.CHUNK,
    } | options
    return serving.Engine(params, **records, **options)


@functools.cache
def shared(kind):
    """The engine of a kind, compiled once; leave it idle."""
    return make(kind)


def fresh(kind):
    """The shared engine with an empty cache, and a scheduler that has seen nothing."""
    engine = shared(kind)
    engine.run()
    engine._prompts.prefixes = serving.Prefixes(
        traffic.CHUNK, engine.prefixes.max_bytes
    )
    engine._prompts.chunks, engine.policy = 0, traffic.Whims()
    engine.scheduler = serving.Scheduler(ROWS)
    engine.counts = type(engine.counts)()
    return engine


def generated(kind, request):
    """The text of a request by `generate`, another program."""
    params, records = machinery(kind)
    params = js.Params(params.target)
    state = js.init_state(
        params,
        [list(request.prompt)],
        target=records["target"],
        max_length=traffic.MAX_LENGTH,
        max_new_tokens=request.max_new_tokens,
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        stops=list(request.stops),
        keys=js.sampling.key(request.seed)[None],
    )
    state = js.generate(params, state, target=records["target"])
    return np.asarray(state.tokens)[0, len(request.prompt) : int(state.lengths[0])]


def begun(engine, request, size=3):
    """A ticket that is read token by token, after a few."""
    ticket = engine.submit(request)
    stream = engine.stream(ticket)
    while len(ticket.tokens) < size:
        next(stream)
    return ticket


def use(engine, programs):
    """Has an engine run other programs."""
    engine._pool.programs = engine._prompts.programs = programs


def check_idle(engine):
    """No row, no byte and no ticket is left behind, and nothing was compiled."""
    assert engine.counts.compilations == 0
    assert engine.scheduler.rows == [None] * ROWS
    assert not engine._values and not len(engine._prompts)
    assert not any(engine._pool.owners)
    nodes = list(engine.prefixes._nodes())
    assert engine.prefixes.num_bytes == sum(node.num_bytes for node in nodes)
    assert engine.prefixes.num_bytes <= engine.prefixes.max_bytes
