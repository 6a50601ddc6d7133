"""Times the functions of an engine's pool."""

from typing import Any

import numpy as np

from jaxspec import decoding, prefill
from jaxspec.core import Params
from jaxspec.measure import timing
from jaxspec.serving import Engine, Request
from jaxspec.serving import texts as arrays
from jaxspec.serving.goodput import StepCosts
from jaxspec.serving.programs import Control
from jaxspec.serving.replay import Costs

_STEPS = 32  # of the autoregressive loop


def functions(engine: Engine, params: Params, repeats: int) -> list[dict[str, Any]]:
    """Times each function of the pool, in interleaved runs.

    Args:
        engine: whose programs they are.
        params: the engine's.
        repeats: runs of each; medians are taken.

    Returns:
        Of each `function` its `milliseconds`, and these in autoregressive steps of one row
        (`over_ar`).
    """
    m, run = engine.machinery, engine.programs
    chunks = (m.max_length - 1) // m.chunk
    prompt = np.arange(1, chunks * m.chunk + 2) % m.target.vocab_size
    text = m.put(arrays.text(Request(prompt[:9].tolist(), 8), m))
    pieces = [m.put(arrays.chunk(prompt, i, m.chunk)) for i in range(chunks)]
    at = [m.put(np.int32(i * m.chunk)) for i in range(chunks)]
    row, key = at[0], m.put(arrays.key(0))
    kept = run.open(params)
    rows = []
    for i, piece in enumerate(pieces):
        kept = run.absorb(params, kept, *piece)
        rows.append(run.piece(kept, at[i]))
    state = run.state(kept)
    size = m.num_rows
    pool = [run.pool[size](params)]
    value = run.take[size](pool[0], row)

    def on_pool(f):
        def call():
            pool[0] = f(pool[0], row)
            return pool[0].lengths

        return call

    def miss():
        past = run.open(params)
        for piece in pieces:
            past = run.absorb(params, past, *piece)
        return past

    def hit():
        past = run.open(params)
        for each, first in zip(rows, at, strict=True):
            past = run.put_piece(past, each, first)
        return run.put_state(past, state)

    known = chunks * m.chunk
    calls = {
        "AR": _autoregressive(engine, params),
        "admit": on_pool(lambda pool, row: run.admit[size](pool, kept, row, text)),
        "take": lambda: run.take[size](pool[0], row),
        "put": on_pool(lambda pool, row: run.put[size](pool, row, value, key)),
        "keep a border": lambda: (run.piece(kept, at[-1]), run.state(kept)),
        f"a miss of {known} tokens": miss,
        f"a hit of {known} tokens": hit,
    }
    if len(m.rows) > 1:
        half = m.rows[-2]
        index = m.put(np.arange(half, dtype=np.int32))
        resize = run.resize[size, half]
        calls[f"from {size} rows to {half}"] = lambda: resize(pool[0], index)
    times = timing.medians(calls, repeats)
    times["AR"] /= _STEPS
    times[f"a chunk of {m.chunk} tokens"] = times[f"a miss of {known} tokens"] / chunks
    return [
        {"function": name, "milliseconds": 1e3 * t, "over_ar": t / times["AR"]}
        for name, t in times.items()
    ]


def _autoregressive(engine: Engine, params: Params):
    """Steps of `generate`, of one row."""
    m = engine.machinery
    state = prefill.init_state(
        Params(params.target),
        [[1]],
        target=m.target,
        max_length=m.max_length,
        max_new_tokens=_STEPS,
    )

    def call():
        return decoding.generate(Params(params.target), state, target=m.target)

    return call


def costs(engine: Engine, params: Params, repeats: int) -> Costs:
    """Times what an engine does, for policies and replays: least times, in seconds.

    Steps are timed with all rows running and all budgets as wide as the step, one round
    at a time.

    Args:
        engine: of one or several numbers of rows and nodes.
        params: the engine's.
        repeats: timings of each step, interleaved, of which the least counts.
    """
    m, run = engine.machinery, engine.programs
    prompt = (np.arange(m.chunk + 1) * 7 % m.target.vocab_size).tolist()
    past = run.open(params)
    past = run.absorb(params, past, *m.put(arrays.chunk(prompt, 0, m.chunk)))
    text = m.put(arrays.text(Request(prompt, m.max_length - len(prompt)), m))
    calls: dict[Any, Any] = {}
    for size in m.rows:
        for nodes in m.nodes:
            pool = run.pool[size](params)
            for row in range(size):
                pool = run.admit[size](pool, past, m.put_integer(row), text)
            calls[size, nodes] = _stepping(engine, params, [pool], size, nodes)
    calls["chunk"] = _absorbing(engine, params, prompt)
    pools = [run.pool[m.num_rows](params)]

    def admit():
        admit = run.admit[m.num_rows]
        pools[0] = admit(pools[0], past, m.put_integer(0), text)
        return pools[0].lengths

    calls["admit"] = admit
    found = {name: float(min(t)) for name, t in timing.rounds(calls, repeats).items()}
    chunk, admit_seconds = found.pop("chunk"), found.pop("admit")
    return Costs(StepCosts(found), chunk, m.chunk, admit_seconds)


def _stepping(engine: Engine, params: Params, pool: list, size: int, nodes: int):
    """A step of a pool whose rows all run."""
    m, step = engine.machinery, engine.programs.step[size, nodes]
    control = Control(
        budgets=np.full(size, nodes - 1, np.int32),
        stop=np.zeros(size, bool),
        rounds=np.int32(1),
    )
    control = m.put(control)

    def call():
        pool[0], news = step(params, pool[0], control)
        return news

    return call


def _absorbing(engine: Engine, params: Params, prompt: list[int]):
    """A chunk of a prompt, again and again from its beginning."""
    m, run = engine.machinery, engine.programs
    chunk = m.put(arrays.chunk(prompt, 0, m.chunk))

    def call():
        return run.absorb(params, run.open(params), *chunk)

    return call
