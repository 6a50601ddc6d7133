"""The shape of a language model: frozen, hashable, validated, and a JSON file on disk.

Names follow state-spaces/mamba (`d_model, d_state, d_conv, expand, headdim, ngroups,
chunk_size`). A model is a string of residual blocks, one character each:

    M Mamba-2    m Mamba-1    G gated delta rule    * attention    - feed-forward
    E mixture of experts    P Mamba-2 beside attention
    S Mamba-2 behind attention and feed-forward whose weights are shared (`shared.py`)
"""

import dataclasses
import json
import math
import os
import reprlib
import sys
import typing
from collections.abc import Iterable
from typing import Any, Literal

from jaxspec import checks, files
from jaxspec.models import fields
from jaxspec.models.mixer_configs import GATED as GATED
from jaxspec.models.mixer_configs import AttentionConfig as AttentionConfig
from jaxspec.models.mixer_configs import MLPConfig as MLPConfig
from jaxspec.models.mixer_configs import MoEConfig as MoEConfig
from jaxspec.models.recurrence_configs import DeltaConfig as DeltaConfig
from jaxspec.models.recurrence_configs import Mamba1Config as Mamba1Config
from jaxspec.models.recurrence_configs import Mamba2Config as Mamba2Config

FORMAT_VERSION = 2

BLOCKS = {
    "M": ("mamba2",),
    "m": ("mamba1",),
    "G": ("delta",),
    "*": ("attention",),
    "-": ("mlp",),
    "E": ("moe",),
    "P": ("mamba2", "attention"),
    "S": ("attention", "mlp", "mamba2"),
}
"""The settings that each kind of block reads."""

HEAD_BLOCKS = ("*", "-", "E")
"""What a head that predicts a token further can be made of."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A language model.

    Attributes:
        vocab_size: tokens.
        d_model: width of the residual stream.
        layers: residual blocks in order, one character each (see the module).
        mamba1, mamba2, delta, attention, mlp, moe: settings of the mixers that `layers`
            names.
        num_shared: sets of weights that the blocks `S` use in turn.
        norm_eps: epsilon of every RMS norm.
        zero_centered_norms: norms between mixers, and of attention's queries and keys,
            scale by `1 + w`; those within a recurrence by `w` in any case.
        tie_embeddings: the head is the embedding, transposed.
        embedding_multiplier: factor of the embeddings.
        residual_multiplier: factor of each block's output.
        logits_multiplier: factor of the logits.
        mtp: blocks of the head that predicts a token further (`models/mtp.py`), as in
            `layers`; they attend or have no past. Empty if there is no such head.
        dtype: of the activations; states, step sizes and logits are float32 always.
    """

    vocab_size: int
    d_model: int
    layers: str
    mamba1: Mamba1Config | None = None
    mamba2: Mamba2Config | None = None
    delta: DeltaConfig | None = None
    attention: AttentionConfig | None = None
    mlp: MLPConfig | None = None
    moe: MoEConfig | None = None
    num_shared: int = 1
    norm_eps: float = 1e-5
    zero_centered_norms: bool = False
    tie_embeddings: bool = True
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_multiplier: float = 1.0
    mtp: str = ""
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        fields.positive(self, "vocab_size", "d_model", "norm_eps")
        fields.one_of(self, "dtype", "float32", "bfloat16")
        checks.require(len(self.layers) > 0, "layers must name at least one block.")
        self._check_blocks("layers", BLOCKS)
        self._check_blocks("mtp", HEAD_BLOCKS)

    def _check_blocks(self, name: str, kinds: Iterable[str]) -> None:
        blocks = getattr(self, name)
        for kind in blocks:
            checks.require(
                kind in kinds,
                f"Unknown block {kind!r} in {name} {blocks!r}; expected one of "
                f"{' '.join(kinds)}.",
            )
            for setting in BLOCKS[kind]:
                checks.require(
                    getattr(self, setting) is not None,
                    f"{name} {blocks!r} has a block {kind!r}, which needs the "
                    f"settings `{setting}`.",
                )
        uses = max(1, self.layers.count("S"))
        checks.require(
            1 <= self.num_shared <= uses,
            f"num_shared must be from 1 to {uses}, as many as layers {self.layers!r} "
            f"can use, got {self.num_shared}.",
        )

    @property
    def storages(self) -> dict[str, str]:
        """Kinds of the blocks in every storage of params: all, and what `S` share."""
        shared = {"shared": "S" * self.num_shared} if "S" in self.layers else {}
        return {"layers": self.layers, **shared}

    @property
    def conv_width(self) -> int:
        """Taps of the widest convolution of the mixers that `layers` names."""
        names = {name for kind in self.layers for name in BLOCKS[kind]}
        return max(getattr(getattr(self, name), "d_conv", 1) for name in names)


