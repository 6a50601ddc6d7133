"""From a published checkpoint to a folder that `jaxspec.load` reads, part by part.

Everything is checked against the table of names before anything is written. The folder
is made under another name, `DEST.partial`, and renamed when it is whole; a conversion that
was interrupted goes on with the parts that are missing.
"""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from checkpoints_conv import families
from checkpoints_conv.family import Family
from checkpoints_conv.source import BESIDE, DTYPES, GENERATION, Source, read_config
from checkpoints_conv.table import AS_IT_IS, Leaf, Part, Tensor
from jaxspec import digests, files, tokenizer_files, weights
from jaxspec.models import config as configs
from jaxspec.models.config import ModelConfig


class Conversion(NamedTuple):
    """What is to be done.

    Attributes:
        source: the published weights.
        family: theirs.
        config: of the model.
        form: which of the family's tables of names the weights follow.
        parts: that table.
        tokenizer: text of `tokenizer.json`.
    """

    source: Source
    family: Family
    config: ModelConfig
    form: int
    parts: list[Part]
    tokenizer: str

    @property
    def dtype(self) -> str:
        """Of the published embedding, which says what the model is loaded in."""
        name = self.family.embedding(self.config).name
        return DTYPES[self.source.entries[name].dtype].name


def plan(folder: pathlib.Path, tokenizer: pathlib.Path | None = None) -> Conversion:
    """Reads all headers and checks them.

    Args:
        folder: `config.json`, weights, and `tokenizer.json` unless it is given.
        tokenizer: another `tokenizer.json`, or a folder with one.

    Raises:
        ValueError: in one line, on anything that is missing, damaged, left over, of
            another shape, or not implemented.
    """
    config = read_config(folder)
    if "format_version" in config:
        raise ValueError(
            f"{folder} is a model of jaxspec already: jaxspec.load reads it."
        )
    try:
        family = families.find(config)
        model = family.read(config)
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        reason = files.one_line(error)  # odd types, zeros
        raise ValueError(
            f"{folder}: {_configs(folder)} makes no sense: {reason}."
        ) from None
    except ValueError as error:
        reason = files.one_line(error)
        if "config.json" not in reason:
            reason = f"{_configs(folder)}: {reason}"
        raise ValueError(f"{folder}: {reason}.") from None
    source = Source(folder)
    model = family.with_head(model, source.entries)
    form = _form(family, model, source)
    family = family.form(form)
    parts = [*family.parts(model), *_kept(family, source)]
    _check_names(source, family, model, parts)
    dtype = source.entries[family.embedding(model).name].dtype
    model = dataclasses.replace(
        model, dtype="bfloat16" if dtype == "BF16" else "float32"
    )
    text = _tokenizer(tokenizer or folder)
    return Conversion(source, family, model, form, parts, text)


def _configs(folder: pathlib.Path) -> str:
    """Names of the files that a config was read from."""
    names = [f"{name}.json" for name in ("config", *BESIDE)]
    return " and ".join(name for name in names if (folder / name).is_file())


def _form(family: Family, config: ModelConfig, source: Source) -> int:
    """Which table of names fits, or lacks least, which is then reported."""

    def missing(form: int) -> int:
        parts = family.form(form).parts(config)
        names = {tensor.name for part in parts for tensor in part.tensors()}
        return len(names - source.entries.keys())

    return min(range(1 + len(family.others)), key=missing)


def _kept(family: Family, source: Source) -> list[Part]:
    """A part of the tensors that are there for `export` alone, if there are any."""
    shapes = {name: entry.shape for name, entry in source.entries.items()}
    leaves = [
        Leaf(name, (Tensor(name, shape),), AS_IT_IS)
        for name, shape in shapes.items()
        if family.is_kept(name)
    ]
    return [Part(weights.KEPT, tuple(leaves))] if leaves else []


def _check_names(
    source: Source, family: Family, config: ModelConfig, parts: list[Part]
) -> None:
    """Every tensor is used once, and has the shape that the config says."""
    entries, says = source.entries, _configs(source.folder)
    expected = {tensor.name: tensor for part in parts for tensor in part.tensors()}
    missing = [name for name in expected if name not in entries]
    extra = [n for n in entries if n not in expected and not family.is_buffer(n)]
    copies = family.copies(config)
    for name in [name for name in extra if name in copies]:
        extra.remove(name)
        if copies[name] in entries:  # else it is reported as missing
            _check_copy(source, family, name, copies[name])
    if missing or extra:
        raise ValueError(
            f"{source.folder} does not fit its {says}: missing {_some(missing)}, left "
            f"over {_some(extra)}."
        )
    for name, tensor in expected.items():
        entry = entries[name]
        if entry.shape != tensor.shape:
            raise ValueError(
                f"{entry.file}: {name} has shape {entry.shape}, expected {tensor.shape} "
                f"by {says}."
            )
        if entry.dtype not in DTYPES:
            raise ValueError(
                f"{entry.file}: {name} is {entry.dtype}, expected one of "
                f"{', '.join(DTYPES)}; quantised checkpoints cannot be converted."
            )
    for part in parts:
        for leaf in part.leaves:
            dtypes = {
                tensor.name: entries[tensor.name].dtype for tensor in leaf.tensors
            }
            if len({*dtypes.values()}) > 1:
                listed = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
                raise ValueError(
                    f"{source.folder}: tensors that are one in jaxspec must have one "
                    f"dtype, got {listed}."
                )


