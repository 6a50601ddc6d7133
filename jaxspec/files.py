"""Writing files so that nobody ever meets half of one."""

import os
import pathlib


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file beside its final name, and moves it into place."""
    path = pathlib.Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)
