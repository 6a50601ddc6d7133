"""Files of named arrays in safetensors' format: whole or refused, never half written."""

import os
from collections.abc import Mapping

import numpy as np
import safetensors.numpy

from jaxspec import files


def write(
    path: str | os.PathLike,
    arrays: Mapping[str, np.ndarray],
    metadata: dict[str, str] | None = None,
) -> None:
    """Writes arrays by their names, in their dtypes, and moves the file into place."""
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with files.replacing(path) as partial:
        safetensors.numpy.save_file(arrays, partial, metadata)
        partial.chmod(0o644)


def read(
    path: str | os.PathLike, kind: str = "safetensors file"
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads all arrays by their names, and the metadata.

    Args:
        path: of the file.
        kind: what it is, for the error.

    Raises:
        ValueError: if the file is not whole.
        OSError: if there is no such file, or it cannot be read.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}
            return arrays, file.metadata() or {}
    except OSError:
        raise
    except Exception as error:  # of the header, or of a dtype that numpy lacks
        raise ValueError(
            f"{path} is not a whole {kind}: {files.one_line(error)}."
        ) from None
