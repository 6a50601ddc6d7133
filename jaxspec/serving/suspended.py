"""A text that was set aside, on disk: its row, and what was asked.

    serving.save("text.safetensors", engine.suspend(ticket))         here, in mid-sentence
    ticket = engine.resume(serving.load("text.safetensors", engine))      elsewhere

One file, written by one process: the arrays of the row by their names in the state, and
beside them, as JSON, the request and what was written.
"""

import dataclasses
import hashlib
import json
import os
from typing import Any

import jax
import numpy as np

from jaxspec import checks, files, sampling, tensor_files
from jaxspec.decode_state import DecodeState
from jaxspec.serving.engine import Engine
from jaxspec.serving.requests import Request, Suspended

_FORMAT = "jaxspec suspended 2"


def save(path: str | os.PathLike, suspended: Suspended) -> None:
    """Writes a text into a file, whole or not at all.

    Args:
        path: of the file; one that is there is replaced.
        suspended: from `Engine.suspend` or `Engine.take`.

    Raises:
        OSError: if it cannot be written.
    """
    record, arrays = pack(suspended)
    record = json.dumps(record)
    metadata = {"format": _FORMAT, "text": record, "sha256": _digest(record, arrays)}
    tensor_files.write(path, arrays, metadata)


def load(path: str | os.PathLike, engine: Engine) -> Suspended:
    """Reads a text for an engine like the one that wrote it.

    Raises:
        ValueError: if it is damaged, or of another engine.
        OSError: if it is not there.
    """
    arrays, metadata = tensor_files.read(path, "suspended text")
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"{path} is no {_FORMAT!r}.")
    text = metadata.get("text", "")
    if metadata.get("sha256") != _digest(text, arrays):
        raise ValueError(f"{path} is damaged: its sha256 is another.")
    try:
        return unpack(json.loads(text), arrays, engine.programs.value)
    except (LookupError, TypeError, ValueError) as error:
        reason = files.one_line(error)
        raise ValueError(f"{path} is of another engine: {reason}") from None


def pack(suspended: Suspended) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Takes a text apart: a record that JSON holds, and plain arrays by their names."""
    request = dataclasses.asdict(suspended.request)
    record = {
        "request": {name: _plain(value) for name, value in request.items()},
        "tokens": list(suspended.tokens),
        "logprobs": list(suspended.logprobs),
    }
    leaves = jax.tree_util.tree_leaves_with_path(_without_keys(suspended.value))
    return record, {jax.tree_util.keystr(p): _bits(np.asarray(x)) for p, x in leaves}


def unpack(
    record: dict[str, Any], arrays: dict[str, np.ndarray], like: DecodeState
) -> Suspended:
    """Puts together what `pack` took apart.

    Args:
        record: of the text.
        arrays: of its row.
        like: the shapes of such a row.

    Raises:
        LookupError, TypeError, ValueError: if it is not such a text.
    """
    shapes = jax.eval_shape(_without_keys, like)
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
    names = [jax.tree_util.keystr(path) for path, _ in leaves]
    if {*names} != {*arrays}:
        other = sorted({*names} ^ {*arrays})[0]
        raise ValueError(f"One of both has no {other}.")
    found = [arrays[n].view(x.dtype) for n, (_, x) in zip(names, leaves, strict=True)]
    value = structure.unflatten(found)
    other = checks.difference(value, shapes)
    if other is not None:
        raise ValueError(f"In its row {other}.")
    return Suspended(
        request=Request(**record["request"]),
        tokens=tuple(record["tokens"]),
        logprobs=tuple(record["logprobs"]),
        value=value.replace(keys=sampling.wrap(value.keys)),
    )


def _without_keys(value: DecodeState) -> DecodeState:
    """Its keys as plain numbers."""
    return value.replace(keys=jax.random.key_data(value.keys))


def _bits(array: np.ndarray) -> np.ndarray:
    """Dtypes that numpy lacks, as integers of their size."""
    is_own = array.dtype.kind == "V"
    return array.view(f"u{array.dtype.itemsize}") if is_own else array


def _digest(record: str, arrays: dict[str, np.ndarray]) -> str:
    found = hashlib.sha256(record.encode())
    for name in sorted(arrays):
        found.update(np.ascontiguousarray(arrays[name]).data)
    return found.hexdigest()


def _plain(value):
    if isinstance(value, str | int | float | None):
        return value
    if isinstance(value, np.generic):
        return value.item()
    return list(map(int, value))
