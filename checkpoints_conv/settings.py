"""Groups of fields that several families spell alike, read and written.

Newer configs hold RoPE's fields in `rope_parameters`, older ones beside the others; the
kinds of layers have two spellings as well. Both are read, and what is written is the
spelling of the published folders, which programs other than transformers know.
"""

import math
from typing import Any

from checkpoints_conv.fields import REQUIRED, Fields
from jaxspec.models.config import AttentionConfig, DeltaConfig, Mamba2Config

INFINITE = (0.0, math.inf)
_KINDS = {"linear_attention": "M", "full_attention": "*", "mlp": "-", "moe": "E"}
_KINDS |= {"mamba": "M", "attention": "*"}  # as published, which `write_kinds` writes
_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor")


def kinds(
    f: Fields,
    name: str,
    count: int | None = None,
    default: Any = REQUIRED,
    known: dict[str, str] = _KINDS,
) -> str:
    """Kinds of the layers, one character each."""
    names = f.items(name, default)
    for kind in names:
        if kind not in known:
            raise ValueError(
                f"config.json: jaxspec does not implement a layer {kind!r} in {name}; "
                f"expected {', '.join(known)}."
            )
    if count not in (None, len(names)):
        raise ValueError(
            f"config.json: {name} names {len(names)} layers and num_hidden_layers is "
            f"{count}."
        )
    return "".join(known[kind] for kind in names)


def write_kinds(layers: str, known: dict[str, str] = _KINDS) -> list[str]:
    """Writes what `kinds` reads; the last spelling of a kind in `known`."""
    names = {kind: name for name, kind in known.items()}
    if not {*layers} <= names.keys():
        raise ValueError(f"{layers!r} has layers other than {' '.join(names)}.")
    return [names[kind] for kind in layers]


def write_limits(limits: tuple[float, float]) -> dict[str, Any]:
    """Writes bounds of the step sizes, which most configs have only where there are any."""
    return {} if limits == INFINITE else {"time_step_limit": list(limits)}


def write_floor(limits: tuple[float, float]) -> dict[str, Any]:
    """Writes the lower bound of the step sizes as transformers 5 reads it.

    Its Nemotron-H and Zamba2 skip `time_step_limit` and take `time_step_min`, the lower end
    of what step sizes are begun at, for a bound; its logarithm must be finite.
    """
    return {"time_step_min": max(limits[0], 1e-30)}


def mamba2(f: Fields, d_model: int, **settings: Any) -> Mamba2Config:
    """Mamba-2 as hybrids spell it; `settings` are what a family does otherwise."""
    f.skip("mamba_chunk_size")
    expand, heads = f.number("mamba_expand", 2.0), f.integer("mamba_n_heads", 128)
    d_inner = f.integer("mamba_d_ssm", None) or round(expand * d_model)
    is_auto = f.take("mamba_d_head", "auto") == "auto"
    headdim = d_inner // heads if is_auto else f.integer("mamba_d_head")
    if heads * headdim != d_inner:
        raise ValueError(
            f"config.json: mamba_n_heads * mamba_d_head is {heads * headdim}, and the "
            f"mixer is {d_inner} wide; they must be equal."
        )
    return Mamba2Config(
        nheads=heads,
        headdim=headdim,
        d_state=f.integer("mamba_d_state", 256),
        ngroups=f.integer("mamba_n_groups", 1),
        d_conv=f.integer("mamba_d_conv", 4),
        conv_bias=f.flag("mamba_conv_bias", True),
        proj_bias=f.flag("mamba_proj_bias", False),
        dt_limits=f.numbers("time_step_limit", INFINITE),
        **settings,
    )


def write_mamba2(c: Mamba2Config, d_model: int) -> dict[str, Any]:
    """Writes what `mamba2` reads."""
    return {
        "mamba_expand": c.d_inner // d_model,
        "mamba_n_heads": c.nheads,
        "mamba_d_head": c.headdim,
        "mamba_d_state": c.d_state,
        "mamba_n_groups": c.ngroups,
        "mamba_d_conv": c.d_conv,
        "mamba_conv_bias": c.conv_bias,
        "mamba_proj_bias": c.proj_bias,
        **write_limits(c.dt_limits),
    }


