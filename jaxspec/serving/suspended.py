"""A text that was set aside, on disk: its row, and what was asked.

    serving.save(folder, engine.suspend(ticket))        here, in mid-sentence
    ticket = engine.resume(serving.load(folder, engine))     elsewhere

The row is a checkpoint like any other; the request and what was written are JSON beside it.
"""

import dataclasses
import json
import os
import pathlib

from jaxspec import checkpointing, files
from jaxspec.serving.engine import Engine
from jaxspec.serving.requests import Request, Suspended

_FORMAT = "jaxspec suspended 1"
_NAME = "request.json"


def save(folder: str | os.PathLike, suspended: Suspended) -> None:
    """Writes a text into a folder of its own; what is not whole cannot be read.

    Args:
        folder: made if needed.
        suspended: from `Engine.suspend` or `Engine.take`.

    Raises:
        ValueError: if the folder holds a text.
        OSError: if it cannot be written.
    """
    request = dataclasses.asdict(suspended.request)
    record = {
        "format": _FORMAT,
        "request": {name: _plain(value) for name, value in request.items()},
        "tokens": list(suspended.tokens),
        "logprobs": list(suspended.logprobs),
    }
    checkpointing.save(folder, 0, suspended.value)
    files.write_text(pathlib.Path(folder, _NAME), json.dumps(record))


def load(folder: str | os.PathLike, engine: Engine) -> Suspended:
    """Reads a text for an engine like the one that wrote it.

    Raises:
        ValueError: if it is damaged, or of another engine.
        OSError: if it is not there.
    """
    path = pathlib.Path(folder, _NAME)
    record = files.read_json(path)
    if record.get("format") != _FORMAT:
        raise ValueError(f"{path} is no {_FORMAT}.")
    value = checkpointing.restore(folder, like=engine.programs.value)
    try:
        return Suspended(
            request=Request(**record["request"]),
            tokens=tuple(record["tokens"]),
            logprobs=tuple(record["logprobs"]),
            value=value,
        )
    except (LookupError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {files.one_line(error)}.") from None


def _plain(value):
    return (
        value if isinstance(value, str | int | float | None) else list(map(int, value))
    )
