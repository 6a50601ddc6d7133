"""Qwen3-Next (`qwen3_next`): the gated delta rule or attention, then experts.

Norms are centred at zero. The projection into the gated delta rule goes by groups of heads,
`[q k v z]` for each group, and then `[b a]` for each. A head that predicts a token further
(`mtp.*`) attends, and has what the first layer has after it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from checkpoints_conv import mixers, settings, table
from checkpoints_conv.family import Family
from checkpoints_conv.fields import Fields
from checkpoints_conv.table import Leaf, Part, columns
from jaxspec import weights
from jaxspec.models.config import MLPConfig, ModelConfig, MoEConfig

_KINDS = {"linear_attention": "G", "full_attention": "*"}
_OF_EXPERTS = ("num_experts_per_tok", "moe_intermediate_size")
_OF_EXPERTS += ("shared_expert_intermediate_size", "decoder_sparse_step")


def read(record: dict[str, Any]) -> ModelConfig:
    """Reads transformers' config."""
    f = Fields(record)
    f.expect("hidden_act", "silu")
    f.expect("attn_output_gate", True)
    f.expect("output_gate_type", "swish")  # of the gated delta rule
    f.skip("mamba_ssm_dtype")
    f.expect("mtp_num_hidden_layers", 0, 1)  # the tensors say which
    f.expect("mtp_use_dedicated_embeddings", False)
    d_model, layers = f.integer("hidden_size"), _layers(f)
    d_ff = f.integer("intermediate_size", 0)
    config = ModelConfig(
        vocab_size=f.integer("vocab_size"),
        d_model=d_model,
        layers=layers,
        delta=settings.delta(f),
        attention=settings.attention(
            f, d_model, qk_norm=True, output_gate=True, **settings.rope(f, 0.25, True)
        ),
        mlp=MLPConfig(d_ff) if d_ff or "-" in layers else None,
        moe=_experts(f) if "E" in layers else None,
        norm_eps=f.number("rms_norm_eps", 1e-6),
        zero_centered_norms=True,
        tie_embeddings=f.flag("tie_word_embeddings", False),
    )
    f.finish()
    return config


def _layers(f: Fields) -> str:
    """Two blocks a layer: every fourth attends by default, all have experts or none."""
    count = f.integer("num_hidden_layers")
    every = f.integer("full_attention_interval", 4)
    default = [
        "full_attention" if (i + 1) % every == 0 else "linear_attention"
        for i in range(count)
    ]
    mixing = settings.kinds(f, "layer_types", count, default)
    dense, step = {*f.take("mlp_only_layers", [])}, f.integer("decoder_sparse_step", 1)
    if not f.integer("num_experts", 0):
        dense = {*range(count)}
        f.skip("norm_topk_prob", *_OF_EXPERTS)
    has_experts = [i not in dense and (i + 1) % step == 0 for i in range(count)]
    blocks = zip(mixing.replace("M", "G"), has_experts, strict=True)
    return "".join(kind + ("E" if experts else "-") for kind, experts in blocks)


def _experts(f: Fields) -> MoEConfig:
    return MoEConfig(
        num_experts=f.integer("num_experts"),
        top_k=f.integer("num_experts_per_tok"),
        d_ff=f.integer("moe_intermediate_size"),
        renormalize=f.flag("norm_topk_prob", True),
        shared_d_ff=f.integer("shared_expert_intermediate_size"),
        shared_gate=True,
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """Writes transformers' config."""
    mixing, feed_forward = config.layers[::2], config.layers[1::2]
    record = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": len(mixing),
        "hidden_act": "silu",
        "layer_types": settings.write_kinds(mixing, known=_KINDS),
        **_write_interval(mixing),
        **settings.write_delta(config.delta),
        **settings.write_attention(config.attention),
        **settings.write_rope(config.attention, True),
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
    }
    if config.mlp:
        record["intermediate_size"] = config.mlp.d_ff
    if "E" in feed_forward:
        moe = config.moe
        dense = [i for i, kind in enumerate(feed_forward) if kind == "-"]
        record |= {
            "num_experts": moe.num_experts,
            "num_experts_per_tok": moe.top_k,
            "moe_intermediate_size": moe.d_ff,
            "norm_topk_prob": moe.renormalize,
            "shared_expert_intermediate_size": moe.shared_d_ff,
            "mlp_only_layers": dense,
            "decoder_sparse_step": 1,
        }
    return record


