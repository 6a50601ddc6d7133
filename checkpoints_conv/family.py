"""What there is to know of a family of published models."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from checkpoints_conv.table import Part, Tensor
from jaxspec.models.config import BLOCKS, ModelConfig


def no_copies(config: ModelConfig) -> dict[str, str]:
    """Of a family whose blocks share nothing."""
    return {}


class Family(NamedTuple):
    """A family of published models.

    Attributes:
        name: its `model_type`, unless that is given apart.
        architecture: the class in transformers that `export` writes for.
        read: published config -> `ModelConfig`; refuses what is not implemented.
        write: back, as far as a `ModelConfig` goes.
        parts: `ModelConfig` -> the table of names.
        others: other tables that a checkpoint may follow instead.
        head: name of the head, which models with a tied head may hold as well.
        shared_copies: `ModelConfig` -> names of what blocks share, as files may hold it
            again, and the tensors that they must equal.
        buffers: pattern of tensors that transformers computes by itself.
        kept: pattern of tensors that jaxspec has no use for, and `export` writes back.
        mtp: blocks of the head that predicts a token further, which a checkpoint may have;
            its tensors' names begin with `mtp.`. None if jaxspec cannot run such a head.
        model_type: of a family that shares another's.
    """

    name: str
    architecture: str
    read: Callable[[dict[str, Any]], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]
    parts: Callable[[ModelConfig], list[Part]]
    others: tuple[Callable[[ModelConfig], list[Part]], ...] = ()
    head: str = "lm_head.weight"
    shared_copies: Callable[[ModelConfig], dict[str, str]] = no_copies
    buffers: str = r".*\.rotary_emb\.inv_freq"
    kept: str = "(?!)"
    mtp: Callable[[ModelConfig], str] | None = None
    model_type: str | None = None

    @property
    def kind(self) -> str:
        """The `model_type` in its config."""
        return self.model_type or self.name

    def embedding(self, config: ModelConfig) -> Tensor:
        """The table of the tokens."""
        return self.parts(config)[0].tensors()[0]

    def copies(self, config: ModelConfig) -> dict[str, str]:
        """Tensors that may be there as well, and those that they must equal."""
        head = {self.head: self.embedding(config).name}
        return self.shared_copies(config) | (head if config.tie_embeddings else {})

    def form(self, number: int) -> "Family":
        """The family with one of its tables of names."""
        return self._replace(parts=(self.parts, *self.others)[number])

    def with_head(self, config: ModelConfig, names: Iterable[str]) -> ModelConfig:
        """The config of a checkpoint of these tensors, which say if there is a head."""
        if self.mtp is None or not any(name.startswith("mtp.") for name in names):
            return config
        return dataclasses.replace(config, mtp=self.mtp(config))

    def is_kept(self, name: str) -> bool:
        """Whether a tensor is there for `export` alone."""
        return re.fullmatch(self.kept, name) is not None

    def is_buffer(self, name: str) -> bool:
        """Whether a tensor is no parameter."""
        return re.fullmatch(self.buffers, name) is not None

    def describe(self, config: ModelConfig) -> dict[str, Any]:
        """A published config that reads as `config`, but for dtype and chunk sizes.

        Raises:
            ValueError: if the family has no such model.
        """
        record = {"model_type": self.kind, "architectures": [self.architecture]}
        try:
            record |= self.write(config)
            again = self.read(record)
            again = self.with_head(again, ["mtp."] if config.mtp else [])
        except (AttributeError, ValueError):  # of settings that the model lacks
            again = None
        if again is None or _meaning(again) != _meaning(config):
            raise ValueError(
                f"{self.name} has no model with layers {config.layers!r} and these "
                "settings."
            )
        return record


def _meaning(config: ModelConfig) -> ModelConfig:
    """A config without what is a matter of speed, precision or spelling alone."""
    used = {name for kind in config.layers for name in BLOCKS[kind]}
    names = {name for kind in BLOCKS for name in BLOCKS[kind]}
    own = {name: getattr(config, name) if name in used else None for name in names}
    if c := own["mamba1"]:
        rank = c.dt_rank or math.ceil(config.d_model / 16)
        eps = (c.norm_eps or config.norm_eps) if c.norm != "none" else 0.0
        own["mamba1"] = dataclasses.replace(c, dt_rank=rank, norm_eps=eps, chunk_size=1)
    if c := own["mamba2"]:
        groups = c.norm_groups or c.ngroups
        own["mamba2"] = dataclasses.replace(c, norm_groups=groups, chunk_size=1)
    if c := own["attention"]:
        own["attention"] = dataclasses.replace(c, scale=c.scale or c.head_dim**-0.5)
    if c := own["delta"]:
        own["delta"] = dataclasses.replace(c, chunk_size=1)
    return dataclasses.replace(config, **own, dtype="float32")
