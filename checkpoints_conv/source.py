"""A folder of published weights, read tensor by tensor: safetensors, or PyTorch's `.bin`.

Names, shapes and dtypes come from the files' headers. The file last read from stays open,
mapped and not read (but for `.bin` files of old, which cannot be mapped), and no pickled
code is run: `torch.load(weights_only=True)` builds tensors and nothing else.
"""

import functools
import pathlib
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors

from jaxspec import files

DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""Of the tensors that can be converted, by their names in safetensors."""

INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
BESIDE = ("mamba_config",)
GENERATION = "generation_config.json"
WHOLE = ("model.safetensors", "pytorch_model.bin")


class Entry(NamedTuple):
    """Where a tensor is, and what; `dtype` is a name such as those of `DTYPES`."""

    file: pathlib.Path
    shape: tuple[int, ...]
    dtype: str


class File(NamedTuple):
    """An open file.

    Attributes:
        entries: what is in it, by name.
        read: name -> array, a copy.
    """

    entries: dict[str, Entry]
    read: Callable[[str], np.ndarray]


class Source:
    """A folder of published weights.

    Attributes:
        folder: of `config.json` and the weights.
        config: what `config.json` says, and a field for each of `BESIDE`.
        files: of the weights.
        entries: every tensor, by name.
    """

    def __init__(self, folder: pathlib.Path):
        """Reads the config and the headers of all files.

        Raises:
            ValueError: if a file is missing, damaged, or has a tensor of another file.
            ModuleNotFoundError: on a `.bin` without torch.
        """
        self.folder = folder
        self.config = read_config(folder)
        self.files = _find(folder)
        self.entries: dict[str, Entry] = {}
        self._opened = functools.lru_cache(maxsize=1)(_open)
        for path in self.files:
            entries = self._opened(path).entries
            if twice := sorted(set(entries) & set(self.entries)):
                other = self.entries[twice[0]].file.name
                raise ValueError(f"{twice[0]} is both in {other} and in {path.name}.")
            self.entries |= entries

    def read(self, name: str) -> np.ndarray:
        """A tensor, in the dtype that it has."""
        return self._opened(self.entries[name].file).read(name)

    def published(self) -> dict[str, str]:
        """The texts of the configs, by the names of their files."""
        beside = tuple(f"{name}.json" for name in BESIDE)
        names = "config.json", *beside, GENERATION
        found = {name: self.folder / name for name in names}
        return {
            name: files.read_text(path)
            for name, path in found.items()
            if path.is_file()
        }

    def fingerprint(self) -> list[list[Any]]:
        """What changes if the weights do: names, sizes and times of the files."""
        stats = [(path.name, path.stat()) for path in self.files]
        return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def read_config(folder: pathlib.Path) -> dict[str, Any]:
    """What `config.json` says, and, in fields of their names, the configs beside it.

    Raises:
        ValueError: if there is none, or one is damaged.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(
            f"There is no {path}; expected a folder with {path.name}, weights and "
            "tokenizer.json, as the Hugging Face Hub keeps them."
        )
    record = files.read_json(path)
    for name in BESIDE:
        if (folder / f"{name}.json").is_file():
            record[name] = files.read_json(folder / f"{name}.json")
    return record


def _find(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files of the weights, safetensors first if there are both."""
    for index, whole in zip(INDICES, WHOLE, strict=True):
        if (folder / index).is_file():
            shards = files.read_json(folder / index).get("weight_map")
            if not isinstance(shards, dict) or not shards:
                raise ValueError(f"{folder / index} has no weight_map.")
            names = [*shards.values()]
            if odd := [name for name in names if not _is_file_name(name)]:
                raise ValueError(
                    f"{index} names {odd[0]!r}; expected a file beside it."
                )
            paths = [folder / name for name in sorted({*names})]
            for path in paths:
                if not path.is_file():
                    raise ValueError(f"{index} names {path.name}, which is missing.")
            return paths
        if (folder / whole).is_file():
            return [folder / whole]
    raise ValueError(
        f"{folder} has no weights; expected one of {', '.join(WHOLE + INDICES)}."
    )


def _is_file_name(name: Any) -> bool:
    return isinstance(name, str) and pathlib.Path(name).name == name not in ("", "..")


def _open(path: pathlib.Path) -> File:
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    return _open_pickle(path)


def _open_safetensors(path: pathlib.Path) -> File:
    try:
        file = safetensors.safe_open(path, framework="np")
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file: {files.one_line(error)}."
        ) from None
    slices = {name: file.get_slice(name) for name in file.keys()}
    entries = {
        name: Entry(path, tuple(one.get_shape()), one.get_dtype())
        for name, one in slices.items()
    }
    return File(entries, file.get_tensor)


def _open_pickle(path: pathlib.Path) -> File:
    try:
        import torch
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{path.name} is read by torch: pip install 'jaxspec[hf]'."
        ) from None
    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    mapped = zipfile.is_zipfile(path)  # older files cannot be
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # whatever the unpickler meets
        raise ValueError(
            f"{path} is not a whole file of tensors: {str(error).splitlines()[0]}"
        ) from None
    is_table = isinstance(tensors, dict) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor)
        for name, tensor in tensors.items()
    )
    if not is_table:
        raise ValueError(f"{path} holds more than tensors by name.")

    def read(name: str) -> np.ndarray:
        tensor = tensors[name].contiguous()
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16).copy()
        return tensor.numpy().copy()

    entries = {
        name: Entry(
            path, tuple(tensor.shape), names.get(tensor.dtype, str(tensor.dtype))
        )
        for name, tensor in tensors.items()
    }
    return File(entries, read)
