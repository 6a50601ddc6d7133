"""Times an engine: its functions, its tokens per second, its own share, and its bytes.

    jaxspec bench serving --drafter ngram:8 --rows 8
    jaxspec bench serving --model DIR --drafter model:chain:4 --prompts HumanEval.jsonl
    jaxspec bench serving --fast --texts 400

`x AR` is a time in autoregressive steps of one row (`generate`), in the same run. A miss
reads so many tokens of a prompt, a hit takes them from the cache of pasts. `tokens/s` is
the engine's after its prompts are read, and over it is that of `speculative_generate` with
the same prompts side by side; `host` is the share of the time in which the host was busy,
and not waiting for the device. `--texts` serves requests that come at random turns under
budgets that change at every step, and compares their texts with `generate`'s, another
program, which may part at a near tie. A conversation's bytes are those of a row of the
pool.
"""

import argparse
import functools
import json
import time
from typing import Any

import jax
import numpy as np
from rich import console as consoles
from rich import progress
from rich import table as tables

from jaxspec import decoding, padding, prefill, sampling
from jaxspec.cli import engines, options, terminal
from jaxspec.core import Params
from jaxspec.measure import engine_costs, published, served, timing
from jaxspec.measure import prompts as prompt_files
from jaxspec.models import hybrid
from jaxspec.serving import Engine, Request
from jaxspec.text import encoding

_LENGTHS = 512, 4096, 32768


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the benchmark's options."""
    engines.add_prompts(parser)
    engines.add_arguments(parser, drafter="ngram:8", rows=8)
    parser.add_argument(
        "--rounds",
        type=int,
        default=8,
        help="steps without a word to the host (default: %(default)s)",
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=128,
        help="tokens to add to each prompt (default: %(default)s)",
    )
    parser.add_argument("--repeats", type=int, default=7, help="(default: %(default)s)")
    parser.add_argument(
        "--texts",
        type=int,
        default=16,
        help="texts to compare, at temperature 0 and 0.8 (default: %(default)s)",
    )
    parser.add_argument(
        "--fast", action="store_true", help="several numbers of rows and nodes"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )


def run(args: argparse.Namespace) -> None:
    """Runs the benchmark."""
    sizes = ("rows", "max_length", "chunk_size", "rounds", "max_tokens", "repeats")
    sizes += ("texts",)
    options.check_positive(args, *sizes)
    setup = engines.load(args, args.drafter)
    target, params = setup.target, setup.params
    columns = progress.Progress.get_default_columns()
    with progress.Progress(*columns, console=consoles.Console(stderr=True)) as bar:
        began = time.perf_counter()
        nodes = (1,) if args.fast else ()
        engine = engines.make(args, setup, bar, nodes=nodes, rounds=args.rounds)
        ready = time.perf_counter() - began
        texts = prompt_files.read(args.prompts)
        ids = [encoding.encode(target.tokenizer, text) for text in texts]
        room = engine.machinery.max_length - args.max_tokens
        ids = [each[-room:] for each in ids]
        total = args.repeats + args.texts
        task = bar.add_task("measures", total=total)
        record = {
            "environment": timing.environment(),
            "settings": {name: getattr(args, name) for name in sizes},
            "model": args.model,
            "drafter": args.drafter,
            "ready_seconds": ready,
            "functions": engine_costs.functions(engine, params, args.repeats),
            "speed": _speed(
                engine,
                params,
                args,
                ids[: args.rows],
                advance=lambda: bar.advance(task),
            ),
            "texts": served.compare(
                engine,
                params,
                _requests(ids, args),
                advance=lambda: bar.advance(task),
            ),
            "bytes": _bytes(),
        }
    if args.json:
        print(json.dumps(record))
    else:
        _print_tables(record)


