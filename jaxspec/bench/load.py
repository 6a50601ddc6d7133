"""Serves requests that come at random times, and says by the minute how they fared.

    jaxspec bench load --rate 4 --minutes 60 --plot load.png
    jaxspec bench load --rate 8 --fast --drafter model:chain:4

Requests come whether or not others are done (Poisson), with prompts of a file, some of them
cut, at temperature 0 or 0.8, of up to `--max-tokens` tokens each; one of fifty goes away
in the middle, one of ten is urgent. By the minute of their arrival: seconds to the first
token and between two deliveries (median, and 99 of 100), requests that wait, and memory.
Memory that grows, or a program that is compiled, is an error.
"""

import argparse
import json
import pathlib
import random
import resource
import time
from typing import Any

import numpy as np
from rich import console as consoles
from rich import progress
from rich import table as tables

from jaxspec.cli import engines, options, terminal
from jaxspec.measure import prompts as prompt_files
from jaxspec.measure import timing
from jaxspec.serving import Engine, QueueFull, Request, Ticket
from jaxspec.text import encoding

_GROWTH = 1.05  # of memory after the first half, over that before


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the benchmark's options."""
    engines.add_prompts(parser)
    engines.add_arguments(parser, drafter="ngram:8", rows=8)
    parser.add_argument(
        "--rate", type=float, default=4.0, help="requests a second (default: 4)"
    )
    parser.add_argument(
        "--minutes", type=float, default=5.0, help="of arrivals (default: 5)"
    )
    parser.add_argument(
        "--fast", action="store_true", help="several numbers of rows and nodes"
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=96,
        help="tokens to add to a prompt at most (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument(
        "--plot", type=pathlib.Path, help="draw the minutes into a file"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )


def run(args: argparse.Namespace) -> None:
    """Runs the benchmark."""
    options.check_files(args, "plot")
    if args.plot:
        from jaxspec import plotting
    options.check_positive(args, "rows", "max_length", "max_tokens")
    if not (args.rate > 0.0 and args.minutes > 0.0):
        raise ValueError(
            f"--rate and --minutes must be positive, got {args.rate} and {args.minutes}."
        )
    setup = engines.load(args, args.drafter)
    texts = prompt_files.read(args.prompts)
    ids = [encoding.encode(setup.target.tokenizer, text) for text in texts]
    columns = progress.Progress.get_default_columns()
    with progress.Progress(*columns, console=consoles.Console(stderr=True)) as bar:
        nodes = (1,) if args.fast else ()
        engine = engines.make(args, setup, bar, nodes=nodes)
        task = bar.add_task("serves", total=60.0 * args.minutes)
        minutes = _serve(args, engine, ids, lambda now: bar.update(task, completed=now))
    record = {
        "environment": timing.environment(),
        "rate": args.rate,
        "drafter": args.drafter,
        "fast": args.fast,
        "compilations": engine.counts.compilations,
        "preemptions": engine.scheduler.num_preemptions,
        "finished": dict(engine.counts.finished),
        "minutes": minutes,
    }
    if args.plot:
        plotting.save(plotting.load(minutes), args.plot)
    if args.json:
        print(json.dumps(record))
    else:
        _print_table(record)
    check(record)


def check(record: dict[str, Any]) -> None:
    """Refuses a run whose memory grew, or in which something was compiled.

    Raises:
        ValueError: naming what was seen.
    """
    sizes = [row["memory"] for row in record["minutes"]]
    half = len(sizes) // 2
    if half and max(sizes[half:]) > _GROWTH * max(sizes[:half]):
        raise ValueError(f"Memory grew from {max(sizes[:half])} to {max(sizes)} bytes.")
    if record["compilations"]:
        raise ValueError(
            f"{record['compilations']} programs were compiled while serving."
        )


def _serve(args, engine: Engine, ids: list[list[int]], advance) -> list[dict[str, Any]]:
    """Serves until all that came is done; what was seen, by the minute."""
    draw, began, due = random.Random(args.seed), time.monotonic(), 0.0
    tickets: dict[int, Ticket] = {}
    last: dict[int, float] = {}
    seen: list[dict[str, Any]] = []
    end = 60.0 * args.minutes
    while due < end or not engine.is_idle:
        now = time.monotonic() - began
        while due < end and due <= now:
            _arrive(args, engine, draw, ids, tickets)
            due += draw.expovariate(args.rate)
        minute = int(min(now, end - 1e-9) // 60)
        while len(seen) <= minute:
            seen.append({"first": [], "between": [], "waiting": 0, "memory": 0})
        if engine.is_idle:
            time.sleep(min(max(due - now, 0.0), 0.01))
            continue
        for delta in engine.turn():
            now = time.monotonic() - began
            if delta.tokens:
                kind = "between" if delta.id in last else "first"
                arrival = tickets[delta.id].arrival - began
                seen[minute][kind].append(now - last.get(delta.id, arrival))
                last[delta.id] = now
            if delta.finish is not None:
                last.pop(delta.id, None)
                tickets.pop(delta.id)
        seen[minute]["waiting"] = max(
            seen[minute]["waiting"], len(engine.scheduler.waiting)
        )
        seen[minute]["memory"] = _memory()
        advance(now)
    return [_row(i, each) for i, each in enumerate(seen) if each["first"]]


def _arrive(args, engine: Engine, draw: random.Random, ids, tickets) -> None:
    """One request comes; now and then another goes away."""
    prompt = draw.choice(ids)[: engine.machinery.max_length - args.max_tokens]
    if draw.random() < 0.5:
        prompt = prompt[: draw.randint(1, len(prompt))]
    request = Request(
        prompt=prompt,
        max_new_tokens=draw.randint(1, args.max_tokens),
        temperature=draw.choice([0.0, 0.8]),
        seed=draw.randrange(2**32),
        priority=-int(draw.random() < 0.1),
    )
    try:
        ticket = engine.submit(request)
    except QueueFull:
        return
    tickets[ticket.id] = ticket
    engine.listen(ticket, True)
    if draw.random() < 0.02:
        engine.abort(draw.choice(list(tickets.values())))


def _row(minute: int, seen: dict[str, Any]) -> dict[str, Any]:
    def quantiles(values):
        return [float(np.quantile(values or [0.0], q)) for q in (0.5, 0.99)]

    return {
        "minute": minute,
        "requests": len(seen["first"]),
        "first": quantiles(seen["first"]),
        "between": quantiles(seen["between"]),
        "waiting": seen["waiting"],
        "memory": seen["memory"],
    }


def _memory() -> int:
    """Bytes of the process now."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:  # not Linux: the most so far
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _print_table(record: dict[str, Any]) -> None:
    where = record["environment"]
    table = tables.Table(
        title=f"{record['rate']:g} requests a second, {record['drafter']}; "
        f"{where['device']}, jax {where['jax']}, {where['date']}"
    )
    headings = ("minute", "requests", "first token, ms", "99 %", "between, ms", "99 %")
    for heading in (*headings, "waiting", "MiB"):
        table.add_column(heading, justify="right")
    for row in record["minutes"]:
        times = (f"{1e3 * t:.0f}" for t in (*row["first"], *row["between"]))
        sizes = str(row["waiting"]), f"{row['memory'] / 2**20:.0f}"
        table.add_row(str(row["minute"]), str(row["requests"]), *times, *sizes)
    terminal.console().print(table)
    ends = ", ".join(f"{n} {why}" for why, n in record["finished"].items())
    print(
        f"{ends}; {record['preemptions']} were set aside; {record['compilations']} "
        "programs were compiled while serving."
    )
