"""Prompts to benchmark with: our own, or any jsonl of `prompt`, `question` or `turns`."""

import importlib.resources
import json
import pathlib


def read(path: str | pathlib.Path | None = None) -> list[str]:
    """Reads prompts, our own by default.

    Raises:
        ValueError: naming the line that is not a prompt.
    """
    if path is None:
        text = importlib.resources.files("jaxspec.assets").joinpath("prompts.jsonl")
        lines = text.read_text().splitlines()
    else:
        lines = pathlib.Path(path).read_text().splitlines()
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            prompts.append(_prompt(json.loads(line)))
        except (json.JSONDecodeError, KeyError, IndexError, TypeError):
            raise ValueError(
                f"{path} line {number} is no JSON object with `prompt`, `question` or "
                "`turns`."
            ) from None
    if not prompts:
        raise ValueError(f"{path} holds no prompts.")
    return prompts


def _prompt(record: dict) -> str:
    text = record.get("prompt", record.get("question"))
    text = record["turns"][0] if text is None else text
    if not isinstance(text, str) or not text:
        raise TypeError
    return text
