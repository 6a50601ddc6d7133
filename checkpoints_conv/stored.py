"""What `convert` writes: a folder with one small Orbax checkpoint per part of a model.

    config.json      jaxspec's
    source.json      the published configs as they were, the family, and the tokens that
                     end a text
    tokenizer.json
    tokenizer_config.json  chat_template.jinja   as published, where there are any
    params/embed  params/layers.0  ...  params/final_norm  params/lm_head
    params/mtp.pair  params/mtp.layers.0  ...  params/mtp.final_norm, where config.mtp is
    params/kept   what jaxspec has no use for, and `export` writes back
    SHA256SUMS    of the files beside it; every part has its own

A part is written under another name, with the digests of its files, and renamed when it is
whole, so what has its name is whole, and a model is read and written with one part in
memory beside what it comes from or goes to.
"""

import pathlib
import shutil
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from jaxspec import digests, files

PARAMS, SOURCE, KEPT, MTP = "params", "source.json", "kept", "mtp."
CHAT = ("tokenizer_config.json", "chat_template.jinja")
WEIGHTS = "model.safetensors"
"""Of a model that jaxspec trained, in the place of `PARAMS` and `SOURCE`."""

FORMAT = 2
"""Of the folder: what is made of the same tensors changes with it."""

END_OF_TEXT = "<|endoftext|>"
"""The token that ends a text where nothing says otherwise."""


def write_part(folder: pathlib.Path, name: str, leaves: dict[str, np.ndarray]) -> None:
    """Writes the leaves of a part, by their paths."""
    tree: dict[str, Any] = {}
    for path, array in leaves.items():
        *groups, last = path.split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = array
    path = (folder / PARAMS / name).absolute()
    partial = path.with_name(f"{name}.partial")
    for left in (path, partial):  # by a conversion that was interrupted
        shutil.rmtree(left, ignore_errors=True)
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(partial, tree)
    digests.write(partial)
    partial.rename(path)


def read_part(folder: pathlib.Path, name: str) -> dict[str, Any]:
    """Reads a part: a nested dict of arrays as they were written.

    Raises:
        ValueError: if it is missing or damaged.
    """
    path = (folder / PARAMS / name).absolute()
    if not path.is_dir():
        raise ValueError(
            f"{folder} does not fit its config: it has no {PARAMS}/{name}."
        )
    digests.check(path)
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            return checkpointer.restore(path)
    except Exception as error:  # Orbax and its stores raise all kinds
        raise ValueError(f"{path} is damaged: {files.one_line(error)}.") from None


def copy_chat(source: pathlib.Path, destination: pathlib.Path) -> list[str]:
    """Copies the files that hold the chat template, and returns the names of those."""
    names = [name for name in CHAT if (source / name).is_file()]
    for name in names:
        shutil.copyfile(source / name, destination / name)
    return names


def flatten(tree: dict[str, Any]) -> dict[str, Any]:
    """The leaves of a part, by their paths."""
    leaves = {}
    for name, node in tree.items():
        below = flatten(node) if isinstance(node, dict) else {"": node}
        leaves |= {f"{name}.{path}".rstrip("."): leaf for path, leaf in below.items()}
    return leaves


def has_part(folder: pathlib.Path, name: str) -> bool:
    """Tells whether a part is there; a folder of its name was written whole."""
    return (folder / PARAMS / name).is_dir()


def is_sound(folder: pathlib.Path, name: str) -> bool:
    """Tells whether a part is there, unchanged since it was written."""
    return has_part(folder, name) and digests.problem(folder / PARAMS / name) is None


def check(folder: pathlib.Path) -> None:
    """Compares what is in a folder itself, but for the parts, with its digests.

    Raises:
        ValueError: naming a file that is missing or damaged.
    """
    names = ["config.json", "tokenizer.json"]
    names.append(SOURCE if is_converted(folder) else WEIGHTS)
    digests.check(
        folder, [*names, *(name for name in CHAT if digests.has(folder, name))]
    )


def check_parts(folder: pathlib.Path, source: dict[str, Any]) -> None:
    """Refuses a folder that has lost a part of those that its `source.json` lists.

    Raises:
        ValueError: naming the part.
    """
    parts = source["parts"]
    if not isinstance(parts, list) or not {*map(type, parts)} <= {str}:
        raise ValueError(f"{folder / SOURCE} is damaged: parts must be names.")
    for name in parts:
        if not has_part(folder, name):
            raise ValueError(f"{folder} has lost {PARAMS}/{name}; convert again.")


def is_converted(folder: pathlib.Path) -> bool:
    """Whether `convert` made the folder."""
    return (folder / SOURCE).is_file()


def read_source(folder: pathlib.Path) -> dict[str, Any]:
    """What `source.json` says.

    Raises:
        ValueError: if it is damaged or missing.
    """
    try:
        record = files.read_json(folder / SOURCE)
        if record.get("format") != FORMAT:
            raise ValueError(
                f"its format is {record.get('format')}, expected {FORMAT}; convert again"
            )
        digests.check(folder, [SOURCE])
        if missing := {"family", "parts", "published", "stop_tokens"} - record.keys():
            raise ValueError(f"it lacks {', '.join(sorted(missing))}; convert again")
        return record
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder / SOURCE} is damaged: {files.one_line(error)}."
        ) from None
