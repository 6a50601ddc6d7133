"""Falcon-Mamba (`falcon_mamba`): Mamba-1 with norms without scales on dt, B and C."""

from typing import Any

from checkpoints_conv.families import mamba
from checkpoints_conv.family import Family
from checkpoints_conv.fields import Fields
from jaxspec.models.config import ModelConfig


def read(record: dict[str, Any]) -> ModelConfig:
    """Reads transformers' config."""
    f = Fields(record)
    eps = f.number("mixer_rms_eps", 1e-6)
    config = mamba.read_fields(f, norm="unit", norm_eps=eps)
    f.finish()
    return config


def write(config: ModelConfig) -> dict[str, Any]:
    """Writes transformers' config."""
    eps = config.mamba1.norm_eps or config.norm_eps
    return mamba.write_fields(config) | {"mixer_rms_eps": eps}


FAMILY = Family("falcon_mamba", "FalconMambaForCausalLM", read, write, mamba.parts)
