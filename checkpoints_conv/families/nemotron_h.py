"""Nemotron-H (`nemotron_h`): Mamba-2, attention, a feed-forward or experts, one a layer.

Step sizes are bounded by `time_step_limit`, as in the code that NVIDIA publishes with its
models (`modeling_nemotron_h.py` of nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16).
`time_step_min` says how they are begun; transformers 5 takes it for a lower bound, which
changes what published weights compute (huggingface/transformers#48989). The head that
predicts several tokens is kept for `export`.
"""

import functools
from typing import Any

from checkpoints_conv import mixers, settings, table
from checkpoints_conv.family import Family
from checkpoints_conv.fields import Fields
from checkpoints_conv.table import Part
from jaxspec.models.config import (
    AttentionConfig,
    Mamba2Config,
    MLPConfig,
    ModelConfig,
    MoEConfig,
)

_ACTIVATIONS = {"relu2": "relu2", "gelu": "gelu"}
_OF_EXPERTS = ("n_routed_experts", "n_shared_experts", "moe_intermediate_size")
_OF_EXPERTS += ("moe_shared_expert_intermediate_size", "moe_shared_expert_overlap")
_OF_EXPERTS += ("num_experts_per_tok", "routed_scaling_factor", "n_group", "topk_group")
_OF_EXPERTS += ("norm_topk_prob", "moe_latent_size")
_EPSILONS = ("layer_norm_epsilon", "norm_eps", "rms_norm_eps")  # which say the same
_PREDICTING = ("num_nextn_predict_layers", "mtp_layers_block_type")
_PREDICTING += ("mtp_hybrid_override_pattern",)


def read(record: dict[str, Any]) -> ModelConfig:
    """Reads transformers' config."""
    f = Fields(record)
    f.expect("mamba_hidden_act", "silu")
    for name in ("attention_bias", "mamba_proj_bias"):  # which transformers ignores
        f.expect(name, False)
    f.skip("chunk_size", "expand", "num_hidden_layers", *_PREDICTING)
    f.skip("mamba_dt_min", "mamba_dt_max", "mamba_dt_init_floor")
    f.skip("rope_theta", "partial_rotary_factor")  # nor has it positions
    f.skip("num_query_groups", "time_step_rank")
    first, *others = _EPSILONS
    norm_eps = f.number(first, 1e-5)
    for name in others:
        f.expect(name, norm_eps)
    layers = _layers(f)
    d_model = f.integer("hidden_size")
    heads = f.integer("num_attention_heads", 32)
    width = f.integer("attention_head_dim", 128)  # as older configs call it
    activation = f.take("mlp_hidden_act", "relu2")
    limits = f.numbers("mamba_dt_limit", settings.INFINITE)  # as older configs call it
    f.expect("mlp_hidden_act", *_ACTIVATIONS)
    config = ModelConfig(
        vocab_size=f.integer("vocab_size"),
        d_model=d_model,
        layers=layers,
        mamba2=Mamba2Config(
            nheads=f.integer("mamba_num_heads", 128),
            headdim=f.integer("mamba_head_dim", 64),
            d_state=f.integer("ssm_state_size", 128),
            ngroups=f.integer("n_groups", 8),
            d_conv=f.integer("conv_kernel", 4),
            conv_bias=f.flag("use_conv_bias", True),
            proj_bias=f.flag("use_bias", False),
            dt_limits=f.numbers("time_step_limit", limits),
        ),
        attention=AttentionConfig(
            num_heads=heads,
            num_kv_heads=f.integer("num_key_value_heads", heads),
            head_dim=f.integer("head_dim", width),
            rope_fraction=0.0,
        ),
        **_feed_forward(f, layers, _ACTIVATIONS[activation]),
        norm_eps=norm_eps,
        tie_embeddings=f.flag("tie_word_embeddings", False),
    )
    f.finish()
    return config


