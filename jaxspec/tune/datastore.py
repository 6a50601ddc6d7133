"""Makes a text to retrieve from: the standard library, and what the target makes of it.

    jaxspec tune datastore --out store.safetensors

Documents are the modules of the standard library that training did not hold out (or the
files that `--text` names), and texts that the target writes from beginnings of their
functions. They are sorted once, here; `--drafter retrieval` and `rasd` search them on the
device. A text that holds a prompt to be evaluated on is left out and counted.

The file is read by `jaxspec.drafting.datastore.load`.
"""

import argparse
import json
import pathlib

from rich import console as consoles
from rich import progress

from jaxspec import files, pretrained
from jaxspec.cli import terminal
from jaxspec.drafting import datastore
from jaxspec.measure import prompts as prompt_files
from jaxspec.measure import timing
from jaxspec.train import corpus
from jaxspec.tune import calibration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the subject's options."""
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("datastore.safetensors"),
        help="file to write (default: %(default)s)",
    )
    parser.add_argument(
        "--text",
        type=pathlib.Path,
        nargs="+",
        help="text files to take instead of the standard library, one document each",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        help="of the texts that the target writes (default: %(default)s)",
    )
    calibration.add_arguments(parser)
    parser.set_defaults(prompts=192)
    parser.add_argument(
        "--json", action="store_true", help="print what was found and nothing else"
    )


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    calibration.check(args)
    target = pretrained.load(args.model, args.dtype)
    if args.text:
        texts = [files.read_text(path) for path in args.text]
    else:
        modules = corpus.read_modules(args.stdlib)
        texts = [module.text for module in modules if not module.held_out]
    text = calibration.Text.of(args, target.tokenizer)
    columns = progress.Progress.get_default_columns()
    with progress.Progress(*columns, console=consoles.Console(stderr=True)) as bar:
        task = bar.add_task("texts of the target", total=len(text.prompts))
        written = calibration.generate_texts(
            target,
            text.prompts,
            max_new_tokens=args.max_tokens,
            temperature=args.temperature,
            stops=target.stops,
            batch=args.batch,
            seed=args.seed,
            advance=lambda count: bar.advance(task, count),
        )
    texts += [target.tokenizer.decode(tokens) for tokens in written]
    evaluated = [
        prompt.strip()
        for path in (None, *args.disjoint_from)
        for prompt in prompt_files.read(path)
    ]
    apart = [own for own in texts if not any(prompt in own for prompt in evaluated)]
    documents = [target.tokenizer.encode(own).ids for own in apart]
    store = datastore.build(documents)
    datastore.save(args.out, store, target.tokenizer)
    record = {
        "environment": timing.environment(),
        "target": str(args.model),
        "temperature": args.temperature,
        "text": text.record(args),
        "documents": len(documents),
        "left_out": len(texts) - len(apart),
        "tokens": int(len(store.tokens)),
        "sha256": prompt_files.digest(documents),
    }
    if args.json:
        print(json.dumps(record))
        return
    terminal.console().print(
        f"{record['documents']} documents of {record['tokens']} tokens in {args.out}, "
        f"SHA-256 {record['sha256']}; {record['left_out']} left out that hold a prompt to "
        "be evaluated on."
    )
