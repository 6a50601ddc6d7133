"""Zamba2 (`zamba2`): Mamba-2, in some layers behind attention and GEGLU that they share.

A set of the shared weights stands where it is first used, and beside it the adapters of
all its uses; what files hold again at later uses must be the same.

Step sizes have no bounds unless `time_step_limit` gives some: no layer of its authors' code
is built with any (`mamba2_layer.py` in Zyphra/Zamba2, and in the form of transformers in
Zyphra/transformers_zamba2). Transformers' own port takes `time_step_min`, which says how
they are begun, for a lower bound.
"""

import itertools
from collections.abc import Iterator
from typing import Any

from checkpoints_conv import mixers, settings, table
from checkpoints_conv.family import Family
from checkpoints_conv.fields import Fields
from checkpoints_conv.table import Leaf, Part, linear
from jaxspec.models.config import (
    AttentionConfig,
    Mamba2Config,
    MLPConfig,
    ModelConfig,
)

_KINDS = {"linear_attention": "M", "mamba": "M", "hybrid": "S"}
_DERIVED = ("attention_hidden_size", "hybrid_layer_ids", "kv_channels")
_DERIVED += ("num_query_groups", "ffn_hidden_size")


def read(record: dict[str, Any]) -> ModelConfig:
    """Reads transformers' config."""
    f = Fields(record)
    f.expect("hidden_act", "gelu")
    f.expect("rms_norm_eps", 1e-5)  # as the recurrence's norm has it in any case
    f.expect("tie_word_embeddings", True)  # else transformers shares nothing at all
    f.expect("use_long_context", False)
    f.expect("use_shared_mlp_adapter", True)
    f.skip("use_conv_bias")  # which transformers ignores
    f.skip("chunk_size", *_DERIVED)
    d_model, count = f.integer("hidden_size"), f.integer("num_hidden_layers")
    layers = settings.kinds(f, "layers_block_type", count, known=_KINDS)
    rank, bias = f.integer("adapter_rank", 128), f.flag("add_bias_linear", False)
    if rank < 1:
        raise ValueError(f"config.json: adapter_rank must be positive, got {rank}.")
    config = ModelConfig(
        vocab_size=f.integer("vocab_size"),
        d_model=d_model,
        layers=layers,
        mamba2=_mamba2(f, d_model, bias),
        attention=_attention(f, d_model, rank),
        mlp=MLPConfig(
            d_ff=f.integer("intermediate_size", 4 * d_model),
            activation="geglu",
            bias=bias,
            adapter_rank=rank,
        ),
        num_shared=min(f.integer("num_mem_blocks", 1), max(1, layers.count("S"))),
        norm_eps=1e-5,
    )
    f.finish()
    return config


