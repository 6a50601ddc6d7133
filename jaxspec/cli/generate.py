"""Continues a prompt, speculatively.

Text streams to the terminal as it is decoded: what a draft supplied is green, the
target's own tokens are plain. With `--compare` the same text is decoded autoregressively
too, and the table says how much faster speculation was and whether the texts agree.

    jaxspec generate --prompt 'def read_lines(path):' --compare
    jaxspec generate --prompt-file draft.py --temperature 0.8 --seed 3
    echo 'class Stack:' | jaxspec generate --prompt - --drafter model:3,2,1 --json
"""

import argparse
import json
import pathlib
import sys
import time
from typing import Any

import jax
import numpy as np
from rich import console as consoles
from rich import table as tables
from rich import text as texts

from jaxspec import decode_state, decoding, files, metrics, pretrained, sampling
from jaxspec.cli import options

DEMO_PROMPT = '''\
import os


def count_lines(path):
    """Returns the number of lines in a file."""
    with open(path) as file:
        return sum(1 for line in file)


def count_words(path):
    """Returns the number of words in a file."""
    with open(path) as file:
'''
STREAM_STEPS = 4  # steps of the loop between two looks at it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--prompt", help="text to continue, or - for standard input (default: a demo)"
    )
    source.add_argument(
        "--prompt-file", type=pathlib.Path, help="file with the text to continue"
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=128,
        help="tokens to add at most; the end of text ends sooner (default: %(default)s)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        help="0 is greedy (default: %(default)s)",
    )
    options.add_sampling(parser)
    parser.add_argument(
        "--drafter",
        default="ngram:8",
        metavar="KIND:SHAPE",
        help="what proposes: " + options.DRAFTER_HELP + ", or none, which is "
        "autoregressive (default: %(default)s)",
    )
    options.add_models(parser)
    options.add_verifier(parser)
    options.add_rollback(parser, default="auto")
    parser.add_argument(
        "--batch",
        type=int,
        default=1,
        help="continuations of the same prompt, each with noise of its own",
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="also decode autoregressively, and compare",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    options.check_positive(args, "batch")
    speculative = args.drafter != "none"
    drafter = args.drafter if speculative else "ngram"
    setup = options.load(args, drafter, args.rollback)
    tokenizer = setup.target.tokenizer
    ids = tokenizer.encode(_read_prompt(args)).ids
    prompt, lengths = decode_state.pad_prompts([ids] * args.batch)
    settings = {
        "target": setup.target.model,
        "max_new_tokens": args.max_tokens,
        "temperature": args.temperature,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "stops": pretrained.stop_tokens(args.model),
        "keys": sampling.key(args.seed),
    }

    def start(drafter):
        return decode_state.init_state(
            setup.params, prompt, lengths, drafter=drafter, **settings
        )

    def decode(state, steps=None):
        if not speculative:
            done = decoding.generate(
                setup.params, state, target=setup.target.model, max_steps=steps
            )
            return done, None
        return setup.generate(
            setup.params,
            state,
            target=setup.target.model,
            drafter=setup.drafter,
            verifier=options.VERIFIERS[args.verifier](),
            max_steps=steps,
        )

    drafter = setup.drafter if speculative else None
    if not args.json:
        _stream(decode, start(drafter), tokenizer)
    (state, info), seconds = _timed(decode, start(drafter))
    record = _record(state, info, seconds, tokenizer)
    if args.compare:
        (baseline, _), ar_seconds = _timed(
            lambda state: (
                decoding.generate(setup.params, state, target=setup.target.model),
                None,
            ),
            start(None),
        )
        record |= _compare(setup, state, baseline, record, ar_seconds)
    if args.json:
        print(json.dumps(record))
    else:
        _print_table(record)


def _read_prompt(args: argparse.Namespace) -> str:
    if args.prompt_file is not None:
        return files.read_text(args.prompt_file)
    if args.prompt == "-":
        return sys.stdin.read()
    return DEMO_PROMPT if args.prompt is None else args.prompt


def _timed(decode, state) -> tuple[Any, float]:
    """Decodes once to compile and once against the clock."""
    jax.block_until_ready(decode(state))
    started = time.perf_counter()
    result = jax.block_until_ready(decode(state))
    return result, time.perf_counter() - started


def _stream(decode, state: decode_state.DecodeState, tokenizer) -> None:
    """Prints row 0 as it grows, a few steps of the loop at a time."""
    console = consoles.Console()
    start = int(state.prompt_lengths[0])
    prompt = tokenizer.decode(state.tokens[0, :start].tolist())
    console.print(texts.Text(prompt, style="dim"), end="")
    shown, printed, report = 0, "", None
    while not bool(state.done.all()):
        state, info = decode(state, STREAM_STEPS)
        report = info if report is None else report + info
        tokens = state.tokens[0, start : int(state.lengths[0])].tolist()
        drafted = [0] * len(tokens)
        if report is not None:
            drafted = report.from_draft[0, start:].tolist()
        line = texts.Text()
        for i in range(shown, len(tokens)):
            text = tokenizer.decode(tokens[: i + 1])
            if text.endswith("\ufffd") and i + 1 < int(state.limits[0]) - start:
                continue  # the rest of a character is yet to come
            line.append(text[len(printed) :], style="green" if drafted[i] else "")
            printed = text
        console.print(line, end="", soft_wrap=True)
        shown = len(tokens)
    legend = texts.Text("\n\n").append("green", style="green")
    console.print(legend.append(" from a draft, the rest the target's own\n"))


def _record(state, info, seconds: float, tokenizer) -> dict[str, Any]:
    rows = []
    for tokens, start, length in zip(
        np.asarray(state.tokens),
        np.asarray(state.prompt_lengths),
        np.asarray(state.lengths),
        strict=True,
    ):
        rows.append(tokens[start:length].tolist())
    generated = sum(map(len, rows))
    calls = generated if info is None else int(info.target_calls.sum())
    record = {
        "text": tokenizer.decode(rows[0]),
        "tokens": rows[0],
        "prompt_tokens": int(state.prompt_lengths[0]),
        "generated_tokens": generated,
        "target_calls": calls,
        "block_efficiency": 1.0 if info is None else metrics.block_efficiency(info),
        "accepted_per_step": 0.0 if info is None else metrics.accepted_per_step(info),
        "seconds": seconds,
        "tokens_per_second": generated / seconds,
    }
    if len(rows) > 1:
        record["texts"] = [tokenizer.decode(row) for row in rows]
    return record


def _compare(setup, state, baseline, record, seconds: float) -> dict[str, Any]:
    agreements = [
        metrics.compare(setup.target.model, setup.target.params, baseline, state, row)
        for row in range(len(state.lengths))
    ]
    generated = int((baseline.lengths - baseline.prompt_lengths).sum())
    speed = generated / seconds
    return {
        "autoregressive": {
            "tokens_per_second": speed,
            "identical": all(a.identical for a in agreements),
            "near_ties": sum(a.near_tie for a in agreements),
        },
        "speedup": record["tokens_per_second"] / speed,
    }


def _print_table(record: dict[str, Any]) -> None:
    table = tables.Table(show_header=False, box=None)
    table.add_row("tokens", str(record["generated_tokens"]))
    table.add_row("target calls", str(record["target_calls"]))
    table.add_row(
        "block efficiency", f"{record['block_efficiency']:.2f} tokens per call"
    )
    table.add_row("speed", f"{record['tokens_per_second']:.0f} tokens/s")
    if "autoregressive" in record:
        baseline = record["autoregressive"]
        speed = baseline["tokens_per_second"]
        table.add_row("autoregressive", f"{speed:.0f} tokens/s")
        table.add_row("speedup", f"{record['speedup']:.2f} x")
        ties = baseline["near_ties"]
        same = "yes" if baseline["identical"] else f"no, {ties} part at a near tie"
        table.add_row("texts agree", same)
    consoles.Console().print(table)
