"""From a folder that `jaxspec.load` reads to safetensors that transformers loads.

The table of names that brought the tensors here takes them back, bit by bit, a part at a
time; a shard is written when it is full. Configs go back as the texts that they were; those
of a model that jaxspec trained are written by its family.
"""

import functools
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from checkpoints_conv import families
from checkpoints_conv.family import Family
from checkpoints_conv.source import BESIDE, GENERATION
from checkpoints_conv.table import Leaf, Part
from jaxspec import tokenizer_files, weights
from jaxspec.models import config as configs
from jaxspec.models.config import ModelConfig

SHARD_BYTES = 1 << 30


class Export(NamedTuple):
    """What is to be done.

    Attributes:
        family: whose form is written.
        config: of the model.
        texts: the configs, by the names of their files.
        read: part -> its leaves, by path.
        kept: () -> tensors that are written as they are, by name.
    """

    family: Family
    config: ModelConfig
    texts: dict[str, str]
    read: Callable[[Part], dict[str, np.ndarray]]
    kept: Callable[[], dict[str, np.ndarray]]


def plan(folder: pathlib.Path) -> Export:
    """Finds the form that a model is published in.

    Raises:
        ValueError: if a file is missing or damaged, or no family has such a model.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"There is no {path}; expected a model of jaxspec.")
    config = configs.read(path)
    weights.check(folder)
    source = weights.read_source(folder)
    weights.check_parts(folder, source)

    def read(part):
        return weights.read_part(folder, part.name)

    if "family" in source:  # it was published
        has_more = weights.KEPT in source["parts"]
        kept = functools.partial(weights.read_part, folder, weights.KEPT)
        return Export(
            family=_family(folder, source),
            config=config,
            texts=_texts(folder, source),
            read=read,
            kept=kept if has_more else dict,
        )
    family, record = families.publish(config)
    record["eos_token_id"] = next(iter(source["stop_tokens"]), None)
    beside = {name: record.pop(name) for name in BESIDE if name in record}
    records = {"config": record, **beside}
    texts = {f"{name}.json": _to_json(value) for name, value in records.items()}
    return Export(family, config, texts, read, dict)


def _texts(folder: pathlib.Path, source: dict[str, Any]) -> dict[str, str]:
    """The configs as they were read, by the names of their files."""
    texts = source.get("published")
    known = {"config.json", GENERATION, *(f"{name}.json" for name in BESIDE)}
    is_table = isinstance(texts, dict) and {*map(type, texts.values())} == {str}
    if not is_table or not {"config.json"} <= texts.keys() <= known:
        raise ValueError(
            f"{folder / weights.SOURCE} is damaged: published must be the texts of "
            f"config.json and perhaps of {', '.join(sorted(known - {'config.json'}))}."
        )
    return texts


def _family(folder: pathlib.Path, source: dict[str, Any]) -> Family:
    """The family that a conversion was of, and its form."""
    name, form = source["family"], source.get("form")
    family = families.FAMILIES.get(name)
    if family is None or form not in range(1 + len(family.others)):
        raise ValueError(
            f"{folder / weights.SOURCE} names family {name!r}, form {form!r}, which there "
            f"is not; known are {', '.join(families.FAMILIES)}."
        )
    return family.form(form)


def export(
    folder: pathlib.Path,
    destination: pathlib.Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    advance: Callable[[str, int, int], None] = lambda part, done, total: None,
) -> Export:
    """Writes a model as transformers keeps it.

    Args:
        folder: what `convert` or `pretrained.save` made.
        destination: a folder that does not exist yet.
        shard_bytes: of a file of weights, about; memory holds one of them, and a part.
        advance: called with the part that comes next, and how many are done of how many.

    Raises:
        ValueError: as `plan`, if the destination exists, or without room in a shard.
    """
    if shard_bytes < 1:
        raise ValueError(f"Expected positive shard_bytes, got {shard_bytes}.")
    if destination.exists():
        raise ValueError(f"{destination} exists; give another folder, or remove it.")
    todo = plan(folder)
    partial = destination.with_name(destination.name + ".partial")
    _clear(partial)
    partial.mkdir(parents=True)
    for name, text in todo.texts.items():
        (partial / name).write_bytes(text.encode())
    name = tokenizer_files.NAME
    shutil.copyfile(folder / name, partial / name)
    weights.copy_chat(folder, partial)
    write_shards(partial, _tensors(todo, advance), shard_bytes)
    partial.rename(destination)
    return todo


def _clear(partial: pathlib.Path) -> None:
    """Removes what an export that was interrupted left, and nothing else."""
    if not partial.exists():
        return
    ours = {".json", ".jinja", ".safetensors"}
    if not partial.is_dir() or {path.suffix for path in partial.iterdir()} - ours:
        raise ValueError(
            f"{partial} is no export that was interrupted; move it, or give another "
            "folder."
        )
    shutil.rmtree(partial)


def _tensors(
    todo: Export, advance: Callable[[str, int, int], None]
) -> Iterator[tuple[str, np.ndarray]]:
    """All tensors, by their published names."""
    parts = todo.family.parts(todo.config)
    for done, part in enumerate(parts):
        advance(part.name, done, len(parts))
        leaves = todo.read(part)
        expected = {leaf.path for leaf in part.leaves}
        if set(leaves) != expected:
            missing, extra = expected - set(leaves), set(leaves) - expected
            raise ValueError(
                f"{part.name} does not fit the config: missing {sorted(missing)[:3]}, "
                f"left over {sorted(extra)[:3]}."
            )
        for leaf in part.leaves:
            yield from _part(leaf, leaves[leaf.path])
    yield from todo.kept().items()
    advance("", len(parts), len(parts))


def _part(leaf: Leaf, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    for tensor, value in zip(leaf.tensors, leaf.part(array), strict=True):
        if value.shape != tensor.shape:
            raise ValueError(
                f"{leaf.path}: {tensor.name} would have shape {value.shape}, expected "
                f"{tensor.shape}."
            )
        yield tensor.name, value


def write_shards(
    folder: pathlib.Path, tensors: Iterator[tuple[str, np.ndarray]], limit: int
) -> None:
    """Writes tensors as one file of weights, or several and their index."""
    shards: list[list[str]] = []
    held: dict[str, np.ndarray] = {}
    total = size = 0

    def flush():
        path = folder / f"{len(shards)}.safetensors"
        safetensors.numpy.save_file(held, path, {"format": "pt"})
        path.chmod(0o644)
        shards.append([*held])
        held.clear()

    for name, array in tensors:
        if held and size + array.nbytes > limit:
            flush()
            size = 0
        held[name] = array
        size, total = size + array.nbytes, total + array.nbytes
    flush()
    if len(shards) == 1:
        (folder / "0.safetensors").rename(folder / "model.safetensors")
        return
    files = [
        f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))
    ]
    for i, file in enumerate(files):
        (folder / f"{i}.safetensors").rename(folder / file)
    where = {
        name: file for file, names in zip(files, shards, strict=True) for name in names
    }
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(_to_json(index))


def _to_json(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=2) + "\n"
