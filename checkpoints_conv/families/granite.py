"""Granite 4.0 (`granitemoehybrid`) without experts: a mixer and SwiGLU in every layer.

The mixer is Mamba-2 or attention, mostly without positions; everything is scaled.
"""

from typing import Any

from checkpoints_conv import mixers, settings, table
from checkpoints_conv.family import Family
from checkpoints_conv.fields import Fields
from checkpoints_conv.table import Part, linear
from jaxspec.models.config import MLPConfig, ModelConfig


def read(record: dict[str, Any]) -> ModelConfig:
    """Reads transformers' config."""
    f = Fields({"num_local_experts": 8} | record)
    f.expect("hidden_act", "silu")
    f.expect("num_local_experts", 0)
    f.expect("normalization_function", "rmsnorm")
    f.skip("num_experts_per_tok", "intermediate_size")  # of experts
    d_model = f.integer("hidden_size")
    mixing = settings.kinds(f, "layer_types", f.integer("num_hidden_layers"))
    position = f.take("position_embedding_type", "nope")
    f.expect("position_embedding_type", "nope", "rope")
    rope = settings.rope(f)
    if position == "nope":
        rope = {"rope_fraction": 0.0}
    scale = f.number("attention_multiplier", 1.0)
    config = ModelConfig(
        vocab_size=f.integer("vocab_size"),
        d_model=d_model,
        layers="".join(kind + "-" for kind in mixing),
        mamba2=settings.mamba2(f, d_model),
        attention=settings.attention(f, d_model, scale=scale, **rope),
        mlp=MLPConfig(f.integer("shared_intermediate_size", 1024)),
        norm_eps=f.number("rms_norm_eps", 1e-6),
        tie_embeddings=f.flag("tie_word_embeddings", False),
        embedding_multiplier=f.number("embedding_multiplier", 1.0),
        residual_multiplier=f.number("residual_multiplier", 1.0),
        logits_multiplier=1.0 / f.number("logits_scaling", 1.0),
    )
    f.finish()
    return config


def write(config: ModelConfig) -> dict[str, Any]:
    """Writes transformers' config."""
    c = config.attention
    position = {"position_embedding_type": None}
    if c.rope_dim:
        position = {"position_embedding_type": "rope", **settings.write_rope(c)}
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": len(config.layers) // 2,
        "layer_types": settings.write_kinds(config.layers[::2]),
        "num_local_experts": 0,
        **settings.write_mamba2(config.mamba2, config.d_model),
        **settings.write_attention(c),
        **position,
        "attention_multiplier": c.scale,
        "shared_intermediate_size": config.mlp.d_ff,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "embedding_multiplier": config.embedding_multiplier,
        "residual_multiplier": config.residual_multiplier,
        "logits_scaling": 1.0 / config.logits_multiplier,
    }


def parts(config: ModelConfig) -> list[Part]:
    """The table of names."""
    d_model, d_ff = config.d_model, config.mlp.d_ff

    def blocks():
        for i, kind in enumerate(config.layers[::2]):
            at = f"model.layers.{i}"
            norm = mixers.norm("norm", f"{at}.input_layernorm", d_model)
            if kind == "M":
                yield norm, *mixers.mamba2(config, f"{at}.mamba")
            else:
                yield norm, *mixers.attention(config, f"{at}.self_attn")
            up = [(f"{at}.shared_mlp.input_linear", 2 * d_ff)]
            down = [(f"{at}.shared_mlp.output_linear", d_model)]
            yield (
                mixers.norm("norm", f"{at}.post_attention_layernorm", d_model),
                *linear("mlp.up_proj", up, d_model, False),
                *linear("mlp.down_proj", down, d_ff, False),
            )

    ends = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
    return table.model(config, *ends, blocks())


FAMILY = Family("granitemoehybrid", "GraniteMoeHybridForCausalLM", read, write, parts)
