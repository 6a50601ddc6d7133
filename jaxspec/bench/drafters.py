"""Compares drafters, trees and verifiers at equal nodes: tokens per call, and time.

Every kind of drafter at every budget of nodes (slots of the tree in the target's pass, the
root included) continues the same prompts at every temperature, side by side in one batch.
`tokens per call` is over all of them, with a 95 % interval (prompts resampled); `step` is a
full cycle of draft, pass and verdict in autoregressive steps, both timed in turn at batch 1
(rounds resampled); `speed` is the one over the other, between the worst and the best that
their intervals allow.

    jaxspec bench drafters --nodes 8 16 --kind chain rsd-s dyspec
    jaxspec bench drafters --prompts HumanEval.jsonl GSM8K.jsonl --out a.json --plot a.png

With `--out` each result is kept as soon as it is known, and a run that was cut goes on;
with `--repeats 0` nothing is timed, and a later run adds the times.
"""

import argparse
import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich import console as consoles
from rich import progress
from rich import table as tables

from jaxspec import decoding, digests, files, padding, prefill, pretrained, sampling
from jaxspec.bench import prompts as prompt_files
from jaxspec.bench import resampling, timing
from jaxspec.cli import drafters, options, terminal
from jaxspec.core import Params, Verifier
from jaxspec.text import encoding

BUDGETS = [4, 8, 16, 32, 64]
KINDS = "ngram suffix recycling model best-first chain specinfer rsd-c sequoia".split()
KINDS += ["rsd-s", "dyspec", "chain-shared", "rsd-c-shared", "dyspec-shared"]
FORMAT = "jaxspec drafters 2"
FILES = ["datastore", "trees", "vocabulary", "survival"]  # that drafters are made from
TIMES = [f"{name}{end}" for name in ("step", "speed") for end in ("", "_low", "_high")]
RETRIEVE = ["retrieval", "lookups", "rasd", "rasd-first"]


class Prompts(NamedTuple):
    """Rows of a batch: every prompt at every temperature."""

    tokens: jax.Array  # [R, T]
    lengths: jax.Array  # [R]
    temperature: np.ndarray  # [R]
    domain: np.ndarray  # [R] which file
    number: np.ndarray  # [R] which prompt


class Setup(NamedTuple):
    """What decodes a case."""

    generate: drafters.Loop
    params: Params
    machinery: dict[str, Any]  # target and drafter
    verifier: Verifier
    stops: list[int]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the benchmark's options."""
    parser.add_argument(
        "--prompts",
        type=pathlib.Path,
        nargs="+",
        default=[None],
        help="jsonl files of objects with `prompt`, `question` or `turns`, each a domain "
        "of its own (default: our own prompts)",
    )
    parser.add_argument(
        "--limit", type=int, nargs="+", help="read the first N prompts of each file"
    )
    parser.add_argument(
        "--longest",
        type=int,
        default=384,
        help="leave prompts of more tokens out (default: %(default)s)",
    )
    parser.add_argument(
        "--kind",
        nargs="+",
        metavar="KIND",
        help=f"which drafters (default: {' '.join(KINDS)}; with --datastore also "
        f"{' '.join(RETRIEVE)})",
    )
    parser.add_argument(
        "--nodes",
        type=int,
        nargs="+",
        default=BUDGETS,
        help="budgets (default: 4 8 16 32 64)",
    )
    parser.add_argument(
        "--verifiers",
        nargs="+",
        choices=sorted(options.VERIFIERS),
        help="which verifiers (default: recursive-rejection and traversal for what is "
        "drawn, sample-and-match for the rest)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        nargs="+",
        default=[0.0, 0.6, 1.0],
        help="temperatures (default: 0 0.6 1)",
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=64,
        help="tokens to add to each prompt (default: %(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=24,
        help="steps of one timing (default: %(default)s)",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=5,
        help="timings, of which the median counts; 0 for none (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    options.add_models(parser)
    options.add_rollback(parser, default="auto")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        help="JSON file to keep results in, and to go on from",
    )
    parser.add_argument("--plot", type=pathlib.Path, help="draw the result into a file")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )


