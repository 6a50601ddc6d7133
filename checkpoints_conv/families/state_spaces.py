"""Mamba and Mamba-2 as their authors publish them (`state-spaces/mamba`).

Their config holds what their code's `MambaConfig` does and names no `model_type`; the
embedding has more rows than there are tokens, up to a multiple. The same models have
transformers' form, which is what `export` writes.
"""

from typing import Any

from checkpoints_conv.families import mamba, mamba2
from checkpoints_conv.family import Family
from checkpoints_conv.fields import Fields
from checkpoints_conv.settings import INFINITE
from jaxspec.models.config import Mamba1Config, Mamba2Config, ModelConfig


def read(record: dict[str, Any]) -> ModelConfig:
    """Reads the authors' config."""
    f, layer = Fields(record), Fields(record.get("ssm_cfg") or {})
    f.skip("ssm_cfg")
    for name, value in {"rms_norm": True, "d_intermediate": 0}.items():
        f.expect(name, value)
    d_model, count = f.integer("d_model"), f.integer("n_layer")
    kind = layer.take("layer", "Mamba1")
    vocab, multiple = f.integer("vocab_size"), f.integer("pad_vocab_size_multiple", 8)
    settings = {
        "vocab_size": -(-vocab // multiple) * multiple,
        "d_model": d_model,
        "tie_embeddings": f.flag("tie_embeddings", True),
    }
    if kind == "Mamba1":
        settings |= {"layers": "m" * count, "mamba1": _mamba1(layer)}
    elif kind == "Mamba2":
        settings |= {"layers": "M" * count, "mamba2": _mamba2(layer, d_model)}
    else:
        raise ValueError(
            f"config.json: jaxspec does not implement layer {kind!r}; it must be "
            "'Mamba1' or 'Mamba2'."
        )
    layer.skip("dt_min", "dt_max", "dt_init_floor", "A_init_range", "chunk_size")
    layer.skip("dt_init", "dt_scale", "use_mem_eff_path", "use_fast_path")
    layer.finish()
    f.finish()
    return ModelConfig(**settings)


def _mamba1(f: Fields) -> Mamba1Config:
    rank = f.take("dt_rank", "auto")
    return Mamba1Config(
        expand=f.integer("expand", 2),
        d_state=f.integer("d_state", 16),
        d_conv=f.integer("d_conv", 4),
        dt_rank=0 if rank == "auto" else f.integer("dt_rank"),
        conv_bias=f.flag("conv_bias", True),
        proj_bias=f.flag("bias", False),
    )


def _mamba2(f: Fields, d_model: int) -> Mamba2Config:
    f.expect("rmsnorm", True)
    f.expect("activation", "silu", "swish")
    d_inner, headdim = f.integer("expand", 2) * d_model, f.integer("headdim", 64)
    f.expect("d_ssm", d_inner)
    f.expect("norm_before_gate", False)  # transformers' form has no other
    return Mamba2Config(
        nheads=d_inner // headdim,
        headdim=headdim,
        d_state=f.integer("d_state", 128),
        ngroups=f.integer("ngroups", 1),
        d_conv=f.integer("d_conv", 4),
        conv_bias=f.flag("conv_bias", True),
        proj_bias=f.flag("bias", False),
        dt_limits=f.numbers("dt_limit", INFINITE),
    )


def find(record: dict[str, Any]) -> Family:
    """The family of an authors' config, whose names differ in the embedding's."""
    layer = (record.get("ssm_cfg") or {}).get("layer", "Mamba1")
    family = mamba2.FAMILY if layer == "Mamba2" else mamba.FAMILY
    return family._replace(read=read, parts=mamba.authors_parts, others=())
