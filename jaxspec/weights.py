"""The folder of a model, as `save` and `convert` write it: a file per part of the params.

    config.json
    source.json      the format, the parts, the tokens that end a text; of a model that was
                     converted the family too, and the published configs as they were
    tokenizer.json
    tokenizer_config.json  chat_template.jinja   as published, where there are any
    params/embed.safetensors  params/layers.0.safetensors  ...  params/lm_head.safetensors
    params/mtp.pair.safetensors  params/mtp.layers.0.safetensors ..  where config.mtp is
    params/kept.safetensors   what jaxspec has no use for, and `export` writes back
    SHA256SUMS       of all these files

A part is written under another name, renamed when it is whole, and then entered into the
table, so what the table names is whole, and a model is read and written with one part in
memory beside what it comes from or goes to.
"""

import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec import digests, files, tensor_files, tokenizer_files

PARAMS, SOURCE, KEPT, MTP = "params", "source.json", "kept", "mtp."
CHAT = ("tokenizer_config.json", "chat_template.jinja")

FORMAT = 3
"""Of the folder: what is made of the same tensors changes with it."""

END_OF_TEXT = "<|endoftext|>"
"""The token that ends a text where nothing says otherwise."""

Params = Any


def parts(params: Params) -> Iterator[tuple[str, Params]]:
    """The parts of params by name: `embed`, `layers.0`, `layers.1`, .."""
    for name, part in params.items():
        if isinstance(part, tuple):
            yield from ((f"{name}.{i}", one) for i, one in enumerate(part))
        else:
            yield name, part


def names(params: Params) -> list[str]:
    """The name of every leaf, in order: `layers.0.mamba2.in_proj.kernel`."""
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]


def file(name: str) -> str:
    """The file of a part, below the folder."""
    return f"{PARAMS}/{name}.safetensors"


def write_part(
    folder: pathlib.Path, name: str, arrays: Mapping[str, np.ndarray]
) -> None:
    """Writes the arrays of a part by the names of its leaves, and their digest."""
    (folder / PARAMS).mkdir(exist_ok=True)
    tensor_files.write(folder / file(name), arrays)
    digests.add(folder, [file(name)])


def read_part(folder: pathlib.Path, name: str) -> dict[str, np.ndarray]:
    """Reads the arrays of a part as they were written, by the names of its leaves.

    Raises:
        ValueError: if it is missing or damaged.
    """
    path = folder / file(name)
    if not path.is_file():
        raise ValueError(f"{folder} does not fit its config: it has no {file(name)}.")
    digests.check(folder, [file(name)])
    arrays, _ = tensor_files.read(path)
    return arrays


def save(folder: pathlib.Path, params: Params, dtype: Any) -> list[str]:
    """Writes params in the place of any that there were; returns the names of the parts.

    Args:
        folder: of the model.
        params: of an unrolled model.
        dtype: on disk.
    """
    (folder / digests.TABLE).unlink(missing_ok=True)  # until it is whole
    shutil.rmtree(folder / PARAMS, ignore_errors=True)
    written = dict(parts(params))
    for name, part in written.items():
        leaves = [np.asarray(leaf).astype(dtype) for leaf in jax.tree.leaves(part)]
        write_part(folder, name, dict(zip(names(part), leaves, strict=True)))
    return list(written)


def load(folder: pathlib.Path, like: Params, first: str = "") -> Params:
    """Reads params into the structure, shapes and dtypes of `like`, a part at a time.

    Args:
        folder: of the model.
        like: arrays or `jax.ShapeDtypeStruct`s, as `jax.eval_shape(model.init, key)`.
        first: what the names of the parts begin with besides.

    Raises:
        ValueError: if a part is missing, damaged, or holds other arrays than `like`.
    """
    loaded = {name: _load(folder, first + name, part) for name, part in parts(like)}
    return {
        name: tuple(loaded[f"{name}.{i}"] for i in range(len(part)))
        if isinstance(part, tuple)
        else loaded[name]
        for name, part in like.items()
    }


def _load(folder: pathlib.Path, name: str, like: Params) -> Params:
    arrays, path = read_part(folder, name), folder / file(name)
    leaves, structure = jax.tree.flatten(like)
    expected = dict(zip(names(like), leaves, strict=True))
    if set(arrays) != set(expected):
        missing = sorted(set(expected) - set(arrays))[:3]
        extra = sorted(set(arrays) - set(expected))[:3]
        raise ValueError(
            f"{path} does not fit its config.json: missing {missing}, left over {extra}."
        )
    for leaf, like in expected.items():
        if arrays[leaf].shape != like.shape:
            raise ValueError(
                f"{path} does not fit its config.json: {leaf} has shape "
                f"{arrays[leaf].shape}, expected {like.shape}."
            )
    return structure.unflatten(
        [
            jnp.asarray(arrays[leaf].astype(like.dtype))
            for leaf, like in expected.items()
        ]
    )


def copy_chat(source: pathlib.Path, destination: pathlib.Path) -> list[str]:
    """Copies the files that hold the chat template, and returns the names of those."""
    found = [name for name in CHAT if (source / name).is_file()]
    for name in found:
        shutil.copyfile(source / name, destination / name)
    return found


def is_sound(folder: pathlib.Path, name: str) -> bool:
    """Tells whether a part is there, unchanged since it was written."""
    return digests.problem(folder, [file(name)]) is None


def check(folder: pathlib.Path) -> None:
    """Compares what is in a folder itself, but for the parts, with its digests.

    Raises:
        ValueError: naming a file that is missing or damaged.
    """
    chat = [name for name in CHAT if digests.has(folder, name)]
    digests.check(folder, ["config.json", tokenizer_files.NAME, SOURCE, *chat])


def check_parts(folder: pathlib.Path, source: dict[str, Any]) -> None:
    """Refuses a folder that has lost a part of those that its `source.json` lists.

    Raises:
        ValueError: naming the part.
    """
    for name in source["parts"]:
        if not (folder / file(name)).is_file():
            raise ValueError(
                f"{folder} has lost {file(name)}; convert or save it again."
            )


def read_source(folder: pathlib.Path) -> dict[str, Any]:
    """What `source.json` says.

    Raises:
        ValueError: if it is missing, damaged, or of another format.
    """
    path = folder / SOURCE
    if not path.is_file():
        raise ValueError(
            f"{folder} has no {SOURCE}: it is not whole, or of an earlier format; "
            "convert, train or save it again."
        )
    try:
        record = files.read_json(path)
        if record.get("format") != FORMAT:
            raise ValueError(
                f"its format is {record.get('format')}, expected {FORMAT}; convert or "
                "train again"
            )
        digests.check(folder, [SOURCE])
        for name, kind in (("parts", str), ("stop_tokens", int)):
            value = record.get(name)
            if not isinstance(value, list) or not {*map(type, value)} <= {kind}:
                raise ValueError(f"{name} must be a list of {kind.__name__}")
        return record
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {files.one_line(error)}.") from None
