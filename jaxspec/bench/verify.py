"""Times the verification of trees at published shapes, in autoregressive steps.

    jaxspec bench verify --model mamba2-2.7b --batch 1 8 64
    jaxspec bench verify --model mamba2-130m --layers 2 --rollback replay lazy

Weights are random, of the shapes of published models (`--layers` keeps the first few). A
step is `scan_tree` over a random tree of N nodes, the head on every node, the token that
follows each, and a `commit` of a path; an autoregressive step is `step`, the head and the
token. Both run in one loop on the device, with donated states. `x AR` is what a tree costs
in autoregressive steps: it pays where more tokens than that are accepted. GB/s is what the
autoregressive step must read and write at least (weights once, but of experts those that
rows choose at random, states read and written) over its time, and `of copy` its share of
what copying an array reaches on the same device.
"""

import argparse
import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
from rich import console as consoles
from rich import progress
from rich import table as tables

from jaxspec.cli import options, terminal
from jaxspec.measure import published, steps, synthetic, timing
from jaxspec.models import hybrid, joint
from jaxspec.models.rollback import ROLLBACKS

MODELS = ("mamba2-130m", "mamba2-1.3b", "mamba2-2.7b", "mamba2-hybrid-8b")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the benchmark's options."""
    parser.add_argument(
        "--model",
        nargs="+",
        choices=published.MODELS,
        default=MODELS,
        metavar="NAME",
        help=f"published shapes: {', '.join(published.MODELS)} (default: {MODELS})",
    )
    parser.add_argument("--layers", type=int, help="keep the first layers only")
    parser.add_argument(
        "--nodes",
        type=int,
        nargs="+",
        default=[1, 2, 4, 6, 8, 16, 32, 64],
        help="tree sizes (default: 1 2 4 6 8 16 32 64)",
    )
    parser.add_argument(
        "--batch", type=int, nargs="+", default=[1, 8, 64], help="(default: 1 8 64)"
    )
    parser.add_argument(
        "--rollback", nargs="+", choices=ROLLBACKS, default=["replay", "lazy"]
    )
    parser.add_argument(
        "--accepted", type=int, default=3, help="nodes kept (default: %(default)s)"
    )
    parser.add_argument(
        "--max-path", type=int, default=8, help="longest path (default: %(default)s)"
    )
    parser.add_argument(
        "--ring", type=int, default=32, help="slots under lazy (default: %(default)s)"
    )
    parser.add_argument("--context", type=int, default=512, help="tokens in the caches")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument(
        "--steps", type=int, default=32, help="in a loop (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )


def run(args: argparse.Namespace) -> None:
    """Runs the benchmark."""
    names = ("nodes", "batch", "accepted", "max_path", "context", "steps", "repeats")
    options.check_positive(args, *names)
    if args.accepted > args.max_path or args.ring < args.max_path:
        raise ValueError(
            "--accepted must not exceed --max-path, nor that --ring; got "
            f"{args.accepted}, {args.max_path} and {args.ring}."
        )
    if args.layers is not None:
        options.check_positive(args, "layers")
    copy = timing.copy_bandwidth(args.repeats)
    rows = []
    columns = progress.Progress.get_default_columns()
    with progress.Progress(*columns, console=consoles.Console(stderr=True)) as bar:
        task = bar.add_task("", total=len(args.model) * len(args.batch))
        for name in args.model:
            for batch in args.batch:
                bar.update(task, description=f"{name}, batch {batch}")
                rows += measure(args, name, batch, copy)
                bar.advance(task)
    settings = ("layers", "accepted", "max_path", "ring", "context", "dtype", "steps")
    record = {
        "environment": timing.environment(),
        "settings": {key: getattr(args, key) for key in settings},
        "copy_gigabytes_per_second": copy / 1e9,
        "rows": rows,
    }
    if args.json:
        print(json.dumps(record))
    else:
        _print_table(record)


def measure(args, name: str, batch: int, copy: float) -> list[dict[str, Any]]:
    """The rows of a model and a batch size."""
    config = dataclasses.replace(published.MODELS[name], dtype=args.dtype)
    if args.layers is not None:
        config = dataclasses.replace(config, layers=config.layers[: args.layers])
    model = functools.partial(
        hybrid.language_model,
        config,
        max_path=args.max_path,
        ring_size=args.ring,
        scan_layers=True,
    )
    plain = model()
    params = synthetic.params(config, plain)
    length = args.context + args.steps * (args.repeats + 1) * args.max_path
    start = functools.partial(_start, batch=batch, context=args.context, length=length)
    step = steps.loop(functools.partial(steps.autoregressive, plain), args.steps)
    calls = {("AR", 1): _keep(step, params, start(plain, params, False), batch, 1)}
    for kind in args.rollback:
        other = model(rollback=kind)
        for nodes in args.nodes:
            body = functools.partial(
                steps.speculative,
                other,
                max_path=args.max_path,
                accepted=args.accepted,
            )
            carry = start(other, params, True)
            step = steps.loop(body, args.steps)
            calls[kind, nodes] = _keep(step, params, carry, batch, nodes)
    state = synthetic.num_bytes(jax.eval_shape(lambda: start(plain, params, False)))
    least = steps.read_weights(config, params, batch) + 2 * state
    times = timing.medians(calls, args.repeats)
    baseline = times["AR", 1]
    return [
        {
            "model": name,
            "batch": batch,
            "rollback": kind,
            "nodes": nodes,
            "milliseconds": 1e3 * seconds / args.steps,
            "over_autoregressive": seconds / baseline,
        }
        | (_bandwidth(least * args.steps / seconds, copy) if kind == "AR" else {})
        for (kind, nodes), seconds in times.items()
    ]


def _bandwidth(rate: float, copy: float) -> dict[str, float]:
    return {"gigabytes_per_second": rate / 1e9, "of_copy": rate / copy}


def _start(model, params, speculative: bool, *, batch: int, context: int, length: int):
    """A past of `context` tokens; their values do not matter."""
    carry = model.init_carry(params, batch, length, speculative)
    position = jnp.full((batch,), context, jnp.int32)
    if isinstance(carry, joint.Carry):
        return carry._replace(past=carry.past._replace(position=position))
    return carry._replace(position=position)


def _keep(step, params, carry, batch: int, nodes: int):
    """A call that goes on from where the last one stopped."""
    now = [carry, jnp.zeros((batch, nodes), jnp.int32)]

    def call():
        now[:] = step(params, *now)
        return now[1]

    return call


def _print_table(record: dict[str, Any]) -> None:
    where = record["environment"]
    copy = record["copy_gigabytes_per_second"]
    table = tables.Table(
        title=f"{where['device']}, copy {copy:.0f} GB/s, jax {where['jax']}, "
        f"{where['date']}"
    )
    headings = ("model", "batch", "rollback", "nodes", "ms", "x AR", "GB/s", "of copy")
    for heading in headings:
        numeric = heading not in ("model", "rollback")
        table.add_column(heading, justify="right" if numeric else "left")
    for row in record["rows"]:
        rate = row.get("gigabytes_per_second")
        table.add_row(
            row["model"],
            str(row["batch"]),
            row["rollback"],
            str(row["nodes"]),
            f"{row['milliseconds']:.3f}",
            f"{row['over_autoregressive']:.2f}",
            "" if rate is None else f"{rate:.0f}",
            "" if rate is None else f"{100 * row['of_copy']:.0f} %",
        )
    terminal.console().print(table)
