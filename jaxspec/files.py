"""Reading and writing files: text and JSON in one line of error, nothing half written."""

import collections
import contextlib
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any

DEPTH = 100
"""Levels of nesting that JSON may have; no file that is read here has ten."""


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file beside its final name, and moves it into place."""
    write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file beside its final name, and moves it into place."""
    with replacing(path) as partial:
        partial.write_bytes(data)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a path beside a file's; what is written there takes the file's place.

    Where an error is raised, the file stays as it was.
    """
    path = pathlib.Path(path)
    partial = path.with_name(path.name + ".partial")
    yield partial
    os.replace(partial, path)


def digest(path: str | os.PathLike) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's files."""
    path = pathlib.Path(path)
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    found = sorted(own for own in path.rglob("*") if own.is_file())
    lines = (f"{own.relative_to(path)} {digest(own)}\n" for own in found)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_text(path: str | os.PathLike) -> str:
    """Reads a text file, its line ends as they are.

    Raises:
        ValueError: if it is not UTF-8.
        OSError: if there is no such file, or it cannot be read.
    """
    try:
        return pathlib.Path(path).read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text: {error.reason} at byte {error.start}."
        ) from None


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Raises:
        ValueError: naming the file, if it is not JSON or holds something else.
        OSError: if there is no such file, or it cannot be read.
    """
    record = parse_json(read_text(path), str(path))
    if not isinstance(record, dict):
        raise ValueError(f"{path} must hold an object, got {type(record).__name__}.")
    return record


def parse_json(text: str, name: str) -> Any:
    """Parses JSON; infinity may be written as Python writes it, as published configs do.

    Args:
        text: any text.
        name: of its source, for the error.

    Raises:
        ValueError: on malformed text, names given twice, NaN, floats beyond float64, or
            more than `DEPTH` levels.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_float=_float,
            parse_constant=_constant,
        )
        _check_depth(value, DEPTH)
    except RecursionError:
        raise ValueError(f"{name} is not JSON: it is nested too deeply.") from None
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {one_line(error)}.") from None
    return value


def one_line(error: BaseException) -> str:
    """The message of an error without breaks and full stop; its type if it has none."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = collections.Counter(name for name, _ in pairs)
        raise ValueError(f"an object names {names.most_common(1)[0][0]!r} twice")
    return record


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits[:20]} is beyond float64")
    return value


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("it has a NaN")
    return float(name)


def _check_depth(value: Any, left: int) -> None:
    if left == 0:
        raise RecursionError
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return
    for own in value:
        _check_depth(own, left - 1)