def delta(f: Fields) -> DeltaConfig:
    """The gated delta rule as Qwen spells it."""
    return DeltaConfig(
        num_value_heads=f.integer("linear_num_value_heads"),
        num_key_heads=f.integer("linear_num_key_heads"),
        value_head_dim=f.integer("linear_value_head_dim"),
        key_head_dim=f.integer("linear_key_head_dim"),
        d_conv=f.integer("linear_conv_kernel_dim"),
    )


def write_delta(c: DeltaConfig) -> dict[str, Any]:
    """Writes what `delta` reads."""
    return {
        "linear_num_value_heads": c.num_value_heads,
        "linear_num_key_heads": c.num_key_heads,
        "linear_value_head_dim": c.value_head_dim,
        "linear_key_head_dim": c.key_head_dim,
        "linear_conv_kernel_dim": c.d_conv,
    }


def attention(f: Fields, d_model: int, **settings: Any) -> AttentionConfig:
    """Attention with one flag for all its biases, as in Llama."""
    heads = f.integer("num_attention_heads", 32)
    bias = f.flag("attention_bias", False)
    return AttentionConfig(
        num_heads=heads,
        num_kv_heads=f.integer("num_key_value_heads", heads),
        head_dim=f.integer("head_dim", None) or d_model // heads,
        qkv_bias=bias,
        out_bias=bias,
        **settings,
    )


def write_attention(c: AttentionConfig) -> dict[str, Any]:
    """Writes what `attention` reads."""
    return {
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        "attention_bias": c.qkv_bias,
    }


def rope(f: Fields, fraction: float = 1.0, partial: bool = False) -> dict[str, Any]:
    """RoPE's settings in an `AttentionConfig`.

    Args:
        f: the config.
        fraction: what is turned of a head where the config does not say.
        partial: whether the family heeds what it says.
    """
    own = f.take("rope_parameters", {}) | (f.take("rope_scaling", None) or {})
    outer = {
        name: f.number(name, None) for name in ("rope_theta", "partial_rotary_factor")
    }
    r = Fields(
        {name: value for name, value in outer.items() if value is not None} | own
    )
    kind = r.take("rope_type", r.take("type", "default"))
    settings = {
        "rope_theta": r.number("rope_theta", 10_000.0),
        "rope_fraction": r.number("partial_rotary_factor", fraction),
    }
    if not partial and settings["rope_fraction"] != fraction:
        raise ValueError(
            f"config.json: partial_rotary_factor must be {fraction:g}, as these models "
            f"turn heads whole, got {settings['rope_fraction']:g}."
        )
    if kind == "llama3":
        length = r.integer("original_max_position_embeddings")
        settings["rope_scaling"] = (*map(r.number, _LLAMA3), float(length))
    elif kind != "default":
        raise ValueError(
            f"config.json: jaxspec does not implement rope_type {kind!r}; it must be "
            "'default' or 'llama3'."
        )
    r.skip("max_position_embeddings")
    r.skip("mrope_section", "mrope_interleaved")  # a text's three positions are one
    r.finish()
    return settings


def write_rope(c: AttentionConfig, partial: bool = False) -> dict[str, Any]:
    """Writes what `rope` reads, beside the other fields."""
    own = {"rope_theta": c.rope_theta, "rope_scaling": None}
    if partial:
        own["partial_rotary_factor"] = c.rope_fraction
    if c.rope_scaling:
        *factors, length = c.rope_scaling
        own["rope_scaling"] = {
            "rope_type": "llama3",
            **dict(zip(_LLAMA3, factors, strict=True)),
            "original_max_position_embeddings": int(length),
        }
    return own


def write_rope_parameters(c: AttentionConfig, partial: bool = False) -> dict[str, Any]:
    """Writes what `rope` reads, the newer way."""
    own = write_rope(c, partial)
    scaling = own.pop("rope_scaling") or {"rope_type": "default"}
    return {"rope_parameters": own | scaling}
