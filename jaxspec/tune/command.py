"""Prepares what to draft with: trees, tokens, survival, a text to retrieve from, costs.

    jaxspec tune tree --temperature 0.8 --out tree.json
    jaxspec tune vocabulary --size 1024 --out vocabulary.json
    jaxspec tune survival --temperature 1 --out survival.json
    jaxspec tune datastore --out store.safetensors
    jaxspec tune costs --drafter ngram:16 --out costs.json

In all but the last the target goes on with beginnings of Python functions, and what it
wrote is measured; the file says which, and holds what was measured beside what was chosen.
To keep what is chosen apart from what it is judged by, name the files of prompts that will
be evaluated on with `--disjoint-from`.
"""

import argparse

from jaxspec.tune import costs, datastore, survival, tree, vocabulary

SUBJECTS = {
    "tree": tree,
    "vocabulary": vocabulary,
    "survival": survival,
    "datastore": datastore,
    "costs": costs,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    subjects = parser.add_subparsers(dest="tune", required=True, metavar="subject")
    for name, module in SUBJECTS.items():
        sub = subjects.add_parser(
            name,
            help=module.__doc__.splitlines()[0],
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(sub)
        sub.set_defaults(tune=module)


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    args.tune.run(args)
