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
import numpy as np
from rich import console as consoles
from rich import progress
from rich import table as tables

from jaxspec.bench import published, synthetic, timing
from jaxspec.cli import options, terminal
from jaxspec.models import hybrid
from jaxspec.models.config import ModelConfig
from jaxspec.models.rollback import ROLLBACKS
from jaxspec.trees import TokenTree

MODELS = ("mamba2-130m", "mamba2-1.3b", "mamba2-2.7b", "mamba2-hybrid-8b")
_COPY = 1 << 30  # bytes of the array that is copied
_SMALL_COPY = 1 << 26  # where there is little memory


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
    copy = copy_bandwidth(args.repeats)
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


def copy_bandwidth(repeats: int) -> float:
    """Bytes per second, read and written, of copying an array on this device."""
    size = _SMALL_COPY if jax.devices()[0].platform == "cpu" else _COPY
    array = jnp.zeros((size // 4,), jnp.float32)
    copy = jax.jit(lambda a: jax.lax.fori_loop(0, 8, lambda _, a: a + 1.0, a))
    seconds = timing.medians({"copy": lambda: copy(array)}, repeats)["copy"]
    return 8 * 2 * size / seconds


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
    step = loop(functools.partial(_autoregressive, plain), args.steps)
    calls = {("AR", 1): _keep(step, params, start(plain, params, False), batch, 1)}
    for kind in args.rollback:
        other = model(rollback=kind)
        for nodes in args.nodes:
            body = functools.partial(
                speculative_step, other, nodes, args.max_path, args.accepted
            )
            carry = start(other, params, True)
            step = loop(body, args.steps)
            calls[kind, nodes] = _keep(step, params, carry, batch, nodes)
    state = synthetic.num_bytes(jax.eval_shape(lambda: start(plain, params, False)))
    least = read_weights(config, params, batch) + 2 * state
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


def read_weights(config: ModelConfig, params: Any, batch: int) -> float:
    """Bytes of the weights that a step of `batch` rows reads, on average.

    A table that is no head is looked up. An expert is read if a row chooses it, and rows
    choose each as often as any other.

    Args:
        config: the shape of the model.
        params: of it, stacked, arrays or their shapes.
        batch: rows.
    """
    table = 0 if config.tie_embeddings else synthetic.num_bytes(params["embed"])
    return synthetic.num_bytes(params) - table - _idle_experts(config, params, batch)


def _idle_experts(config: ModelConfig, params: Any, batch: int) -> float:
    if "E" not in config.layers:
        return 0.0
    own = params["layers"]["E"]["moe"]
    idle = (1 - config.moe.top_k / config.moe.num_experts) ** batch
    return idle * synthetic.num_bytes((own["up_proj"], own["down_proj"]))


def _start(model, params, speculative: bool, *, batch: int, context: int, length: int):
    """A past of `context` tokens; their values do not matter."""
    carry = model.init_carry(params, batch, length, speculative)
    return carry._replace(position=jnp.full((batch,), context, jnp.int32))


def loop(step, steps: int):
    """`carry, tokens = step(params, carry, tokens)` several times, jitted.

    The past is written where it is.
    """

    def call(params, carry, tokens):
        once = functools.partial(step, params)
        return jax.lax.fori_loop(0, steps, lambda _, now: once(*now), (carry, tokens))

    return jax.jit(call, donate_argnums=1)


def _keep(step, params, carry, batch: int, nodes: int):
    """A call that goes on from where the last one stopped."""
    now = [carry, jnp.zeros((batch, nodes), jnp.int32)]

    def call():
        now[:] = step(params, *now)
        return now[1]

    return call


def _autoregressive(model, params, carry, tokens):
    carry, hidden = model.step(params, carry, tokens[:, 0])
    logits = model.logits(params, hidden)
    return carry, jnp.argmax(logits, axis=-1).astype(jnp.int32)[:, None]


def speculative_step(
    model, nodes: int, max_path: int, accepted: int, params, carry, tokens
):
    """One step over a random tree, of which `accepted` nodes are kept."""
    parents = _parents(nodes, max_path)
    path, batch = _path(parents, accepted, max_path), tokens.shape[0]
    tree = TokenTree(tokens, jnp.broadcast_to(parents, (batch, len(parents))))
    carry, tape, hidden = model.scan_tree(params, carry, tree)
    logits = model.logits(params, hidden)
    carry = model.commit(carry, tape, jnp.broadcast_to(path, (batch, len(path))))
    return carry, jnp.argmax(logits, axis=-1).astype(jnp.int32)


def _parents(nodes: int, max_path: int) -> np.ndarray:
    """A random tree no path of which is longer than `max_path`; its spine is a chain."""
    rng, parents, depth = np.random.default_rng(nodes), [-1], [0]
    spine = min(nodes, max_path)
    for node in range(1, nodes):
        room = [i for i in range(node) if depth[i] < max_path - 1]
        parent = node - 1 if node < spine else int(rng.choice(room or [0]))
        parents.append(parent)
        depth.append(depth[parent] + 1)
    return np.array(parents, np.int32)


def _path(parents: np.ndarray, accepted: int, max_path: int) -> np.ndarray:
    """The first nodes of the spine."""
    slots = np.arange(max_path)
    kept = slots < min(accepted, len(parents))
    return np.where(kept, slots, -1).astype(np.int32)


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