def _feed_forward(f: Fields, layers: str, activation: Any) -> dict[str, Any]:
    """The settings of feed-forwards and of experts, as far as there are any."""
    own: dict[str, Any] = {}
    if "E" in layers:
        f.expect("mlp_bias", False)
        own["moe"] = MoEConfig(
            num_experts=f.integer("n_routed_experts"),
            top_k=f.integer("num_experts_per_tok"),
            d_ff=f.integer("moe_intermediate_size"),
            activation=activation,
            scores="sigmoid",
            renormalize=f.flag("norm_topk_prob", True),
            num_groups=f.integer("n_group", 1),
            top_groups=f.integer("topk_group", 1),
            routed_multiplier=f.number("routed_scaling_factor", 1.0),
            shared_d_ff=f.integer("moe_shared_expert_intermediate_size"),
            d_latent=f.integer("moe_latent_size", 0),
        )
    f.skip(*_OF_EXPERTS)
    d_ff, bias = f.integer("intermediate_size", 0), f.flag("mlp_bias", False)
    if "-" in layers:
        own["mlp"] = MLPConfig(d_ff, activation, bias)
    return own


def _layers(f: Fields) -> str:
    """Kinds of the blocks: a list of names, or, older, jaxspec's own letters."""
    pattern = f.take("hybrid_override_pattern", None)
    if pattern is None:
        return settings.kinds(f, "layers_block_type")
    f.skip("layers_block_type")
    if unknown := sorted(set(pattern) - set("M*-E")):
        raise ValueError(
            f"config.json: jaxspec does not implement a layer {unknown[0]!r} in "
            f"hybrid_override_pattern {pattern!r}; expected M, *, - and E."
        )
    return pattern


def write(config: ModelConfig) -> dict[str, Any]:
    """Writes transformers' config."""
    mamba2, attention = config.mamba2, config.attention
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": len(config.layers),
        "hybrid_override_pattern": config.layers,
        "mamba_hidden_act": "silu",
        "mamba_proj_bias": False,
        "mamba_num_heads": mamba2.nheads,
        "mamba_head_dim": mamba2.headdim,
        "ssm_state_size": mamba2.d_state,
        "n_groups": mamba2.ngroups,
        "conv_kernel": mamba2.d_conv,
        "use_conv_bias": mamba2.conv_bias,
        "use_bias": mamba2.proj_bias,
        "time_step_limit": list(mamba2.dt_limits),
        **settings.write_floor(mamba2.dt_limits),
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_kv_heads,
        "head_dim": attention.head_dim,
        "attention_head_dim": attention.head_dim,
        "attention_bias": False,
        **_write_feed_forward(config),
        **dict.fromkeys(_EPSILONS, config.norm_eps),
        "tie_word_embeddings": config.tie_embeddings,
    }


def _write_feed_forward(config: ModelConfig) -> dict[str, Any]:
    """Writes what `_feed_forward` reads, which has one activation for all."""
    record: dict[str, Any] = {}
    if "-" in config.layers:
        mlp = config.mlp
        record |= {"intermediate_size": mlp.d_ff, "mlp_bias": mlp.bias}
        record["mlp_hidden_act"] = mlp.activation
    if "E" in config.layers:
        moe = config.moe
        record = {"intermediate_size": moe.d_ff, "mlp_bias": False} | record
        record |= {
            "mlp_hidden_act": moe.activation,
            "n_routed_experts": moe.num_experts,
            "num_experts_per_tok": moe.top_k,
            "moe_intermediate_size": moe.d_ff,
            "norm_topk_prob": moe.renormalize,
            "n_group": moe.num_groups,
            "topk_group": moe.top_groups,
            "routed_scaling_factor": moe.routed_multiplier,
            "moe_shared_expert_intermediate_size": moe.shared_d_ff,
            "moe_latent_size": moe.d_latent or None,
        }
    return record


def parts(config: ModelConfig) -> list[Part]:
    """The table of names."""
    mixer = {"M": mixers.mamba2, "*": mixers.attention, "-": mixers.mlp}
    mixer["E"] = functools.partial(mixers.moe, shared="shared_experts")

    def block(i):
        at = f"backbone.layers.{i}"
        yield mixers.norm("norm", f"{at}.norm", config.d_model)
        yield from mixer[config.layers[i]](config, f"{at}.mixer")

    blocks = map(block, range(len(config.layers)))
    ends = "backbone.embeddings.weight", "backbone.norm_f.weight", "lm_head.weight"
    return table.model(config, *ends, blocks)


FAMILY = Family(
    "nemotron_h", "NemotronHForCausalLM", read, write, parts, kept=r"mtp\..*"
)
