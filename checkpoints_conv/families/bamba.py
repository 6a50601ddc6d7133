"""Bamba (`bamba`): Mamba-2 or, seldom, attention, then SwiGLU, in every layer."""

import functools
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
    d_model, count = f.integer("hidden_size"), f.integer("num_hidden_layers")
    attends = {*f.items("attn_layer_indices", [])}
    if not attends <= {*range(count)}:
        raise ValueError(
            f"config.json: attn_layer_indices must be within 0 to {count - 1}, got "
            f"{sorted(attends, key=str)}."
        )
    f.skip("partial_rotary_factor")  # transformers looks into rope_parameters alone
    attention = settings.attention(f, d_model, **settings.rope(f, 0.5, True))
    f.expect("attn_rotary_emb", attention.rope_dim)
    config = ModelConfig(
        vocab_size=f.integer("vocab_size"),
        d_model=d_model,
        layers="".join("*-" if i in attends else "M-" for i in range(count)),
        mamba2=settings.mamba2(f, d_model),
        attention=attention,
        mlp=MLPConfig(
            f.integer("intermediate_size", 14336), bias=f.flag("mlp_bias", False)
        ),
        norm_eps=f.number("rms_norm_eps", 1e-5),
        tie_embeddings=f.flag("tie_word_embeddings", False),
    )
    f.finish()
    return config


def write(config: ModelConfig) -> dict[str, Any]:
    """Writes transformers' config."""
    mixing, c = config.layers[::2], config.attention
    rope = settings.write_rope(c)
    if c.rope_fraction != 0.5:
        rope |= settings.write_rope_parameters(c, True)
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "hidden_act": "silu",
        "num_hidden_layers": len(mixing),
        "attn_layer_indices": [i for i, kind in enumerate(mixing) if kind == "*"],
        **settings.write_mamba2(config.mamba2, config.d_model),
        **settings.write_attention(c),
        **rope,
        "attn_rotary_emb": c.rope_dim,
        "intermediate_size": config.mlp.d_ff,
        "mlp_bias": config.mlp.bias,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
    }


def parts(config: ModelConfig) -> list[Part]:
    """The table of names."""
    mixer = {
        "M": (mixers.mamba2, "mamba"),
        "*": (mixers.attention, "self_attn"),
        "m": (mixers.mamba1, "mamba"),
    }

    after = {"-": mixers.mlp, "E": functools.partial(mixers.moe, router="router")}
    halves = config.layers[::2], config.layers[1::2]

    def blocks():
        for i, (kind, feed_forward) in enumerate(zip(*halves, strict=True)):
            at = f"model.layers.{i}"
            leaves, name = mixer[kind]
            norm = mixers.norm("norm", f"{at}.input_layernorm", config.d_model)
            yield norm, *leaves(config, f"{at}.{name}")
            norm = mixers.norm("norm", f"{at}.pre_ff_layernorm", config.d_model)
            yield norm, *after[feed_forward](config, f"{at}.feed_forward")

    ends = "model.embed_tokens.weight", "model.final_layernorm.weight", "lm_head.weight"
    return table.model(config, *ends, blocks())


FAMILY = Family("bamba", "BambaForCausalLM", read, write, parts)
