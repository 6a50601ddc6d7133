"""Times the functions of an engine's pool."""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxspec import decoding, digests, files, prefill
from jaxspec.core import Params
from jaxspec.measure import timing
from jaxspec.serving import Engine, Request
from jaxspec.serving import texts as arrays
from jaxspec.serving.goodput import StepCosts
from jaxspec.serving.replay import Costs
from jaxspec.serving.steps import Control

FORMAT = "jaxspec engine costs 1"

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


def costs(
    engine: Engine,
    params: Params,
    repeats: int,
    advance: Callable[[], None] = lambda: None,
) -> Costs:
    """Times what an engine does, for policies and replays: least times, in seconds.

    A step is timed with all rows running, behind a text that repeats itself, so that
    look-ups find something: with budgets as wide as the step, and without drafts.

    Args:
        engine: of one or several numbers of rows and nodes.
        params: the engine's.
        repeats: timings of each step, interleaved, of which the least counts.
        advance: is called for each of these.
    """
    m, run = engine.machinery, engine.programs
    prompt = (np.arange(m.chunk + 1) % 5 + 1).tolist()
    chunk = m.put(arrays.chunk(prompt, 0, m.chunk))
    past = run.absorb(params, run.open(params), *chunk)
    text = m.put(arrays.text(Request(prompt, m.max_length - len(prompt)), m))
    zero, found = m.put_integer(0), {}

    def pool_of(size):
        pool = run.pool[size](params)
        for row in range(size):
            pool = run.admit[size](pool, past, m.put_integer(row), text)
        return pool

    def timed(name, function, *args):
        jax.block_until_ready(args)
        _, seconds = timing.seconds(functools.partial(function, *args))
        found[name] = min(seconds, found.get(name, seconds))

    for _ in range(repeats + 1):
        for size in m.rows:
            for nodes in m.nodes:
                step = run.step[size, nodes]
                for budget in {0, nodes - 1}:
                    control = _control(engine, size, budget)
                    timed((size, nodes, budget), step, params, pool_of(size), control)
        pool = pool_of(m.num_rows)
        timed("admit", run.admit[m.num_rows], pool, past, zero, text)
        timed("chunk", run.absorb, params, run.open(params), *chunk)
        advance()
    chunk_seconds, admit_seconds = found.pop("chunk"), found.pop("admit")
    steps = StepCosts(
        seconds={(r, n): t for (r, n, budget), t in found.items() if budget == n - 1},
        idle={(r, n): t for (r, n, budget), t in found.items() if budget == 0},
    )
    return Costs(steps, chunk_seconds, m.chunk, admit_seconds)


def _control(engine: Engine, size: int, budget: int) -> Control:
    """One round of all rows, with so many drafts each."""
    budgets, stop = np.full(size, budget, np.int32), np.zeros(size, bool)
    return engine.machinery.put(Control(budgets, stop, np.int32(1)))


def to_json(costs: Costs) -> dict[str, Any]:
    """Costs as JSON holds them; `load` reads them back."""
    idle = costs.steps.idle or costs.steps.seconds
    steps = [[*key, t, idle[key]] for key, t in sorted(costs.steps.seconds.items())]
    return costs._asdict() | {"steps": steps}


def read(path: str | os.PathLike) -> dict[str, Any]:
    """Reads the whole record: of which model and drafter, and where. Errors as `load`."""
    return digests.unseal(path, FORMAT)


def load(path: str | os.PathLike) -> Costs:
    """Reads what `jaxspec tune costs` wrote.

    Raises:
        ValueError: if it is damaged, or something else.
        OSError: if it is not there.
    """
    record = read(path)
    try:
        rows = record["steps"]
        seconds, idle = ({(r[0], r[1]): float(r[i]) for r in rows} for i in (2, 3))
        steps = StepCosts(seconds, idle)
        names = ("chunk", "chunk_size", "admit", "host")
        return Costs(steps, **{name: record[name] for name in names})
    except (LookupError, TypeError, ValueError) as error:
        reason = files.one_line(error)
        raise ValueError(f"{path} is no file of costs: {reason}.") from None
