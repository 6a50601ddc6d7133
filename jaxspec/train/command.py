"""Trains the models that ship, on the standard library of this Python.

    jaxspec train target --out runs/target
    jaxspec train draft --out runs/draft --teacher runs/target/export
    jaxspec train target --layers MMMM --teacher stdlib-8m --out runs/mamba2

A run that was killed goes on when the command is given again. At the end `export/` holds
what `jaxspec generate --model` takes, with a card, the loss curve, and a manifest of the
files that were read, with their SHA-256.
"""

import argparse
import dataclasses
import json
import pathlib
import shlex
import shutil

import tokenizers

from jaxspec import files, pretrained, tokenizer_files
from jaxspec.cli import options
from jaxspec.models import forms
from jaxspec.train import card, corpus, loop, recipes
from jaxspec.train import tokenizer as bpe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("recipe", choices=sorted(recipes.RECIPES), help="which model")
    parser.add_argument(
        "--out", type=pathlib.Path, required=True, help="folder of the run"
    )
    parser.add_argument(
        "--teacher",
        help="model to distil, by name or folder: its tokenizer, and its laws instead of "
        "the text",
    )
    parser.add_argument(
        "--stdlib", type=pathlib.Path, help="read this standard library instead"
    )
    parser.add_argument(
        "--layers",
        help="other blocks of the recipe's widths, as in `ModelConfig` (default: the "
        "recipe's)",
    )
    for name in ("steps", "batch-size", "length", "seed"):
        parser.add_argument(f"--{name}", type=int, help="(default: the recipe's)")
    parser.add_argument("--learning-rate", type=float, help="(default: the recipe's)")
    parser.add_argument(
        "--save-every",
        type=int,
        default=500,
        help="steps between checkpoints (default: %(default)s)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the result as JSON, no progress bar"
    )


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    from jaxspec import plotting  # needs an extra: if it is missing, say so now

    options.check_positive(
        args, "steps", "batch_size", "length", "learning_rate", "save_every"
    )
    recipe = _recipe(args)
    record = dataclasses.asdict(recipe)
    args.out.mkdir(parents=True, exist_ok=True)
    modules = corpus.read_modules(args.stdlib)
    _same_or_new(args.out / "manifest.json", corpus.manifest(modules))

    teacher = None
    if args.teacher:
        loaded = pretrained.load(args.teacher)
        teacher = loop.Teacher(loaded.model, loaded.params)
        tokenizer = loaded.tokenizer
        if loaded.model.vocab_size != recipe.config.vocab_size:
            raise ValueError(
                f"The teacher has {loaded.model.vocab_size} tokens and the model "
                f"{recipe.config.vocab_size}."
            )
        record["teacher_sha256"] = files.digest(loaded.folder.path)
    _same_or_new(args.out / "recipe.json", record)
    if teacher is None:
        tokenizer = _tokenizer(args.out, modules, recipe)
    if tokenizer.get_vocab_size() > recipe.config.vocab_size:
        raise ValueError(
            f"The tokenizer has {tokenizer.get_vocab_size()} tokens and the model "
            f"{recipe.config.vocab_size}."
        )
    data = loop.encode(modules, tokenizer)
    params = loop.train(
        recipe,
        data,
        args.out,
        teacher=teacher,
        save_every=args.save_every,
        quiet=args.json,
    )
    pretrained.save(args.out / "export", recipe.config, params, tokenizer)
    log = loop.read_log(args.out / "log.jsonl")
    result = _report(args, recipe, modules, log)
    curve = plotting.loss_curve(log, result["gzip_bits_per_byte"], recipe.name)
    plotting.save(curve, args.out / "export" / "curve.png")
    print(json.dumps(result) if args.json else _describe(result))


def _recipe(args: argparse.Namespace) -> recipes.Recipe:
    names = ("steps", "batch_size", "length", "seed", "learning_rate")
    changes = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
    recipe = dataclasses.replace(recipes.RECIPES[args.recipe], **changes)
    if args.layers is None:
        return recipe
    config = dataclasses.replace(recipe.config, layers=args.layers)
    return dataclasses.replace(recipe, name=f"stdlib-{args.layers}", config=config)


def _same_or_new(path: pathlib.Path, record: dict) -> None:
    """Writes what a run was started with; a run that goes on must agree."""
    text = json.dumps(record, indent=1, sort_keys=True)
    if path.exists() and path.read_bytes() != text.encode():
        raise ValueError(
            f"{path} was written by a run with other settings or text; choose another "
            "--out."
        )
    files.write_text(path, text)


def _tokenizer(
    folder: pathlib.Path, modules: list[corpus.Module], recipe: recipes.Recipe
) -> tokenizers.Tokenizer:
    path = folder / tokenizer_files.NAME
    if not path.exists():
        texts = (m.text for m in modules if not m.held_out)
        trained = bpe.train(texts, recipe.config.vocab_size)
        files.write_text(path, trained.to_str())
    return tokenizer_files.load(folder)


def _report(
    args: argparse.Namespace,
    recipe: recipes.Recipe,
    modules: list[corpus.Module],
    log: list[dict],
) -> dict:
    """Sums the run up, for the terminal and for who gets the export."""
    out = args.out
    gzip = corpus.gzip_bits_per_byte([m.text for m in modules if m.held_out])
    export = out / "export"
    shutil.copy(out / "manifest.json", export)
    evaluated = [record for record in log if "held_out_bits_per_byte" in record]
    if not evaluated:
        raise ValueError(f"{out / 'log.jsonl'} has no held-out loss: it is not whole.")
    held = evaluated[-1]
    result = {
        "name": recipe.name,
        "layers": recipe.config.layers,
        "parameters": forms.count(recipe.config),
        "steps": held["step"],
        "held_out_bits_per_byte": held["held_out_bits_per_byte"],
        "gzip_bits_per_byte": gzip,
        "export": str(export),
    }
    manifest = files.read_json(out / "manifest.json")
    text = card.write(recipe, result, manifest, bool(args.teacher), _again(args))
    files.write_text(export / "card.md", text)
    return result


def _again(args: argparse.Namespace) -> str:
    """The command, but for its defaults."""
    names = ("layers", "teacher", "steps", "batch_size", "length", "seed")
    words = [f"jaxspec train {args.recipe} --out {shlex.quote(str(args.out))}"]
    for name in (*names, "learning_rate"):
        if (value := getattr(args, name)) is not None:
            words.append(f"--{name.replace('_', '-')} {shlex.quote(str(value))}")
    return " ".join(words)


def _describe(result: dict) -> str:
    ratio = result["held_out_bits_per_byte"] / result["gzip_bits_per_byte"]
    return (
        f"{result['name']}: {result['parameters'] / 1e6:.2f} M parameters, "
        f"{result['steps']} steps, {result['held_out_bits_per_byte']:.3f} bits per byte "
        f"held out ({ratio:.2f} x gzip -9), in {result['export']}"
    )
