"""SHA-256 of what jaxspec writes: a table in each of its folders, a field in its records.

`SHA256SUMS` has a line per file, `digest  name`, as coreutils write it, so that
`sha256sum --check SHA256SUMS` sees what loading sees. Files are read in a stream, which
leaves them in the system's cache for the reader that comes next.
"""

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from jaxspec import files

TABLE = "SHA256SUMS"
SKIP = "JAXSPEC_SKIP_DIGESTS"
"""The environment variable that, set to 1, loads files without reading them twice."""

_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def write(folder: pathlib.Path, names: Iterable[str] | None = None) -> None:
    """Writes the table of a folder, atomically.

    Args:
        folder: of the files, and of the table.
        names: the files; all in the folder and below by default.
    """
    names = _all(folder) if names is None else names
    _write(folder, {name: files.digest(folder / name) for name in names})


def add(folder: pathlib.Path, names: Iterable[str]) -> None:
    """Enters files into the table of a folder, atomically; a damaged one begins anew."""
    try:
        table = _read(folder / TABLE)
    except (OSError, ValueError):
        table = {}
    _write(folder, table | {name: files.digest(folder / name) for name in names})


def check(folder: pathlib.Path, names: Sequence[str] | None = None) -> None:
    """Compares files with the table of their folder.

    Args:
        folder: of the table.
        names: the files; all that the table names by default.

    Raises:
        ValueError: naming the first that is missing, not in the table, or changed; or if
            there is no table, or it is damaged.
    """
    if (found := problem(folder, names)) is not None:
        raise ValueError(found)


def has(folder: pathlib.Path, name: str) -> bool:
    """Tells whether the table of a folder names a file; users may add others."""
    table = folder / TABLE
    return table.is_file() and f"  {name}\n" in files.read_text(table)


def problem(
    folder: pathlib.Path,
    names: Sequence[str] | None = None,
    share: slice = slice(None),
) -> str | None:
    """Describes the first fault of a folder's files in one line; None if there is none.

    Args:
        folder: of the table.
        names: the files; all that the table names by default.
        share: of the files in order, for one of several processes that see the folder.
    """
    if os.environ.get(SKIP) == "1":
        return None
    if not (folder / TABLE).is_file():
        return (
            f"{folder} has no {TABLE}: it is not whole, or was made before there were "
            "digests; convert, train or save it again."
        )
    try:
        table = _read(folder / TABLE)
    except (OSError, ValueError) as error:
        return f"{folder / TABLE} is damaged: {files.one_line(error)}."
    for name in (list(table) if names is None else names)[share]:
        if name not in table:
            return f"{folder / TABLE} does not name {name}."
        if not (folder / name).is_file():
            return f"{folder / name} is missing, which {TABLE} names."
        if (found := files.digest(folder / name)) != table[name]:
            return (
                f"{folder / name} is damaged: its SHA-256 is {found[:12]}.., and "
                f"{TABLE} says {table[name][:12]}..."
            )
    return None


def seal(record: dict[str, Any]) -> str:
    """JSON of a record with a field `format`, behind a field `sha256`: the digest of it."""
    return json.dumps({"sha256": _digest(record), **record}) + "\n"


def unseal(path: str | os.PathLike, kind: str) -> dict[str, Any]:
    """Reads a record that `seal` wrote.

    Args:
        path: of the file.
        kind: what its field `format` must be.

    Raises:
        ValueError: naming the file, if it is not JSON, is not as it was written, or is of
            another format.
        OSError: if there is no such file, or it cannot be read.
    """
    record = files.read_json(path)
    sealed = record.pop("sha256", None)
    if record.get("format") != kind:
        raise ValueError(
            f"{path} has format {record.get('format')!r}, expected {kind!r}: write it "
            "again with the command that made it."
        )
    if sealed != _digest(record) and os.environ.get(SKIP) != "1":
        raise ValueError(f"{path} is damaged: its sha256 is another.")
    return record


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def _all(folder: pathlib.Path) -> list[str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    names = (path.relative_to(folder).as_posix() for path in found)
    return [name for name in names if name != TABLE]


def _write(folder: pathlib.Path, table: dict[str, str]) -> None:
    lines = (f"{digest}  {name}\n" for name, digest in sorted(table.items()))
    files.write_text(folder / TABLE, "".join(lines))


def _read(path: pathlib.Path) -> dict[str, str]:
    table = {}
    for number, line in enumerate(files.read_text(path).splitlines(), 1):
        match = _LINE.fullmatch(line)
        if match is None or match[2] in table:
            raise ValueError(f"line {number} is no digest and name")
        table[match[2]] = match[1]
    if not table:
        raise ValueError("it is empty")
    return table
