"""The command line: `jaxspec generate | bench | tune | train | convert | export | info`."""

import argparse
import os
import sys

import jax

from jaxspec import compilation
from jaxspec.bench import command as bench
from jaxspec.cli import convert, export, generate, info, options
from jaxspec.train import command as train
from jaxspec.tune import command as tune

COMMANDS = {
    "generate": generate,
    "bench": bench,
    "tune": tune,
    "train": train,
    "convert": convert,
    "export": export,
    "info": info,
}


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = argparse.ArgumentParser(
        prog="jaxspec",
        description="Speculative decoding for state-space and hybrid language models.",
        epilog="Start with `jaxspec generate --compare`.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    for name, module in COMMANDS.items():
        summary = module.__doc__.splitlines()[0]
        sub = commands.add_parser(
            name,
            help=summary,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; errors become one line.

    Returns:
        The exit status: 2 if something was wrong with the input, 1 if a text ended in
        logits that are not finite, 130 if interrupted.
    """
    args = parser().parse_args(arguments)
    compilation.keep_programs()
    try:
        options.check_integers(args)
        args.run(args)
    except FloatingPointError as error:
        print(f"jaxspec {args.command}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, OverflowError, ModuleNotFoundError) as error:
        message = " ".join(str(error).split())
        print(f"jaxspec {args.command}: {message}", file=sys.stderr)
        return 2
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        print(
            f"jaxspec {args.command}: out of memory; lower the batch or the number of "
            f"tokens. {str(error).splitlines()[0]}",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
