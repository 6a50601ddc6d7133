"""Writing files so that nobody ever meets half of one, and telling them apart."""

import hashlib
import os
import pathlib


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file beside its final name, and moves it into place."""
    write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file beside its final name, and moves it into place."""
    path = pathlib.Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
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