def _some(names: list[str]) -> str:
    """A few of them, in words."""
    if not names:
        return "nothing"
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(sorted(names)[:3]) + rest


def _check_copy(source: Source, family: Family, name: str, original: str) -> None:
    """What is there again, a tied head or what blocks share, must be the same."""
    copy, first = source.read(name), source.read(original)
    same = copy.dtype == first.dtype and copy.shape == first.shape
    if same and copy.tobytes() == first.tobytes():
        return
    if name == family.head:
        raise ValueError(
            f"{source.folder}: config.json ties the head to the embedding, and "
            f"{name} is another; set tie_word_embeddings to false if it is meant."
        )
    raise ValueError(
        f"{source.folder}: blocks share {original}, and {name} is another; jaxspec "
        "does not implement weights that are no longer shared."
    )


def _tokenizer(path: pathlib.Path) -> str:
    path = path / tokenizer_files.NAME if path.is_dir() else path
    if not path.is_file():
        raise ValueError(
            f"There is no tokenizer {path}; give --tokenizer FILE (state-spaces' models "
            "use that of EleutherAI/gpt-neox-20b)."
        )
    tokenizer_files.read(path)
    return files.read_text(path)


def convert(
    source: pathlib.Path,
    destination: pathlib.Path,
    *,
    tokenizer: pathlib.Path | None = None,
    advance: Callable[[str, int, int], None] = lambda part, done, total: None,
) -> Conversion:
    """Converts a published checkpoint.

    Args:
        source: folder of `config.json`, weights, `tokenizer.json`, any chat template.
        destination: a folder that does not exist yet.
        tokenizer: another `tokenizer.json`, or a folder with one.
        advance: called with the part that comes next, and how many are done of how many.

    Raises:
        ValueError: as `plan`, or if the destination exists.
        ModuleNotFoundError: on a `.bin` without torch.
    """
    if destination.exists():
        raise ValueError(f"{destination} exists; give another folder, or remove it.")
    todo = plan(source, tokenizer)
    partial = destination.with_name(destination.name + ".partial")
    _begin(todo, partial)
    for done, part in enumerate(todo.parts):
        advance(part.name, done, len(todo.parts))
        if not weights.is_sound(partial, part.name):
            weights.write_part(partial, part.name, _read_part(todo.source, part))
    partial.rename(destination)
    advance("", len(todo.parts), len(todo.parts))
    return todo


def _read_part(source: Source, part: Part) -> dict[str, np.ndarray]:
    return {
        leaf.path: leaf.join([source.read(tensor.name) for tensor in leaf.tensors])
        for leaf in part.leaves
    }


def _begin(todo: Conversion, partial: pathlib.Path) -> None:
    """Makes the folder, or keeps what is whole in one of the same source."""
    texts = {
        "config.json": configs.to_json(todo.config),
        tokenizer_files.NAME: todo.tokenizer,
        weights.SOURCE: json.dumps(provenance(todo), indent=2) + "\n",
    }
    same = partial.is_dir() and all(
        (partial / name).is_file() and (partial / name).read_bytes() == text.encode()
        for name, text in texts.items()
    )
    if partial.exists() and not same:
        ours = {weights.PARAMS, digests.TABLE, *weights.CHAT, *texts}
        if not partial.is_dir() or {path.name for path in partial.iterdir()} - ours:
            raise ValueError(
                f"{partial} is no conversion that was interrupted; move it, or give "
                "another folder."
            )
        shutil.rmtree(partial)
    (partial / weights.PARAMS).mkdir(parents=True, exist_ok=True)
    parts = {partial / weights.file(part.name) for part in todo.parts}
    for path in (partial / weights.PARAMS).iterdir():
        if path not in parts:  # half of one
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name, text in texts.items():
        (partial / name).write_bytes(text.encode())
    chat = weights.copy_chat(todo.source.folder, partial)
    digests.add(partial, [*texts, *chat])


def provenance(todo: Conversion) -> dict[str, Any]:
    """What `source.json` says."""
    config, published = todo.source.config, todo.source.published()
    path = todo.source.folder / GENERATION
    generation = files.read_json(path) if path.is_file() else None
    records = (generation, config, config.get("text_config"))
    stops = next(filter(None, (_stop_tokens(record or {}) for record in records)), [])
    if not stops:
        token = tokenizers.Tokenizer.from_str(todo.tokenizer).token_to_id(
            weights.END_OF_TEXT
        )
        stops = [] if token is None else [token]
    if "model_type" not in config:  # its authors' form
        record = families.FAMILIES[todo.family.name].describe(todo.config)
        record["eos_token_id"] = stops[0] if stops else None
        published["config.json"] = json.dumps(record, indent=2) + "\n"
    return {
        "format": weights.FORMAT,
        "family": todo.family.name,
        "form": todo.form,
        "published": published,
        "stop_tokens": stops,
        "parts": sorted(part.name for part in todo.parts),
        "files": todo.source.fingerprint(),
    }


def _stop_tokens(record: dict[str, Any]) -> list[int]:
    """Tokens that end a text, as a published config says; one or several."""
    value = record.get("eos_token_id")
    ids = value if isinstance(value, list) else [value]
    return ids if all(isinstance(i, int) and 0 <= i < 2**31 for i in ids) else []
