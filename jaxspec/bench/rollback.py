"""Times one speculative step of each rollback, and counts the bytes that it moves.

A step is `scan_tree` over a chain, the head, and a `commit` of `--accepted` nodes, in one
loop on the device. `x AR` is its time over one autoregressive step of the same model. The
matrix products of one and of N rows alone say what no implementation can go below. Bytes
are those of the recurrent layers; `compiled` is XLA's count for the same program, which
includes attention caches.
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from rich import table as tables

from jaxspec import compilation, pretrained, trees
from jaxspec.aot import compiled_traffic
from jaxspec.cli import options, terminal
from jaxspec.core import LanguageModel
from jaxspec.measure import timing, traffic
from jaxspec.models import forms
from jaxspec.models.rollback import ROLLBACKS
from jaxspec.pretrained import Pretrained

_STEPS = 32  # steps of a loop that is timed
_CACHE = 384  # tokens that the caches hold


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the benchmark's options."""
    parser.add_argument(
        "--model", default=options.TARGET, help="shipped name or folder"
    )
    options.add_dtype(parser)
    parser.add_argument(
        "--batch", type=int, nargs="+", default=[1, 8], help="(default: 1 8)"
    )
    parser.add_argument(
        "--nodes", type=int, nargs="+", default=[8], help="tree sizes (default: 8)"
    )
    parser.add_argument(
        "--accepted",
        type=int,
        default=3,
        help="nodes that each step keeps, the root included (default: %(default)s)",
    )
    parser.add_argument("--repeats", type=int, default=7, help="(default: %(default)s)")
    parser.add_argument(
        "--xla-defaults",
        action="store_true",
        help="without jaxspec's compiler options (`jaxspec info` lists them)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )


def run(args: argparse.Namespace) -> None:
    """Runs the benchmark."""
    options.check_positive(args, "batch", "nodes", "repeats")
    if not 1 <= args.accepted <= min(args.nodes):
        raise ValueError(
            f"--accepted must be from 1 to {min(args.nodes)}, got {args.accepted}."
        )
    loaded = pretrained.load(args.model, args.dtype, max_path=max(args.nodes))
    rows = [row for size in args.batch for row in _measure(args, loaded, size)]
    record = {
        "environment": timing.environment(),
        "model": args.model,
        "accepted": args.accepted,
        "xla_defaults": args.xla_defaults,
        "rows": rows,
    }
    if args.json:
        print(json.dumps(record))
    else:
        _print_table(record)


def _measure(args, plain: Pretrained, batch: int) -> list[dict[str, Any]]:
    config, max_path = plain.config, max(args.nodes)
    jit = jax.jit if args.xla_defaults else compilation.jit
    params, token = plain.params, jnp.zeros((batch,), jnp.int32)
    calls = {("AR", 1): _call(jit, _autoregressive, plain.model, params, token)}
    moved = {}
    for nodes in (1, *args.nodes):
        x = jnp.ones((batch * nodes, config.d_model))
        uses = config.layers.count("S")
        calls["products", nodes] = _call(jit, _products, params, x, uses)
    for nodes in args.nodes:
        tokens = jnp.zeros((batch, nodes), jnp.int32)
        for rollback in ROLLBACKS:
            model = plain.having(rollback=rollback).model
            call = _call(jit, _speculative, model, params, tokens, args.accepted)
            calls[rollback, nodes] = call
            moved[rollback, nodes] = (
                traffic.formula(config, rollback, batch, nodes, 2 * max_path),
                compiled_traffic.measure(model, batch, nodes, _CACHE),
            )
    times = timing.medians(calls, args.repeats)
    rows = []
    for (name, nodes), seconds in times.items():
        row = {
            "name": name,
            "batch": batch,
            "nodes": nodes,
            "milliseconds": 1e3 * seconds / _STEPS,
            "over_autoregressive": seconds / times["AR", 1],
        }
        if (name, nodes) in moved:
            formula, compiled = moved[name, nodes]
            row |= {"bytes": formula._asdict(), "compiled_bytes": compiled._asdict()}
        rows.append(row)
    return rows


def _call(jit, loop: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    """A jitted loop over its array arguments; models and numbers are static."""
    static = [i for i, a in enumerate(args) if isinstance(a, (LanguageModel, int))]
    jitted = jit(loop, static_argnums=static)
    return lambda: jitted(*args)


def _autoregressive(model, params, token):
    carry = model.init_carry(params, len(token), _CACHE, speculative=False)

    def body(_, loop):
        carry, hidden = model.step(params, loop[0], loop[1])
        logits = model.logits(params, hidden)
        return carry, jnp.argmax(logits, axis=-1).astype(jnp.int32)

    return jax.lax.fori_loop(0, _STEPS, body, (carry, token))[1]


def _speculative(model, params, tokens, accepted: int):
    carry = model.init_carry(params, len(tokens), _CACHE)
    slots = jnp.arange(tokens.shape[1])[None]
    path = jnp.where(slots < accepted, slots, -1)
    path = jnp.broadcast_to(path, tokens.shape).astype(jnp.int32)

    def body(_, loop):
        tree = trees.chain(loop[1])
        carry, tape, hidden = model.scan_tree(params, loop[0], tree)
        logits = model.logits(params, hidden)
        carry = model.commit(carry, tape, path)
        return carry, jnp.argmax(logits, axis=-1).astype(jnp.int32)

    return jax.lax.fori_loop(0, _STEPS, body, (carry, tokens))[1]


def _products(params, x, uses: int):
    """All weight matrices but experts', applied to `x` `[rows, d_model]`.

    What blocks share is applied as often as they use it, `uses` times in all.
    """
    matrices = [forms.separate_head(params)["lm_head"]["kernel"]]
    sets = params.get("shared", [])
    blocks = params["layers"], [sets[i % len(sets)] for i in range(uses)]
    for path, leaf in jax.tree_util.tree_leaves_with_path(blocks):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if name.endswith("_proj.kernel") and leaf.ndim == 2:
            matrices.append(leaf)

    def body(_, x):
        total = 0.0
        for matrix in matrices:
            repeats = -(-len(matrix) // x.shape[1])
            rows = jnp.tile(x, (1, repeats))[:, : len(matrix)]
            total = total + jnp.max(rows @ matrix, axis=-1)
        return x + 1e-9 * total[:, None]

    return jax.lax.fori_loop(0, _STEPS, body, x)


def _print_table(record: dict[str, Any]) -> None:
    where = record["environment"]
    table = tables.Table(
        title=f"{record['model']}, {record['accepted']} nodes kept, "
        f"{where['processor']} x {where['cores']}, jax {where['jax']}, {where['date']}"
    )
    headings = ("", "batch", "nodes", "ms", "x AR", "kB read", "kB written", "compiled")
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    for row in record["rows"]:
        cells = [
            row["name"],
            str(row["batch"]),
            str(row["nodes"]),
            f"{row['milliseconds']:.3f}",
            f"{row['over_autoregressive']:.2f}",
        ]
        if "bytes" in row:
            moved, compiled = row["bytes"], row["compiled_bytes"]
            reads = moved["scan_tree_reads"] + moved["commit_reads"]
            writes = moved["scan_tree_writes"] + moved["commit_writes"]
            counted = sum(compiled.values())
            cells += [f"{n / 1e3:.0f}" for n in (reads, writes, counted)]
        table.add_row(*cells)
    terminal.console().print(table)
