"""Mamba-1 (`mamba`): blocks of nothing else, in transformers' form and in its authors'."""

import functools
import math
from typing import Any

from checkpoints_conv import mixers, table
from checkpoints_conv.family import Family
from checkpoints_conv.fields import Fields
from checkpoints_conv.table import Part
from jaxspec.models.config import Mamba1Config, ModelConfig


def read(record: dict[str, Any]) -> ModelConfig:
    """Reads transformers' config."""
    f = Fields(record)
    config = read_fields(f)
    f.finish()
    return config


def read_fields(f: Fields, **settings: Any) -> ModelConfig:
    """Reads what Falcon-Mamba's config says too; `settings` are what it does otherwise."""
    f.expect("hidden_act", "silu")
    f.expect("rms_norm", True)
    d_model, expand = f.integer("hidden_size"), f.integer("expand", 2)
    width = f.integer("intermediate_size", expand * d_model)  # which goes before expand
    f.expect("d_inner", width)
    if width % d_model:
        raise ValueError(
            f"config.json: intermediate_size {width} must be a multiple of hidden_size "
            f"{d_model}."
        )
    count = f.integer("num_hidden_layers", None) or f.integer("n_layer")
    f.expect("n_layer", count)
    f.expect("d_model", d_model)
    f.skip("pad_vocab_size_multiple")  # which vocab_size has been padded to
    is_auto = f.take("time_step_rank", "auto") == "auto"
    rank = math.ceil(d_model / 16) if is_auto else f.integer("time_step_rank")
    mixer = Mamba1Config(
        expand=width // d_model,
        d_state=f.integer("state_size", 16),
        d_conv=f.integer("conv_kernel", 4),
        dt_rank=rank,
        conv_bias=f.flag("use_conv_bias", True),
        proj_bias=f.flag("use_bias", False),
        **settings,
    )
    return ModelConfig(
        vocab_size=f.integer("vocab_size"),
        d_model=d_model,
        layers="m" * count,
        mamba1=mixer,
        norm_eps=f.number("layer_norm_epsilon", 1e-5),
        tie_embeddings=f.flag("tie_word_embeddings", True),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """Writes transformers' config."""
    again = {
        "d_model": config.d_model,
        "n_layer": len(config.layers),
        "d_inner": config.mamba1.expand * config.d_model,
        "rms_norm": True,
    }
    return write_fields(config) | again


def write_fields(config: ModelConfig) -> dict[str, Any]:
    """Writes what Falcon-Mamba's config says too."""
    c = config.mamba1
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "hidden_act": "silu",
        "num_hidden_layers": len(config.layers),
        "expand": c.expand,
        "intermediate_size": c.expand * config.d_model,
        "state_size": c.d_state,
        "conv_kernel": c.d_conv,
        "time_step_rank": c.dt_rank or math.ceil(config.d_model / 16),
        "use_conv_bias": c.conv_bias,
        "use_bias": c.proj_bias,
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
    }


def parts(config: ModelConfig, embed: str = "backbone.embeddings.weight") -> list[Part]:
    """The table of names, Mamba-2's too; the authors call the embedding otherwise."""
    mixer = mixers.mamba2 if config.mamba2 else mixers.mamba1

    def block(i):
        at = f"backbone.layers.{i}"
        yield mixers.norm("norm", f"{at}.norm", config.d_model)
        yield from mixer(config, f"{at}.mixer")

    blocks = map(block, range(len(config.layers)))
    ends = embed, "backbone.norm_f.weight", "lm_head.weight"
    return table.model(config, *ends, blocks)


authors_parts = functools.partial(parts, embed="backbone.embedding.weight")
"""The authors' table, which some checkpoints of transformers' form follow."""

FAMILY = Family(
    "mamba", "MambaForCausalLM", read, write, parts, others=(authors_parts,)
)