def run(args: argparse.Namespace) -> None:
    """Runs the benchmark."""
    if args.plot:
        from jaxspec import plotting  # needs an extra: if it is missing, say so now
    options.check_positive(args, "nodes", "limit", "longest", "max_tokens", "steps")
    options.check_files(args, "out", "plot")
    tools = options.tools(args)
    names = args.kind or KINDS + (RETRIEVE if tools.datastore else [])
    for name in names:
        if name not in drafters.KINDS:
            raise ValueError(
                f"Unknown kind {name!r}; expected some of {tuple(drafters.KINDS)}."
            )
    tokenizer = pretrained.load_tokenizer(
        pretrained.find(tools.target) / "tokenizer.json"
    )
    prompts = _read(args, tokenizer)
    record = _begin(args, prompts)
    cases = [
        (name, nodes, verifier)
        for name in names
        for nodes in args.nodes
        for verifier in args.verifiers or _verifiers(name)
    ]
    columns = progress.Progress.get_default_columns()
    with progress.Progress(*columns, console=consoles.Console(stderr=True)) as bar:
        task = bar.add_task("drafters", total=len(cases))
        for case in cases:
            bar.update(task, description=" ".join(map(str, case)))
            if _measure(args, tools, prompts, record["rows"], case) and args.out:
                files.write_text(args.out, digests.seal(record))
            bar.advance(task)
    if args.plot:
        plotting.save(plotting.drafters(record), args.plot)
    if args.json:
        print(json.dumps(record))
    else:
        _print_tables(record)


def _verifiers(name: str) -> list[str]:
    draws = drafters.KINDS[name].draws
    return ["recursive-rejection", "traversal"] if draws else ["sample-and-match"]


def _read(args: argparse.Namespace, tokenizer) -> Prompts:
    """The prompts that are short enough, at every temperature."""
    limits = args.limit or [None]
    if len(limits) not in (1, len(args.prompts)):
        raise ValueError(
            f"Expected one --limit or {len(args.prompts)}, got {len(limits)}."
        )
    limits = limits * len(args.prompts) if len(limits) == 1 else limits
    ids, domain = [], []
    for number, (path, limit) in enumerate(zip(args.prompts, limits, strict=True)):
        encoded = [encoding.encode(tokenizer, text) for text in prompt_files.read(path)]
        fits = [own for own in encoded if len(own) <= args.longest][:limit]
        if not fits:
            raise ValueError(f"{path} has no prompt of up to {args.longest} tokens.")
        ids += fits
        domain += [number] * len(fits)
    tokens, lengths = padding.pad_prompts(ids)
    each = np.tile(np.arange(len(ids)), len(args.temperature))
    temperature = np.repeat(np.float32(args.temperature), len(ids))
    return Prompts(
        tokens[each], lengths[each], temperature, np.array(domain)[each], each
    )


