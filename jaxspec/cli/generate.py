"""Continues a prompt, speculatively.

Text streams to standard output as it is decoded: on a terminal with colours, a draft's
tokens are green and the target's own plain. Statistics go to standard error. With
`--compare` the same text is decoded autoregressively too, and the table says how much
faster speculation was and whether the texts agree. The first run with a model and a drafter
compiles for some seconds; later ones find the programs in the cache.

    jaxspec generate --prompt 'def read_lines(path):' --compare
    jaxspec generate --prompt-file draft.py --temperature 0.8 --seed 3
    jaxspec generate --prompt 'def add(a, b):' --stop 'def ' --stop 'class '
    echo 'class Stack:' | jaxspec generate --prompt - --drafter model:3,2,1 --json
    jaxspec generate --model granite --chat --system 'Be brief.' --prompt 'What is a tree?'

`--json` prints one object: `text`, without the stop that ended it; `finish_reason`, which
is `stop` (a stop string, or the end of text), `length` (the budget) or `error` (logits that
are not finite; the status is 1 then); `tokens`; and what decoding them took.
"""

import argparse
import functools
import json
from typing import Any

import jax
import tokenizers

from jaxspec import decoding, padding, prefill, pretrained, sampling
from jaxspec.cli import following, options, prompting, report, terminal
from jaxspec.cli.prompting import Prompt
from jaxspec.decode_state import DecodeState
from jaxspec.drafters.sources import Setup
from jaxspec.text.continuation import Continuation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    prompting.add_arguments(parser)
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=128,
        help="tokens to add at most; the end of text ends sooner (default: %(default)s)",
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text, wherever it lies in the tokens; may be repeated",
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
    _check(args)
    is_speculative = args.drafter != "none"
    target = pretrained.read(args.model, args.dtype)
    made = options.make(args, args.drafter if is_speculative else "ngram", target)
    prompt = prompting.read(args, target)
    screen = terminal.Screen(is_quiet=args.json)
    loop = f"loop with {args.drafter}" if is_speculative else "autoregressive loop"
    screen.say(f"Compiling {args.model}: the pass over the prompt, then the {loop}.")
    screen.write(prompt.text, "dim")
    setup = made.beside(target.load(rollback=args.rollback))
    state = _start(args, setup, prompt, setup.drafter if is_speculative else None)
    decode = _speculatively(args, setup) if is_speculative else _plainly(setup)
    found = following.follow(
        decode,
        state,
        _readers(args, target.tokenizer, prompt),
        lambda piece, is_draft: screen.write(piece, "green" if is_draft else ""),
    )
    screen.write("\n")
    if is_speculative and screen.has_colours:
        screen.say("\nGreen is from a draft, the rest the target's own.")
    record = report.record(found)
    if args.compare and found.not_finite is None:
        screen.say("Compiling the autoregressive loop, to compare.")
        plain = _without_drafter(setup, state) or _start(args, setup, prompt, None)
        readers = _readers(args, target.tokenizer, prompt)
        baseline = following.follow(_plainly(setup), plain, readers)
        record |= report.compare(setup.target, baseline, found)
    if args.json:
        print(json.dumps(record))
    else:
        report.print_table(record)
    report.check_finite(found)


def _check(args: argparse.Namespace) -> None:
    """Refuses options that cannot be meant, before anything is printed."""
    options.check_positive(args, "batch", "max_tokens")
    options.check_sampling(args)
    if "" in args.stop:
        raise ValueError("--stop must not be empty.")
    if args.system is not None and not args.chat:
        raise ValueError("--system is a part of a conversation; give --chat too.")


def _readers(
    args: argparse.Namespace, tokenizer: tokenizers.Tokenizer, prompt: Prompt
) -> list[Continuation]:
    """An empty continuation of the prompt for each row."""
    return [
        Continuation(
            tokenizer,
            prompt.tokens,
            stop_tokens=prompt.stop_tokens,
            stop_strings=args.stop,
        )
        for _ in range(args.batch)
    ]


def _start(
    args: argparse.Namespace,
    setup: Setup,
    prompt: Prompt,
    drafter: Any,
) -> DecodeState:
    """The state after the prompt."""
    tokens, lengths = padding.pad_prompts([prompt.tokens] * args.batch)
    return prefill.init_state(
        setup.params,
        tokens,
        lengths,
        target=setup.target.model,
        drafter=drafter,
        max_new_tokens=args.max_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        stops=prompt.stop_tokens,
        keys=sampling.key(args.seed),
    )


def _without_drafter(setup: Setup, state: DecodeState) -> DecodeState | None:
    """The state for the autoregressive loop, where it needs no pass over the prompt.

    None where the carry holds a ring or pending tokens, for which a baseline must not pay.
    """
    model, (batch, width) = setup.target.model, state.tokens.shape
    plain = jax.eval_shape(
        lambda params: model.init_carry(params, batch, width - model.max_path, False),
        setup.params.target,
    )

    def shapes(carry):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), carry)

    same = shapes(plain) == shapes(state.carry)
    return state.replace(drafter=None) if same else None


def _plainly(setup: Setup) -> following.Decode:
    """A few steps of the loop without drafts."""

    def decode(state):
        state = decoding.generate(
            setup.params,
            state,
            target=setup.target.model,
            max_steps=following.STEPS,
        )
        return state, None

    return decode


def _speculatively(args: argparse.Namespace, setup: Setup) -> following.Decode:
    """A few steps of the loop with drafts."""
    return functools.partial(
        setup.generate,
        setup.params,
        target=setup.target.model,
        drafter=setup.drafter,
        verifier=options.VERIFIERS[args.verifier](),
        max_steps=following.STEPS,
    )