def to_json(config: ModelConfig) -> str:
    """Writes a config as JSON, with the version of the format; no limit is null."""
    record = {"format_version": FORMAT_VERSION, **dataclasses.asdict(config)}
    if config.mamba2 is not None:
        limits = [None if math.isinf(x) else x for x in config.mamba2.dt_limits]
        record["mamba2"]["dt_limits"] = limits
    return json.dumps(record, indent=2, allow_nan=False) + "\n"


def read(path: str | os.PathLike) -> ModelConfig:
    """Reads the config in a file, as `from_json` does.

    Raises:
        ValueError: naming the file.
    """
    try:
        return from_json(files.read_text(path))
    except ValueError as error:
        raise ValueError(f"{path}: {files.one_line(error)}.") from None


def from_json(text: str) -> ModelConfig:
    """Reads a config that `to_json` wrote.

    Raises:
        ValueError: on malformed JSON, another version, or a field that is unknown,
            missing or of another type.
    """
    record = files.parse_json(text, "The config")
    if not isinstance(record, dict):
        raise ValueError(f"Expected a JSON object, got {type(record).__name__}.")
    version = record.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise ValueError(
            f"The config has format version {version}, and this jaxspec reads version "
            f"{FORMAT_VERSION}: convert or train the model again."
        )
    parts = {
        "mamba1": Mamba1Config,
        "mamba2": Mamba2Config,
        "delta": DeltaConfig,
        "attention": AttentionConfig,
        "mlp": MLPConfig,
        "moe": MoEConfig,
    }
    for name, part in parts.items():
        if record.get(name) is not None:
            record[name] = _build(part, record[name])
    return _build(ModelConfig, record)


def _fits(value: Any, declared: Any) -> bool:
    """Tells whether a value has a field's type, and a size that arrays can have."""
    if isinstance(value, bool):
        return declared is bool
    if typing.get_origin(declared) is tuple:
        return isinstance(value, tuple) and all(
            isinstance(x, float) or _fits(x, float) for x in value
        )
    if declared is float:
        return isinstance(value, float | int) and abs(value) <= sys.float_info.max
    if declared is int:
        return isinstance(value, int) and abs(value) < 2**31
    return isinstance(value, declared if isinstance(declared, type) else object)


def _build(cls: type, record: Any) -> Any:
    if not isinstance(record, dict):
        raise ValueError(
            f"{cls.__name__} is a JSON object, got {reprlib.repr(record)}."
        )
    declared = {field.name: field for field in dataclasses.fields(cls)}
    if unknown := sorted(set(record) - set(declared)):
        raise ValueError(f"{cls.__name__} has no field {', '.join(unknown)}.")
    values = {}
    for name, value in record.items():
        if isinstance(value, list):
            value = tuple(math.inf if x is None else x for x in value)
        if not _fits(value, declared[name].type):
            raise ValueError(f"{cls.__name__}.{name} cannot be {reprlib.repr(value)}.")
        values[name] = value
    try:
        return cls(**values)
    except TypeError as error:
        raise ValueError(f"{cls.__name__}: {error}.") from None
