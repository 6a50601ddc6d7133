"""Llama with most of its attention replaced by Mamba-2 (Wang et al. 2024).

A layer is Llama's, its mixer Mamba-2 with as many heads and groups as attention has query
heads. As keys and values are in attention, x and B are shared by neighbouring heads: what
is projected and filtered once in the checkpoint is a copy for each head here, which the
same recurrence reads. `mamba_config.json` beside Llama's config says which layers.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from checkpoints_conv import mixers, settings, table
from checkpoints_conv.families import llama
from checkpoints_conv.family import Family
from checkpoints_conv.fields import Fields
from checkpoints_conv.table import Leaf, Part
from jaxspec.models.config import AttentionConfig, Mamba2Config, ModelConfig

FIELD = "mamba_config"
FILE = f"{FIELD}.json"
"""Where the second config, a file of that name, stands in the first."""


def read(record: dict[str, Any]) -> ModelConfig:
    """Reads Llama's config with the other one in it."""
    base = llama.read(
        {k: v for k, v in record.items() if k not in (FIELD, "model_type")}
    )
    own, attention = Fields(record[FIELD], FILE), base.attention
    d_inner = attention.num_heads * attention.head_dim
    for name, value in {
        "d_model": base.d_model,
        "d_inner": d_inner,
        "d_xb": attention.num_kv_heads * attention.head_dim,
        "n_layer": len(base.layers) // 2,
        "intermediate_size": base.mlp.d_ff,
        "hidden_act": "silu",
        "rms_norm_eps": base.norm_eps,
        "vocab_size": base.vocab_size,
    }.items():
        own.expect(name, value)
    attends = {*own.items("attn_layers", [])}
    mixer = Fields(own.take("ssm_cfg", {}), FILE)
    own.finish()
    if mixer.take("ngroups", None) is None:
        raise ValueError(
            "mamba_config.json: jaxspec does not implement Mamba-1 whose heads have a C "
            "each (no ngroups in ssm_cfg); layers of Mamba-2 convert."
        )
    for name, value in {
        "ngroups": attention.num_heads,
        "d_state": attention.head_dim,
        "repeat_kv_before_conv": False,
        "D_has_hdim": False,
        "rmsnorm": True,
        "norm_before_gate": False,
    }.items():
        mixer.expect(name, value)
    if base.norm_eps != 1e-5:
        raise ValueError(
            "config.json: rms_norm_eps must be 1e-05, as in the norms of Mamba-2, got "
            f"{base.norm_eps:g}."
        )
    mamba2 = Mamba2Config(
        nheads=attention.num_heads,
        headdim=attention.head_dim,
        d_state=attention.head_dim,
        ngroups=attention.num_heads,
        d_conv=mixer.integer("d_conv", 4),
        conv_bias=mixer.flag("conv_bias", True),
        proj_bias=mixer.flag("bias", False),
        dt_limits=mixer.numbers("dt_limit", settings.INFINITE),
    )
    mixer.skip("expand", "headdim", "chunk_size", "use_mem_eff_path")
    mixer.finish()
    count = len(base.layers) // 2
    layers = "".join("*-" if i in attends else "M-" for i in range(count))
    return dataclasses.replace(base, layers=layers, mamba2=mamba2)


def write(config: ModelConfig) -> dict[str, Any]:
    """Writes Llama's config with the other one in it."""
    c, attention, mixing = config.mamba2, config.attention, config.layers[::2]
    own = {
        "d_model": config.d_model,
        "d_inner": c.d_inner,
        "d_xb": attention.num_kv_heads * attention.head_dim,
        "intermediate_size": config.mlp.d_ff,
        "n_layer": len(mixing),
        "attn_layers": [i for i, kind in enumerate(mixing) if kind == "*"],
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "vocab_size": config.vocab_size,
        "ssm_cfg": {
            "ngroups": c.ngroups,
            "d_state": c.d_state,
            "d_conv": c.d_conv,
            "conv_bias": c.conv_bias,
            "bias": c.proj_bias,
            "dt_limit": list(c.dt_limits),
        },
    }
    return {**llama.write(config), FIELD: own}


def parts(config: ModelConfig) -> list[Part]:
    """The table of names: Llama's, but for the layers of Mamba-2."""
    found = llama.parts(config)
    for i in range(0, len(config.layers), 2):
        if config.layers[i] == "M":
            at = f"model.layers.{i // 2}"
            norm = mixers.norm("norm", f"{at}.input_layernorm", config.d_model)
            leaves = (norm, *_mamba2(config, f"{at}.mamba"))
            found[1 + i] = Part(f"layers.{i}", leaves)
    return found


def _mamba2(config: ModelConfig, at: str) -> Iterator[Leaf]:
    """The table of Mamba-2, x and B of which are in the checkpoint once per group."""
    c, attention = config.mamba2, config.attention
    shared = attention.num_kv_heads * attention.head_dim
    channels = {"x": shared, "B": shared, "C": c.d_inner}
    rows = {"in_proj": {"z": c.d_inner, **channels, "dt": c.nheads}, "conv": channels}
    for leaf in mixers.mamba2(config, at):
        name = leaf.path.split(".")[1]
        if name in rows:
            index = _copies(rows[name], attention)
            (tensor,) = leaf.tensors
            shape = (sum(rows[name].values()), *tensor.shape[1:])
            tensor = tensor._replace(shape=shape)
            layout = _shared(leaf.layout, index)
            leaf = leaf._replace(tensors=(tensor,), layout=layout)
        yield leaf


def _copies(sizes: dict[str, int], attention: AttentionConfig) -> np.ndarray:
    """Which row each row is a copy of; all heads of a group have its x and its B."""
    times, rows, start = attention.num_heads // attention.num_kv_heads, [], 0
    for name, size in sizes.items():
        own = start + np.arange(size)
        if name in ("x", "B"):
            heads = own.reshape(-1, attention.head_dim)
            own = np.repeat(heads, times, axis=0).reshape(-1)
        rows.append(own)
        start += size
    return np.concatenate(rows)


def _shared(layout: table.Layout, index: np.ndarray) -> table.Layout:
    """A layout of a tensor whose rows are copied to `index`."""
    first = np.unique(index, return_index=True)[1]

    def join(arrays):
        return layout.join([array[index] for array in arrays])

    def part(array, rows):
        (copied,) = layout.part(array, [len(index)])
        if not np.array_equal(copied[first][index], copied):
            raise ValueError("The heads of a group do not have the same x and B.")
        return [copied[first]]

    return table.Layout(join, part)


FAMILY = Family(
    "mamba_in_llama", "LlamaForCausalLM", read, write, parts, model_type="llama"
)
