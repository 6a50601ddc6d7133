"""The families of published models that can be converted, one file each."""

from typing import Any

from checkpoints_conv.families import (
    bamba,
    falcon_h1,
    falcon_mamba,
    granite,
    jamba,
    llama,
    mamba,
    mamba2,
    mamba_in_llama,
    nemotron_h,
    qwen3_5,
    qwen3_next,
    state_spaces,
    zamba2,
)
from checkpoints_conv.family import Family
from jaxspec.models.config import ModelConfig

_PURE = (mamba2, mamba, falcon_mamba, llama)
_HYBRID = (granite, falcon_h1, nemotron_h, bamba, jamba, mamba_in_llama, zamba2)
_ALL = *(module.FAMILY for module in (*_PURE, *_HYBRID, qwen3_next)), *qwen3_5.FAMILIES
FAMILIES = {family.name: family for family in _ALL}


def find(record: dict[str, Any]) -> Family:
    """The family of a published config.

    Raises:
        ValueError: if there is none.
    """
    kind = record.get("model_type")
    if mamba_in_llama.FIELD in record and kind == "llama":
        return mamba_in_llama.FAMILY
    if kind is None and "ssm_cfg" in record:
        return state_spaces.find(record)
    kinds = {family.kind: family for family in reversed(_ALL)}  # the first of a kind
    if kind not in kinds:
        raise ValueError(
            f"config.json: unknown architecture {kind!r}; expected the model_type "
            f"{', '.join(sorted(kinds))}, or a config of state-spaces/mamba."
        )
    return kinds[kind]


def publish(config: ModelConfig) -> tuple[Family, dict[str, Any]]:
    """A family that has such a model, and its published config.

    Raises:
        ValueError: if no family has.
    """
    for family in FAMILIES.values():
        try:
            return family, family.describe(config)
        except ValueError:
            continue
    raise ValueError(
        f"No family of published models has layers {config.layers!r} with these settings; "
        f"known are {', '.join(FAMILIES)}."
    )
