"""jaxspec's own weights on disk: one safetensors file, names joined by dots.

The file is written beside its final name and moved into place, so that a reader never
meets half of one.
"""

import os
import pathlib
from typing import Any

import jax
import ml_dtypes
import numpy as np
import safetensors.numpy

from jaxspec import files

Params = Any


def names(params: Params) -> list[str]:
    """The name of every leaf, in order: `layers.0.mamba2.in_proj.kernel`."""
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]


def save(
    path: str | os.PathLike, params: Params, metadata: dict[str, str] | None = None
) -> None:
    """Writes params as bfloat16, atomically."""
    path = pathlib.Path(path)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
    arrays = {
        name: np.ascontiguousarray(leaf.astype(ml_dtypes.bfloat16))
        for name, leaf in zip(names(params), leaves, strict=True)
    }
    partial = path.with_name(path.name + ".partial")
    safetensors.numpy.save_file(arrays, partial, metadata)
    partial.chmod(0o644)
    os.replace(partial, path)


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads all arrays, by their names.

    Raises:
        ValueError: if the file is not whole.
        FileNotFoundError: if there is no file.
    """
    try:
        return safetensors.numpy.load_file(path)
    except OSError:
        raise
    except Exception as error:  # of the header, or of a dtype that numpy lacks
        raise ValueError(
            f"{path} is not a whole safetensors file: {files.one_line(error)}."
        ) from None


def load(path: str | os.PathLike, like: Params) -> Params:
    """Reads params into the structure, shapes and dtypes of `like`.

    Args:
        path: a safetensors file.
        like: arrays or `jax.ShapeDtypeStruct`s, as `jax.eval_shape(model.init, key)`.

    Raises:
        ValueError: if the file is not whole, or holds other arrays than `like`.
        FileNotFoundError: if there is no file.
    """
    arrays = read(path)
    leaves, structure = jax.tree.flatten(like)
    expected = dict(zip(names(like), leaves, strict=True))
    if set(arrays) != set(expected):
        missing = sorted(set(expected) - set(arrays))[:3]
        extra = sorted(set(arrays) - set(expected))[:3]
        raise ValueError(
            f"{path} does not fit its config: missing {missing}, left over {extra}."
        )
    for name, leaf in expected.items():
        if arrays[name].shape != leaf.shape:
            raise ValueError(
                f"{path}: {name} has shape {arrays[name].shape}, expected {leaf.shape}."
            )
    return structure.unflatten(
        [arrays[name].astype(leaf.dtype) for name, leaf in expected.items()]
    )
