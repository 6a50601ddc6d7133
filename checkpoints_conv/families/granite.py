"""Granite 4.0 (`granitemoehybrid`): a mixer, then SwiGLU or experts, in every layer.

The mixer is Mamba-2 or attention, mostly without positions; everything is scaled. Beside
the experts stands the same SwiGLU, which is then the one that all tokens share.
"""

from collections.abc import Iterator
from typing import Any

from checkpoints_conv import mixers, settings, table
from checkpoints_conv.family import Family
from checkpoints_conv.fields import Fields
from checkpoints_conv.table import Leaf, Part, columns, linear, stack
from jaxspec.models.config import MLPConfig, ModelConfig, MoEConfig


def read(record: dict[str, Any]) -> ModelConfig:
    """Reads transformers' config."""
    f = Fields(record)
    f.expect("hidden_act", "silu")
    f.expect("normalization_function", "rmsnorm")
    f.skip("init_method")
    d_model = f.integer("hidden_size")
    count = f.integer("num_hidden_layers")
    mixing = settings.kinds(f, "layer_types", count, ["mamba"] * count)
    position = f.take("position_embedding_type", "nope")
    f.expect("position_embedding_type", "nope", "rope")
    rope = settings.rope(f)
    if position == "nope":
        rope = {"rope_fraction": 0.0}
    scale = f.number("attention_multiplier", 1.0)
    if scale == 0.0:
        raise ValueError("config.json: attention_multiplier must not be 0.")
    own = _feed_forward(f)
    feed_forward = "E" if "moe" in own else "-"
    config = ModelConfig(
        vocab_size=f.integer("vocab_size"),
        d_model=d_model,
        layers="".join(kind + feed_forward for kind in mixing),
        mamba2=settings.mamba2(f, d_model),
        attention=settings.attention(f, d_model, scale=scale, **rope),
        **own,
        norm_eps=f.number("rms_norm_eps", 1e-6),
        tie_embeddings=f.flag("tie_word_embeddings", False),
        embedding_multiplier=f.number("embedding_multiplier", 1.0),
        residual_multiplier=f.number("residual_multiplier", 1.0),
        logits_multiplier=1.0 / f.number("logits_scaling", 1.0),
    )
    f.finish()
    return config


def _feed_forward(f: Fields) -> dict[str, Any]:
    """The settings of SwiGLU, or of the experts and the SwiGLU that they share."""
    shared = f.integer("shared_intermediate_size", 1024)
    experts = f.integer("num_local_experts", 8)
    top_k = f.integer("num_experts_per_tok", 2)
    d_ff = f.integer("intermediate_size", 11008)  # of an expert
    if not experts:
        return {"mlp": MLPConfig(shared)}
    return {"moe": MoEConfig(experts, top_k, d_ff, shared_d_ff=shared)}


def write(config: ModelConfig) -> dict[str, Any]:
    """Writes transformers' config."""
    c = config.attention
    position = "rope" if c.rope_dim else "nope"
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "hidden_act": "silu",
        "normalization_function": "rmsnorm",
        "num_hidden_layers": len(config.layers) // 2,
        "layer_types": settings.write_kinds(config.layers[::2]),
        **_write_feed_forward(config),
        **settings.write_mamba2(config.mamba2, config.d_model),
        **settings.write_attention(c),
        "position_embedding_type": position,
        **settings.write_rope(c),
        "attention_multiplier": c.scale or c.head_dim**-0.5,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "embedding_multiplier": config.embedding_multiplier,
        "residual_multiplier": config.residual_multiplier,
        "logits_scaling": 1.0 / config.logits_multiplier,
    }


def _write_feed_forward(config: ModelConfig) -> dict[str, Any]:
    """Writes what `_feed_forward` reads."""
    if "E" not in config.layers:
        d_ff = config.mlp.d_ff  # twice, as published, where no expert is so wide either
        return {
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "intermediate_size": d_ff,
            "shared_intermediate_size": d_ff,
        }
    return {
        "num_local_experts": config.moe.num_experts,
        "num_experts_per_tok": config.moe.top_k,
        "intermediate_size": config.moe.d_ff,
        "shared_intermediate_size": config.moe.shared_d_ff,
    }


def parts(config: ModelConfig) -> list[Part]:
    """The table of names."""

    def blocks():
        for i, kind in enumerate(config.layers[::2]):
            at = f"model.layers.{i}"
            norm = mixers.norm("norm", f"{at}.input_layernorm", config.d_model)
            if kind == "M":
                yield norm, *mixers.mamba2(config, f"{at}.mamba")
            else:
                yield norm, *mixers.attention(config, f"{at}.self_attn")
            norm = mixers.norm("norm", f"{at}.post_attention_layernorm", config.d_model)
            if "E" in config.layers:
                yield norm, *_experts(config, at)
            else:
                yield norm, *_swiglu(config, "mlp.", config.mlp.d_ff, at)

    ends = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
    return table.model(config, *ends, blocks())


def _swiglu(config: ModelConfig, leaf: str, d_ff: int, at: str) -> Iterator[Leaf]:
    """SwiGLU, its gate and what it gates in one tensor."""
    up = [(f"{at}.shared_mlp.input_linear", 2 * d_ff)]
    yield from linear(f"{leaf}up_proj", up, config.d_model, False)
    down = [(f"{at}.shared_mlp.output_linear", config.d_model)]
    yield from linear(f"{leaf}down_proj", down, d_ff, False)


def _experts(config: ModelConfig, at: str) -> Iterator[Leaf]:
    """All experts in one tensor, and the one that all tokens share."""
    c, d_model, moe = config.moe, config.d_model, f"{at}.block_sparse_moe"
    router = f"{moe}.router.layer.weight", c.num_experts, d_model
    yield columns("moe.router.kernel", router)
    up = f"{moe}.input_linear.weight", c.num_experts, 2 * c.d_ff, d_model
    yield stack("moe.up_proj.kernel", *up)
    down = f"{moe}.output_linear.weight", c.num_experts, d_model, c.d_ff
    yield stack("moe.down_proj.kernel", *down)
    yield from _swiglu(config, "moe.shared_", c.shared_d_ff, at)


FAMILY = Family("granitemoehybrid", "GraniteMoeHybridForCausalLM", read, write, parts)
