"""Mamba-2 (`mamba2`): blocks of nothing else, in transformers' form and in its authors'."""

from typing import Any

from checkpoints_conv.families import mamba
from checkpoints_conv.family import Family
from checkpoints_conv.fields import Fields
from checkpoints_conv.settings import INFINITE
from jaxspec.models.config import Mamba2Config, ModelConfig


def read(record: dict[str, Any]) -> ModelConfig:
    """Reads transformers' config."""
    f = Fields(record)
    f.expect("hidden_act", "silu")
    f.expect("rms_norm", True)
    f.skip("time_step_rank", "chunk_size", "norm_before_gate")  # nor does transformers
    d_model, expand = f.integer("hidden_size"), f.number("expand", 2.0)
    mixer = Mamba2Config(
        nheads=f.integer("num_heads", 128),
        headdim=f.integer("head_dim", 64),
        d_state=f.integer("state_size", 128),
        ngroups=f.integer("n_groups", 8),
        d_conv=f.integer("conv_kernel", 4),
        conv_bias=f.flag("use_conv_bias", True),
        proj_bias=f.flag("use_bias", False),
        dt_limits=f.numbers("time_step_limit", INFINITE),
    )
    if mixer.d_inner != expand * d_model:
        raise ValueError(
            f"config.json: num_heads * head_dim is {mixer.d_inner} and expand * "
            f"hidden_size is {expand * d_model:g}; they must be equal."
        )
    f.expect("intermediate_size", mixer.d_inner)
    config = ModelConfig(
        vocab_size=f.integer("vocab_size"),
        d_model=d_model,
        layers="M" * f.integer("num_hidden_layers"),
        mamba2=mixer,
        norm_eps=f.number("layer_norm_epsilon", 1e-5),
        tie_embeddings=f.flag("tie_word_embeddings", False),
    )
    f.finish()
    return config


def write(config: ModelConfig) -> dict[str, Any]:
    """Writes transformers' config."""
    c = config.mamba2
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "hidden_act": "silu",
        "rms_norm": True,
        "num_hidden_layers": len(config.layers),
        "expand": c.d_inner // config.d_model,
        "intermediate_size": c.d_inner,
        "num_heads": c.nheads,
        "head_dim": c.headdim,
        "state_size": c.d_state,
        "n_groups": c.ngroups,
        "conv_kernel": c.d_conv,
        "use_conv_bias": c.conv_bias,
        "use_bias": c.proj_bias,
        "time_step_limit": list(c.dt_limits),
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
    }


FAMILY = Family(
    "mamba2",
    "Mamba2ForCausalLM",
    read,
    write,
    mamba.parts,
    others=(mamba.authors_parts,),
)
