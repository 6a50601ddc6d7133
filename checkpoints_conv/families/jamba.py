"""Jamba (`jamba`): Mamba-1 or attention, then SwiGLU or experts, in every layer.

Mamba-1 has learned norms on dt, B and C, attention has no positions; the names are
Bamba's.
"""

from collections.abc import Callable
from typing import Any

from checkpoints_conv.families import bamba
from checkpoints_conv.family import Family
from checkpoints_conv.fields import Fields
from jaxspec.models.config import (
    AttentionConfig,
    Mamba1Config,
    MLPConfig,
    ModelConfig,
    MoEConfig,
)


def read(record: dict[str, Any]) -> ModelConfig:
    """Reads transformers' config."""
    f = Fields({"num_experts": 16} | record)
    f.expect("hidden_act", "silu")
    f.skip("mamba_inner_layernorms", "n_ctx")
    d_model, count = f.integer("hidden_size"), f.integer("num_hidden_layers")
    heads = f.integer("num_attention_heads", 32)
    attends = _every(f, "attn_layer", 8, 4)
    has_experts, experts = _every(f, "expert_layer", 2, 1), f.integer("num_experts")
    top_k = f.integer("num_experts_per_tok", 2)
    d_ff = f.integer("intermediate_size", 14336)  # of an expert as well
    layers = "".join(
        ("*" if attends(i) else "m") + ("E" if experts > 1 and has_experts(i) else "-")
        for i in range(count)
    )
    is_auto = f.take("mamba_dt_rank", "auto") == "auto"
    config = ModelConfig(
        vocab_size=f.integer("vocab_size"),
        d_model=d_model,
        layers=layers,
        mamba1=Mamba1Config(
            expand=f.integer("mamba_expand", 2),
            d_state=f.integer("mamba_d_state", 16),
            d_conv=f.integer("mamba_d_conv", 4),
            dt_rank=-(-d_model // 16) if is_auto else f.integer("mamba_dt_rank"),
            conv_bias=f.flag("mamba_conv_bias", True),
            proj_bias=f.flag("mamba_proj_bias", False),
            norm="learned",
        ),
        attention=AttentionConfig(
            num_heads=heads,
            num_kv_heads=f.integer("num_key_value_heads", 8),
            head_dim=f.integer("head_dim", None) or d_model // heads,
            rope_fraction=0.0,
        ),
        mlp=MLPConfig(d_ff),
        moe=MoEConfig(experts, top_k, d_ff, renormalize=False)
        if "E" in layers
        else None,
        norm_eps=f.number("rms_norm_eps", 1e-6),
        tie_embeddings=f.flag("tie_word_embeddings", False),
    )
    f.finish()
    return config


def _every(f: Fields, name: str, period: int, offset: int) -> Callable[[int], bool]:
    """Which layers are of a kind that comes at even distances."""
    period = f.integer(f"{name}_period", period)
    offset = f.integer(f"{name}_offset", offset)
    return lambda i: i % period == offset


def _write_every(name: str, kinds: str, kind: str) -> dict[str, int]:
    """Writes what `_every` reads."""
    first, *others = [i for i, k in enumerate(kinds) if k == kind] or [len(kinds)]
    period = others[0] - first if others else len(kinds) + 1
    return {f"{name}_period": period, f"{name}_offset": first}


def write(config: ModelConfig) -> dict[str, Any]:
    """Writes transformers' config, where attention and experts come at even distances."""
    mixing, mamba1, attention = config.layers[::2], config.mamba1, config.attention
    has_experts, d_ff = "E" in config.layers, (config.mlp or config.moe).d_ff
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "hidden_act": "silu",
        "num_hidden_layers": len(mixing),
        **_write_every("attn_layer", mixing, "*"),
        **_write_every("expert_layer", config.layers[1::2], "E"),
        "num_experts": config.moe.num_experts if has_experts else 1,
        "num_experts_per_tok": config.moe.top_k if has_experts else 1,
        "mamba_expand": mamba1.expand,
        "mamba_d_state": mamba1.d_state,
        "mamba_d_conv": mamba1.d_conv,
        "mamba_dt_rank": mamba1.dt_rank or -(-config.d_model // 16),
        "mamba_conv_bias": mamba1.conv_bias,
        "mamba_proj_bias": mamba1.proj_bias,
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_kv_heads,
        "head_dim": attention.head_dim,
        "intermediate_size": d_ff,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
    }


FAMILY = Family("jamba", "JambaForCausalLM", read, write, bamba.parts)
