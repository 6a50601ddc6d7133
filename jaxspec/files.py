"""Writing files so that nobody ever meets half of one."""

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