def _begin(args: argparse.Namespace, prompts: Prompts) -> dict[str, Any]:
    """An empty record, or the one to go on with.

    Raises:
        ValueError: if that was made with other settings.
    """
    made_from = {name: getattr(args, name) for name in FILES}
    settings = {
        "domains": [path.stem if path else "own" for path in args.prompts],
        "prompts": [int((prompts.domain == i).sum()) for i in range(len(args.prompts))],
        "temperatures": args.temperature,
        "max_tokens": args.max_tokens,
        "seed": args.seed,
        "target": args.model,
        "draft": args.draft_model,
        "dtype": args.dtype,
        "rollback": args.rollback,
        "sha256": {"prompts": prompt_files.digest(np.asarray(prompts.tokens).tolist())}
        | {name: path and files.digest(path) for name, path in made_from.items()},
    }
    settings["prompts"] = [n // len(args.temperature) for n in settings["prompts"]]
    record = {"format": FORMAT, "environment": timing.environment()}
    record |= {"settings": settings, "rows": []}
    if args.out is None or not args.out.exists():
        return record
    try:
        old = digests.unseal(args.out, FORMAT)
        same = old["settings"] == settings
    except (ValueError, LookupError) as error:
        raise ValueError(
            f"{args.out} is no record of this benchmark: {files.one_line(error)}."
        ) from None
    if not same:
        raise ValueError(
            f"{args.out} was made with {old['settings']}, and this is {settings}; give "
            "another --out."
        )
    return old


def _measure(
    args, tools: drafters.Tools, prompts: Prompts, rows: list[dict], case: tuple
) -> bool:
    """Adds what is not known of a case to the rows, and says whether anything was not."""
    name, nodes, verifier = case
    mine = [row for row in rows if (row["kind"], row["nodes"], row["verifier"]) == case]
    timed = bool(mine) and all(row["step"] is not None for row in mine)
    untimed = args.repeats > 0 and not timed
    if mine and not untimed:
        return False
    made = drafters.make(f"{name}:{nodes}", tools)
    max_path = made.drafter.max_path
    target = pretrained.load(
        tools.target, tools.dtype, rollback=args.rollback, max_path=max_path
    )
    setup = Setup(
        made.generate,
        made.beside(target.params),
        {"target": target.model, "drafter": made.drafter},
        options.VERIFIERS[verifier](),
        pretrained.stop_tokens(tools.target),
    )
    if not mine:
        mine = _decode(args, setup, prompts, case)
        rows += mine
    if untimed:
        steps = {t: _step(args, setup, prompts, t) for t in args.temperature}
        for row in mine:
            low, middle, high = steps[row["temperature"]]
            row |= {"step": middle, "step_low": low, "step_high": high}
            row["speed"] = row["block_efficiency"] / middle
            row["speed_low"], row["speed_high"] = row["low"] / high, row["high"] / low
    return True


def _decode(args, setup: Setup, prompts: Prompts, case: tuple) -> list[dict[str, Any]]:
    """Decodes all rows: a record for each domain and temperature."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
        sampling.key(args.seed), jnp.arange(len(prompts.lengths))
    )
    state = prefill.init_state(
        setup.params,
        prompts.tokens,
        prompts.lengths,
        **setup.machinery,
        max_length=prompts.tokens.shape[1] + args.max_tokens,
        max_new_tokens=args.max_tokens,
        temperature=prompts.temperature,
        stops=setup.stops,
        keys=keys,
    )
    state, info = setup.generate(
        setup.params, state, **setup.machinery, verifier=setup.verifier
    )
    written = np.asarray(state.lengths - state.prompt_lengths)
    calls, drafted = np.asarray(info.target_calls), np.asarray(info.drafted)
    rows = []
    for temperature in args.temperature:
        for domain in range(len(args.prompts)):
            here = prompts.temperature == np.float32(temperature)
            here &= prompts.domain == domain
            low, middle, high = resampling.ratio(written[here], calls[here])
            rows.append(
                {
                    "kind": case[0],
                    "nodes": case[1],
                    "verifier": case[2],
                    "temperature": temperature,
                    "domain": domain,
                    "tokens": int(written[here].sum()),
                    "target_calls": int(calls[here].sum()),
                    "drafted_per_call": float(drafted[here].sum() / calls[here].sum()),
                    "block_efficiency": middle,
                    "low": low,
                    "high": high,
                    "per_prompt": (written[here] / calls[here]).round(3).tolist(),
                    "max_path": setup.machinery["drafter"].max_path,
                    **dict.fromkeys(TIMES),
                }
            )
    return rows


def _step(args, setup: Setup, prompts: Prompts, temperature: float):
    """A cycle in autoregressive steps, at batch 1: the first prompt, timed in turn."""
    room = args.steps * (setup.machinery["drafter"].max_path + 1)
    begin = {
        "max_new_tokens": room,
        "temperature": temperature,
        "max_length": prompts.tokens.shape[1] + room,
    }
    text = prompts.tokens[:1], prompts.lengths[:1]
    model, steps = setup.machinery["target"], args.steps
    plain = prefill.init_state(setup.params, *text, target=model, **begin)
    state = prefill.init_state(setup.params, *text, **setup.machinery, **begin)
    calls = {
        "autoregressive": lambda: decoding.generate(
            setup.params, plain, target=model, max_steps=steps
        ),
        "speculative": lambda: setup.generate(
            setup.params,
            state,
            **setup.machinery,
            verifier=setup.verifier,
            max_steps=steps,
        ),
    }
    found = timing.rounds(calls, args.repeats)
    return resampling.median(found["speculative"] / found["autoregressive"])


def _print_tables(record: dict[str, Any]) -> None:
    """Tokens per call and speed, a table for every domain and temperature."""
    where, settings = record["environment"], record["settings"]
    budgets = sorted({row["nodes"] for row in record["rows"]})
    console = terminal.console()
    for domain, name in enumerate(settings["domains"]):
        for temperature in settings["temperatures"]:
            table = tables.Table(
                title=f"{name}, {settings['prompts'][domain]} prompts, T = "
                f"{temperature:g}: tokens per call (speed), {where['processor']} x "
                f"{where['cores']}, {where['date']}"
            )
            table.add_column("drafter")
            table.add_column("verifier")
            for budget in budgets:
                table.add_column(str(budget), justify="right")
            here = [
                row
                for row in record["rows"]
                if row["domain"] == domain and row["temperature"] == temperature
            ]
            for kind, verifier in dict.fromkeys(
                (r["kind"], r["verifier"]) for r in here
            ):
                cells = {
                    row["nodes"]: row
                    for row in here
                    if (row["kind"], row["verifier"]) == (kind, verifier)
                }
                table.add_row(kind, verifier, *(_cell(cells.get(b)) for b in budgets))
            console.print(table)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    found = f"{row['block_efficiency']:.2f} ± {(row['high'] - row['low']) / 2:.2f}"
    if row["speed"] is not None:
        half = (row["speed_high"] - row["speed_low"]) / 2
        found += f" ({row['speed']:.2f} ± {half:.2f})"
    return found