def _requests(ids: list[list[int]], args) -> list[Request]:
    """Requests for texts to compare, every second one sampled."""
    return [
        Request(
            prompt=ids[i // 2 % len(ids)],
            max_new_tokens=args.max_tokens,
            temperature=0.8 * (i % 2),
            seed=i,
        )
        for i in range(args.texts)
    ]


def _speed(engine: Engine, params: Params, args, ids, advance) -> dict[str, float]:
    """Tokens per second of the engine and of the loop, interleaved; medians."""
    m = engine.machinery
    requests = [Request(p, args.max_tokens, seed=i) for i, p in enumerate(ids)]
    prompt, lengths = padding.pad_prompts(ids)
    seeds = np.arange(len(ids))
    state = prefill.init_state(
        params,
        prompt,
        lengths,
        target=m.target,
        drafter=m.drafter,
        max_length=m.max_length,
        max_new_tokens=args.max_tokens,
        keys=jax.vmap(sampling.key)(seeds),
    )

    def loop():
        return decoding.speculative_generate(
            params, state, target=m.target, drafter=m.drafter, verifier=m.verifier
        )[0]

    jax.block_until_ready(loop())
    _decode(engine, requests, False)
    found = []
    for _ in range(args.repeats):
        quiet, streamed = (_decode(engine, requests, each) for each in (False, True))
        seconds = timing.seconds(loop)[1]
        rate = len(ids) * args.max_tokens / seconds
        found.append((*quiet, *streamed, rate, quiet[0] / rate))
        advance()
    names = ("tokens_per_second", "host_share", "streamed_tokens_per_second")
    names += ("streamed_host_share", "loop_tokens_per_second", "over_loop")
    return dict(zip(names, np.median(found, axis=0).tolist(), strict=True))


def _decode(engine: Engine, requests: list[Request], streamed: bool):
    """Tokens per second once all prompts are read, and the host's share."""
    tickets = [engine.submit(request) for request in requests]
    for ticket in tickets:
        engine.listen(ticket, True)
    while any(ticket.first_token is None for ticket in tickets):
        engine.turn()
    for ticket in tickets:
        engine.listen(ticket, streamed)
    tokens = engine.counts.tokens
    host, began = engine.counts.host_seconds, time.perf_counter()
    engine.run()
    seconds = time.perf_counter() - began
    share = (engine.counts.host_seconds - host) / seconds
    return (engine.counts.tokens - tokens) / seconds, share


def _bytes() -> list[dict[str, Any]]:
    """Bytes of a row, by the most tokens that it has room for, at published shapes."""
    found = []
    for name, config in published.MODELS.items():
        model = hybrid.language_model(config)
        each = {}
        for length in _LENGTHS:
            begin = functools.partial(model.init_carry, None, 1, length, True)
            leaves = jax.tree.leaves(jax.eval_shape(begin))
            each[str(length)] = sum(x.size * x.dtype.itemsize for x in leaves)
        found.append({"model": name, **each})
    return found


def _print_tables(record: dict[str, Any]) -> None:
    where, speed = record["environment"], record["speed"]
    title = f"{where['device']}, jax {where['jax']}, {where['date']}"
    table = tables.Table(title=f"{record['model']}, {record['drafter']}; {title}")
    for heading in ("function", "ms", "x AR"):
        table.add_column(heading, justify="left" if heading == "function" else "right")
    for row in record["functions"]:
        times = f"{row['milliseconds']:.2f}", f"{row['over_ar']:.2f}"
        table.add_row(row["function"], *times)
    terminal.console().print(table)
    print(
        f"ready after {record['ready_seconds']:.1f} s; "
        f"{speed['tokens_per_second']:.0f} tokens/s, {speed['over_loop']:.2f} of "
        f"speculative_generate; the host's share {speed['host_share']:.1%}, and "
        f"{speed['streamed_host_share']:.1%} where every step is streamed "
        f"({speed['streamed_tokens_per_second']:.0f} tokens/s)"
    )
    texts = record["texts"]
    print(
        f"{texts['texts']} texts: {texts['equal']} as generate writes them, "
        f"{texts['near_tie']} part from it at a near tie, {texts['other']} elsewhere"
    )
    table = tables.Table(title="MiB of a conversation, by the tokens it has room for")
    table.add_column("shape")
    for length in _LENGTHS:
        table.add_column(f"{length:,}", justify="right")
    for row in record["bytes"]:
        sizes = (row[str(length)] / 2**20 for length in _LENGTHS)
        table.add_row(row["model"], *(f"{size:.1f}" for size in sizes))
    terminal.console().print(table)