def _mamba2(f: Fields, d_model: int, bias: bool) -> Mamba2Config:
    heads = f.integer("n_mamba_heads", 8)
    d_inner = round(f.number("mamba_expand", 2.0) * d_model)
    if d_inner % heads:
        raise ValueError(
            f"config.json: n_mamba_heads must divide mamba_expand * hidden_size, got "
            f"{heads} and {d_inner}."
        )
    f.expect("mamba_headdim", d_inner // heads)
    return Mamba2Config(
        nheads=heads,
        headdim=d_inner // heads,
        d_state=f.integer("mamba_d_state", 64),
        ngroups=f.integer("mamba_ngroups", 1),
        d_conv=f.integer("mamba_d_conv", 4),
        proj_bias=bias,
        dt_limits=f.numbers("time_step_limit", settings.INFINITE),
    )


def _attention(f: Fields, d_model: int, rank: int) -> AttentionConfig:
    """Heads cut what is twice as wide as the model, and are scaled as if they did not."""
    heads = f.integer("num_attention_heads", 32)
    head_dim = 2 * d_model // heads
    f.expect("attention_head_dim", head_dim)
    rope = settings.rope(f)
    if not f.flag("use_mem_rope", False):
        rope = {"rope_fraction": 0.0}
    return AttentionConfig(
        num_heads=heads,
        num_kv_heads=f.integer("num_key_value_heads", heads),
        head_dim=head_dim,
        scale=(head_dim / 2) ** -0.5,
        adapter_rank=rank if f.flag("use_shared_attention_adapter", False) else 0,
        **rope,
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """Writes transformers' config."""
    mamba2, attention, mlp = config.mamba2, config.attention, config.mlp
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "hidden_act": "gelu",
        "num_hidden_layers": len(config.layers),
        "layers_block_type": settings.write_kinds(config.layers, known=_KINDS),
        "hybrid_layer_ids": _uses(config),
        "n_mamba_heads": mamba2.nheads,
        "mamba_expand": mamba2.d_inner // config.d_model,
        "mamba_headdim": mamba2.headdim,
        "mamba_d_state": mamba2.d_state,
        "mamba_ngroups": mamba2.ngroups,
        "mamba_d_conv": mamba2.d_conv,
        **settings.write_limits(mamba2.dt_limits),
        **settings.write_floor(mamba2.dt_limits),
        "add_bias_linear": mamba2.proj_bias,
        "num_attention_heads": attention.num_heads,
        "attention_head_dim": attention.head_dim,
        "attention_hidden_size": 2 * config.d_model,
        "num_key_value_heads": attention.num_kv_heads,
        "use_mem_rope": attention.rope_dim > 0,
        **settings.write_rope(attention),
        "use_long_context": False,
        "use_shared_mlp_adapter": True,
        "use_shared_attention_adapter": attention.adapter_rank > 0,
        "intermediate_size": mlp.d_ff,
        "adapter_rank": mlp.adapter_rank,
        "num_mem_blocks": config.num_shared,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": True,
    }


def parts(config: ModelConfig) -> list[Part]:
    """The table of names."""
    sets = _uses(config)[: config.num_shared]

    def blocks():
        uses, turns = itertools.count(), itertools.cycle(sets)
        for i, kind in enumerate(config.layers):
            at = f"model.layers.{i}"
            inner = f"{at}.mamba_decoder" if kind == "S" else at
            leaves = [mixers.norm("norm", f"{inner}.input_layernorm", config.d_model)]
            leaves += mixers.mamba2(config, f"{inner}.mamba")
            if kind == "S":
                out = [(f"{at}.linear", config.d_model)]
                leaves += linear("out_proj", out, config.d_model, False)
                leaves += _adapters(config, _shared(next(turns)), next(uses))
            yield leaves

    ends = "model.embed_tokens.weight", "model.final_layernorm.weight", "lm_head.weight"
    shared = [_set(config, _shared(layer)) for layer in sets]
    return table.model(config, *ends, blocks(), shared)


def _uses(config: ModelConfig) -> list[int]:
    """The layers that use what is shared."""
    return [i for i, kind in enumerate(config.layers) if kind == "S"]


def _shared(layer: int) -> str:
    """Where a layer has what is shared."""
    return f"model.layers.{layer}.shared_transformer"


def _set(config: ModelConfig, at: str) -> Iterator[Leaf]:
    """A set of the shared weights."""
    d_model, mlp = config.d_model, config.mlp
    yield mixers.norm("attention_norm", f"{at}.input_layernorm", 2 * d_model)
    yield from mixers.attention(config, f"{at}.self_attn", 2 * d_model)
    yield mixers.norm("mlp_norm", f"{at}.pre_ff_layernorm", d_model)
    up = [(f"{at}.feed_forward.gate_up_proj", 2 * mlp.d_ff)]
    yield from linear("mlp.up_proj", up, d_model, mlp.bias)
    down = [(f"{at}.feed_forward.down_proj", d_model)]
    yield from linear("mlp.down_proj", down, mlp.d_ff, mlp.bias)


def _adapters(config: ModelConfig, at: str, use: int) -> Iterator[Leaf]:
    """What a use adds to the set at `at`, each `up(down(x))`."""
    d_model, c, mlp = config.d_model, config.attention, config.mlp

    def adapter(path, name, d_in, rank, d_out):
        own = f"{at}.{name}_adapter_list.{use}"
        path = f"adapters.{path}_adapter"
        yield from linear(f"{path}.down", [(f"{own}.0", rank)], d_in, False)
        yield from linear(f"{path}.up", [(f"{own}.1", d_out)], rank, False)

    if c.adapter_rank:
        sizes = {"q": c.num_heads, "k": c.num_kv_heads, "v": c.num_kv_heads}
        for name, heads in sizes.items():
            names = f"attention.{name}", f"self_attn.linear_{name}"
            yield from adapter(*names, 2 * d_model, c.adapter_rank, heads * c.head_dim)
    names = "mlp.up", "feed_forward.gate_up_proj"
    yield from adapter(*names, d_model, mlp.adapter_rank, 2 * mlp.d_ff)


def shared_copies(config: ModelConfig) -> dict[str, str]:
    """What files may hold again at later uses of a set."""
    names = [tensor.name for part in parts(config) for tensor in part.tensors()]
    uses, copies = _uses(config), {}
    for use, layer in enumerate(uses[config.num_shared :]):
        first, here = _shared(uses[use % config.num_shared]), _shared(layer)
        again = [name for name in names if name.startswith(f"{first}.")]
        copies |= {name.replace(first, here): name for name in again}
    return copies


FAMILY = Family(
    name="zamba2",
    architecture="Zamba2ForCausalLM",
    read=read,
    write=write,
    parts=parts,
    shared_copies=shared_copies,
)
