"""The prompt of a command: where it comes from, as a chat or as it is, and its tokens."""

import argparse
import pathlib
import sys
from typing import NamedTuple

from jaxspec import files
from jaxspec.drafters.lookups import LOOKUP_PATH
from jaxspec.pretrained import Folder
from jaxspec.text import chat, encoding

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


class Prompt(NamedTuple):
    """A prompt, and where its continuation ends.

    Attributes:
        text: what is printed.
        tokens: what the model reads.
        stop_tokens: tokens that end the continuation.
    """

    text: str
    tokens: list[int]
    stop_tokens: list[int]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say what the prompt is."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--prompt", help="text to continue, or - for standard input (default: a demo)"
    )
    source.add_argument(
        "--prompt-file", type=pathlib.Path, help="file with the text to continue"
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="the prompt is what a user says: render it by the model's chat template",
    )
    parser.add_argument("--system", help="what the system says first, with --chat")
    parser.add_argument(
        "--no-bos",
        action="store_true",
        help="add no special tokens to the prompt (default: those of the tokenizer, "
        "unless the prompt begins with them; with --chat the template writes its own)",
    )


def read(args: argparse.Namespace, target: Folder) -> Prompt:
    """Reads the prompt, renders it if it is a conversation, and encodes it.

    Raises:
        ValueError: if it is empty, not UTF-8, too long for --max-tokens, or a conversation
            that the model has no template for.
    """
    text, stops, tokenizer = _text(args), [*target.stops], target.tokenizer
    if args.chat:
        template = chat.load(target.path)
        system = [] if args.system is None else [_message("system", args.system)]
        text = chat.render(template, [*system, _message("user", text)])
        end = tokenizer.token_to_id(template.special_tokens.get("eos_token", ""))
        stops = stops if end in (None, *stops) else [*stops, end]
    is_added = not (args.chat or args.no_bos)
    ids = encoding.encode(tokenizer, text, add_special_tokens=is_added)
    if not ids:
        raise ValueError("The prompt is empty; expected at least one token.")
    room = 2**31 - 1 - len(ids) - 2 * LOOKUP_PATH
    if args.max_tokens > room:
        raise ValueError(
            f"--max-tokens must be at most {room} after a prompt of {len(ids)} tokens, "
            f"got {args.max_tokens}."
        )
    return Prompt(text, ids, stops)


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _text(args: argparse.Namespace) -> str:
    """The text that the options name.

    Raises:
        ValueError: if it is not UTF-8.
    """
    if args.prompt is None and args.prompt_file is None:
        return DEMO_PROMPT
    if args.prompt_file is not None:
        return files.read_text(args.prompt_file)
    try:
        text = sys.stdin.read() if args.prompt == "-" else args.prompt
        text.encode()  # bytes of the command line that are not UTF-8 arrive as surrogates
        return text
    except UnicodeError as error:
        raise ValueError(f"--prompt is not UTF-8: {files.one_line(error)}.") from None
