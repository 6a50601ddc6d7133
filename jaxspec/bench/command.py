"""Measures: `decode` and `drafters` over prompts, the others one step or kernel at a time.

    jaxspec bench decode --plot speed.png
    jaxspec bench drafters --nodes 8 16 --kind chain rsd-s dyspec
    jaxspec bench decode --prompts HumanEval.jsonl --drafter ngram:8 --drafter model:3,2,1
    jaxspec bench rollback --batch 1 8 32

Every time is a ratio to the autoregressive loop in the same run, on the same machine,
with the same weights and compiler options, after a warm-up. `verify` and `kernels` are for
an accelerator; `compile` and `cycles` need none to say what one would run.
`serving` times an engine, `load` has it serve, `goodput` compares its policies; `convert`
measures disk and memory.
"""

import argparse

from jaxspec.bench import (
    compile,
    convert,
    cycles,
    decode,
    drafters,
    goodput,
    kernels,
    load,
    rollback,
    serving,
    verify,
)

MODULES = (
    decode,
    drafters,
    serving,
    rollback,
    verify,
    kernels,
    load,
    goodput,
    cycles,
    compile,
    convert,
)
BENCHMARKS = {module.__name__.rpartition(".")[2]: module for module in MODULES}
"""A benchmark's name is its file's."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    benchmarks = parser.add_subparsers(dest="bench", required=True, metavar="benchmark")
    for name, module in BENCHMARKS.items():
        sub = benchmarks.add_parser(
            name,
            help=module.__doc__.splitlines()[0],
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(sub)
        sub.set_defaults(bench=module)


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    args.bench.run(args)
