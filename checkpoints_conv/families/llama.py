"""Llama (`llama`): attention and SwiGLU in every layer, two blocks of ours."""

from typing import Any

from checkpoints_conv import mixers, settings, table
from checkpoints_conv.family import Family
from checkpoints_conv.fields import Fields
from checkpoints_conv.table import Part
from jaxspec.models.config import MLPConfig, ModelConfig


def read(record: dict[str, Any]) -> ModelConfig:
    """Reads transformers' config."""
    f = Fields(record)
    f.expect("hidden_act", "silu")
    f.skip("is_llama_config")
    d_model = f.integer("hidden_size")
    config = ModelConfig(
        vocab_size=f.integer("vocab_size"),
        d_model=d_model,
        layers="*-" * f.integer("num_hidden_layers"),
        attention=settings.attention(f, d_model, **settings.rope(f)),
        mlp=MLPConfig(f.integer("intermediate_size"), bias=f.flag("mlp_bias", False)),
        norm_eps=f.number("rms_norm_eps", 1e-6),
        tie_embeddings=f.flag("tie_word_embeddings", False),
    )
    f.finish()
    return config


def write(config: ModelConfig) -> dict[str, Any]:
    """Writes transformers' config."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "hidden_act": "silu",
        "num_hidden_layers": len(config.layers) // 2,
        **settings.write_attention(config.attention),
        **settings.write_rope(config.attention),
        "intermediate_size": config.mlp.d_ff,
        "mlp_bias": config.mlp.bias,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
    }


def parts(config: ModelConfig) -> list[Part]:
    """The table of names."""

    def blocks():
        for i in range(len(config.layers) // 2):
            at = f"model.layers.{i}"
            norm = mixers.norm("norm", f"{at}.input_layernorm", config.d_model)
            yield norm, *mixers.attention(config, f"{at}.self_attn")
            norm = mixers.norm("norm", f"{at}.post_attention_layernorm", config.d_model)
            yield norm, *mixers.mlp(config, f"{at}.mlp")

    ends = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
    return table.model(config, *ends, blocks())


FAMILY = Family("llama", "LlamaForCausalLM", read, write, parts)
