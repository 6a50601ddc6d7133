"""Jamba (`jamba`) without experts: Mamba-1 or attention, then SwiGLU, in every layer.

Mamba-1 has learned norms on dt, B and C, attention has no positions; the names are
Bamba's.
"""

from typing import Any

from checkpoints_conv.families import bamba
from checkpoints_conv.family import Family
from checkpoints_conv.fields import Fields
from jaxspec.models.config import AttentionConfig, Mamba1Config, MLPConfig, ModelConfig


def read(record: dict[str, Any]) -> ModelConfig:
    """Reads transformers' config."""
    f = Fields({"num_experts": 16} | record)
    f.expect("hidden_act", "silu")
    f.expect("num_experts", 1)
    f.skip("num_experts_per_tok", "expert_layer_period", "expert_layer_offset")
    f.skip("mamba_inner_layernorms")
    d_model, count = f.integer("hidden_size"), f.integer("num_hidden_layers")
    heads = f.integer("num_attention_heads", 32)
    period, offset = (
        f.integer("attn_layer_period", 8),
        f.integer("attn_layer_offset", 4),
    )
    is_auto = f.take("mamba_dt_rank", "auto") == "auto"
    config = ModelConfig(
        vocab_size=f.integer("vocab_size"),
        d_model=d_model,
        layers="".join("*-" if i % period == offset else "m-" for i in range(count)),
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
        mlp=MLPConfig(f.integer("intermediate_size", 14336)),
        norm_eps=f.number("rms_norm_eps", 1e-6),
        tie_embeddings=f.flag("tie_word_embeddings", False),
    )
    f.finish()
    return config


def write(config: ModelConfig) -> dict[str, Any]:
    """Writes transformers' config, where attention comes at even distances."""
    mixing, mamba1, attention = config.layers[::2], config.mamba1, config.attention
    attends = [i for i, kind in enumerate(mixing) if kind == "*"]
    first, *others = attends or [len(mixing)]
    period = others[0] - first if others else len(mixing) + 1
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": len(mixing),
        "attn_layer_period": period,
        "attn_layer_offset": first,
        "num_experts": 1,
        "mamba_expand": mamba1.expand,
        "mamba_d_state": mamba1.d_state,
        "mamba_d_conv": mamba1.d_conv,
        "mamba_dt_rank": mamba1.dt_rank or -(-config.d_model // 16),
        "mamba_conv_bias": mamba1.conv_bias,
        "mamba_proj_bias": mamba1.proj_bias,
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_kv_heads,
        "head_dim": attention.head_dim,
        "intermediate_size": config.mlp.d_ff,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
    }


FAMILY = Family("jamba", "JambaForCausalLM", read, write, bamba.parts)
