"""Prompts to benchmark with: our own, or any jsonl of `prompt`, `question` or `turns`."""

import hashlib
import importlib.resources
import pathlib
from collections.abc import Sequence

from jaxspec import files


def read(path: str | pathlib.Path | None = None) -> list[str]:
    """Reads prompts, our own by default.

    Raises:
        ValueError: naming the line that is not a prompt.
    """
    if path is None:
        assets = importlib.resources.files("jaxspec.assets")
        text = pathlib.Path(str(assets / "prompts.jsonl"))
    else:
        text = pathlib.Path(path)
    # Not `splitlines`, which also cuts at characters that JSON strings may hold.
    lines = files.read_text(text).split("\n")
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            prompts.append(_prompt(files.parse_json(line, "it")))
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ValueError(
                f"{path or 'prompts.jsonl'} line {number} is no JSON object with "
                "`prompt`, `question` or `turns`."
            ) from None
    if not prompts:
        raise ValueError(f"{path} holds no prompts.")
    return prompts


def _prompt(record: dict) -> str:
    text = record.get("prompt", record.get("question"))
    if text is None and isinstance(record["turns"], list):
        text = record["turns"][0]
    if not isinstance(text, str) or not text:
        raise TypeError
    return text


def digest(prompts: Sequence[Sequence[int]]) -> str:
    """SHA-256 of prompts as tokens: equal if and only if all tokens are."""
    lines = (" ".join(map(str, prompt)) for prompt in prompts)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