def _write_interval(mixing: str) -> dict[str, int]:
    """Writes the distance between layers that attend, where there is one."""
    every = mixing.find("*") + 1
    even = ("G" * (every - 1) + "*") * len(mixing)
    is_even = every > 0 and even.startswith(mixing)
    return {"full_attention_interval": every} if is_even else {}


def parts(config: ModelConfig) -> list[Part]:
    """The table of names."""
    return [*list_parts(config, _in_proj), *list_head_parts(config)]


def list_parts(
    config: ModelConfig,
    in_proj: Callable[[ModelConfig, str], Leaf],
    root: str = "model",
    stacked: bool = False,
) -> list[Part]:
    """The model's names in Qwen3.5 too, which differs in the projection `in_proj`."""

    def blocks():
        for i, kind in enumerate(config.layers[::2]):
            at = f"{root}.layers.{i}"
            norm = mixers.norm("norm", f"{at}.input_layernorm", config.d_model)
            if kind == "G":
                leaf = in_proj(config, f"{at}.linear_attn")
                yield norm, *mixers.delta(config, f"{at}.linear_attn", leaf)
            else:
                yield norm, *mixers.attention(config, f"{at}.self_attn")
            yield _feed_forward(config, config.layers[2 * i + 1], at, stacked)

    ends = f"{root}.embed_tokens.weight", f"{root}.norm.weight", "lm_head.weight"
    return table.model(config, *ends, blocks())


def list_head_parts(config: ModelConfig, stacked: bool = False) -> list[Part]:
    """The names of the head, nothing if there is none."""
    if not config.mtp:
        return []
    d_model, at = config.d_model, "mtp.layers.0"
    pair = (
        mixers.norm("embedding_norm", "mtp.pre_fc_norm_embedding", d_model),
        mixers.norm("hidden_norm", "mtp.pre_fc_norm_hidden", d_model),
        columns("fc.kernel", ("mtp.fc.weight", d_model, 2 * d_model)),
    )
    norm = mixers.norm("norm", f"{at}.input_layernorm", d_model)
    leaves = {
        "pair": pair,
        "layers.0": (norm, *mixers.attention(config, f"{at}.self_attn")),
        "layers.1": _feed_forward(config, config.mtp[1], at, stacked),
        "final_norm": (table.rows("scale", ("mtp.norm.weight", d_model)),),
    }
    return [Part(weights.MTP + name, own) for name, own in leaves.items()]


def head_blocks(config: ModelConfig) -> str:
    """What a head is made of: attention, and what follows in the first layer."""
    return "*" + config.layers[1]


def _feed_forward(
    config: ModelConfig, kind: str, at: str, stacked: bool
) -> tuple[Leaf, ...]:
    norm = mixers.norm("norm", f"{at}.post_attention_layernorm", config.d_model)
    if kind == "E":
        return norm, *mixers.moe(config, f"{at}.mlp", stacked=stacked)
    return norm, *mixers.mlp(config, f"{at}.mlp")


def _in_proj(config: ModelConfig, at: str) -> Leaf:
    """`[q k v z]` of each group, `[b a]` of each group: to q, k, v, z, b, a of all."""
    c = config.delta
    size, heads = 2 * (c.key_dim + c.value_dim), c.num_value_heads
    qkvz = np.arange(size).reshape(c.num_key_heads, -1)
    cuts = np.cumsum([c.key_head_dim, c.key_head_dim, c.value_dim // c.num_key_heads])
    ba = np.arange(size, size + 2 * heads).reshape(c.num_key_heads, -1)
    groups = *np.split(qkvz, cuts, axis=1), *np.split(ba, 2, axis=1)
    leaf = columns(
        "delta.in_proj.kernel",
        (f"{at}.in_proj_qkvz.weight", size, config.d_model),
        (f"{at}.in_proj_ba.weight", 2 * heads, config.d_model),
    )
    return leaf.ordered(np.concatenate([group.ravel() for group in groups]))


FAMILY = Family(
    "qwen3_next", "Qwen3NextForCausalLM", read, write, parts, mtp=head_blocks
)
