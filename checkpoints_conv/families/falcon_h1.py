"""Falcon-H1 (`falcon_h1`): Mamba-2 beside attention, then SwiGLU, in every layer.

Everything is multiplied by a factor of its own (muP).
"""

from typing import Any

from checkpoints_conv import mixers, settings, table
from checkpoints_conv.family import Family
from checkpoints_conv.fields import Fields
from checkpoints_conv.table import Part
from jaxspec.models.config import MLPConfig, ModelConfig


def read(record: dict[str, Any]) -> ModelConfig:
    """Reads transformers' config."""
    f = Fields({"mamba_d_ssm": 1024} | record)
    f.expect("hidden_act", "silu")
    f.expect("projectors_bias", f.flag("mamba_proj_bias", False))
    f.skip("mlp_expansion_factor", "mamba_use_mlp", "attn_layer_indices")
    f.skip("time_step_rank")
    d_model = f.integer("hidden_size")
    before = f.flag("mamba_norm_before_gate", True)
    norm = "before" if before else "after"
    gate, down = f.numbers("mlp_multipliers", (1.0, 1.0))
    mamba2 = settings.mamba2(
        f,
        d_model,
        norm=norm if f.flag("mamba_rms_norm", False) else "none",
        in_multiplier=f.number("ssm_in_multiplier", 1.0),
        out_multiplier=f.number("ssm_out_multiplier", 1.0),
        projection_multipliers=f.numbers("ssm_multipliers", (1.0,) * 5),
    )
    attention = settings.attention(
        f,
        d_model,
        in_multiplier=f.number("attention_in_multiplier", 1.0),
        key_multiplier=f.number("key_multiplier", 1.0),
        out_multiplier=f.number("attention_out_multiplier", 1.0),
        **settings.rope(f),
    )
    mlp = MLPConfig(
        f.integer("intermediate_size", 14336),
        bias=f.flag("mlp_bias", False),
        gate_multiplier=gate,
        out_multiplier=down,
    )
    config = ModelConfig(
        vocab_size=f.integer("vocab_size"),
        d_model=d_model,
        layers="P-" * f.integer("num_hidden_layers"),
        mamba2=mamba2,
        attention=attention,
        mlp=mlp,
        norm_eps=f.number("rms_norm_eps", 1e-5),
        tie_embeddings=f.flag("tie_word_embeddings", False),
        embedding_multiplier=f.number("embedding_multiplier", 1.0),
        logits_multiplier=f.number("lm_head_multiplier", 1.0),
    )
    f.finish()
    return config


def write(config: ModelConfig) -> dict[str, Any]:
    """Writes transformers' config."""
    mamba2, attention, mlp = config.mamba2, config.attention, config.mlp
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "hidden_act": "silu",
        "num_hidden_layers": len(config.layers) // 2,
        **settings.write_mamba2(mamba2, config.d_model),
        "mamba_expand": 2,  # which mamba_d_ssm goes before
        "mamba_d_ssm": mamba2.d_inner,
        "mamba_rms_norm": mamba2.norm != "none",
        "mamba_norm_before_gate": mamba2.norm == "before",
        "projectors_bias": mamba2.proj_bias,
        "ssm_in_multiplier": mamba2.in_multiplier,
        "ssm_out_multiplier": mamba2.out_multiplier,
        "ssm_multipliers": list(mamba2.projection_multipliers),
        **settings.write_attention(attention),
        **settings.write_rope(attention),
        "attention_in_multiplier": attention.in_multiplier,
        "key_multiplier": attention.key_multiplier,
        "attention_out_multiplier": attention.out_multiplier,
        "intermediate_size": mlp.d_ff,
        "mlp_bias": mlp.bias,
        "mlp_multipliers": [mlp.gate_multiplier, mlp.out_multiplier],
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "embedding_multiplier": config.embedding_multiplier,
        "lm_head_multiplier": config.logits_multiplier,
    }


def parts(config: ModelConfig) -> list[Part]:
    """The table of names."""

    def blocks():
        for i in range(len(config.layers) // 2):
            at = f"model.layers.{i}"
            yield (
                mixers.norm("norm", f"{at}.input_layernorm", config.d_model),
                *mixers.mamba2(config, f"{at}.mamba"),
                *mixers.attention(config, f"{at}.self_attn"),
            )
            norm = mixers.norm("norm", f"{at}.pre_ff_layernorm", config.d_model)
            yield norm, *mixers.mlp(config, f"{at}.feed_forward")

    ends = "model.embed_tokens.weight", "model.final_layernorm.weight", "lm_head.weight"
    return table.model(config, *ends, blocks())


FAMILY = Family("falcon_h1", "FalconH1ForCausalLM", read, write, parts)
