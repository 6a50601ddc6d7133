"""Qwen3.5: the gated delta rule or attention, then SwiGLU or experts, in every layer.

Four kinds of configs: the text's part alone, or within that of a model that sees, and each
dense or with experts (`qwen3_5_text, qwen3_5_moe_text, qwen3_5, qwen3_5_moe`). What sees is
kept for `export`. Experts are in one tensor as they are published, and apart as
transformers writes them; those of the head that predicts a token further (`mtp.*`) are
apart in Qwen3.5 and in one tensor in Qwen3.6.
"""

import functools
from typing import Any

from checkpoints_conv import settings
from checkpoints_conv.families import qwen3_next
from checkpoints_conv.family import Family
from checkpoints_conv.fields import Fields
from checkpoints_conv.table import Leaf, Part, columns
from jaxspec.models.config import ModelConfig

_SEEING = ("vision_config", "image_token_id", "video_token_id")
_SEEING += ("vision_start_token_id", "vision_end_token_id", "language_model_only")
_OF_NEXT = ("norm_topk_prob", "mlp_only_layers", "decoder_sparse_step")
_OF_NEXT += ("rope_theta", "rope_scaling")

# Whether experts are in one tensor, those of the model and those of the head.
_FORMS = (False, False), (True, False), (True, True), (False, True)


def read_text(record: dict[str, Any], block: str) -> ModelConfig:
    """Reads the config of the text's part; `block` is `-` or `E`, in all layers."""
    config = qwen3_next.read(record)
    if {*config.layers[1::2]} != {block}:
        some = "experts" if block == "E" else "no experts"
        raise ValueError(
            f"config.json: every layer of {record.get('model_type')} has {some}, got "
            f"num_experts {record.get('num_experts')}."
        )
    return config


def read_whole(record: dict[str, Any], block: str) -> ModelConfig:
    """Reads the config of a model that sees, of which the text's part is one."""
    f = Fields(record)
    text = f.take("text_config")
    tied = {"tie_word_embeddings": f.flag("tie_word_embeddings", False)}
    f.skip(*_SEEING)
    f.finish()
    return read_text(text | tied, block)


def write_text(config: ModelConfig) -> dict[str, Any]:
    """Writes transformers' config of the text's part."""
    record = {
        name: value
        for name, value in qwen3_next.write(config).items()
        if name not in _OF_NEXT
    }
    return {
        **record,
        **settings.write_rope_parameters(config.attention, True),
        "attn_output_gate": True,
        "output_gate_type": "swish",
        "mtp_num_hidden_layers": 1 if config.mtp else 0,
        "mtp_use_dedicated_embeddings": False,
    }


def write_whole(config: ModelConfig, kind: str) -> dict[str, Any]:
    """Writes the config of a model that sees as transformers' defaults say.

    The text's part has a `model_type` of its own, `kind`.
    """
    text = {"model_type": kind, **write_text(config)}
    return {"text_config": text, "tie_word_embeddings": config.tie_embeddings}


def _parts(
    config: ModelConfig, root: str, stacked: bool, head_stacked: bool
) -> list[Part]:
    """The table of names."""
    model = qwen3_next.list_parts(config, _in_proj, root, stacked)
    return [*model, *qwen3_next.list_head_parts(config, head_stacked)]


def _in_proj(config: ModelConfig, at: str) -> Leaf:
    c = config.delta
    sizes = {"qkv": c.conv_dim, "z": c.value_dim}
    sizes |= {"b": c.num_value_heads, "a": c.num_value_heads}
    tensors = [
        (f"{at}.in_proj_{name}.weight", size, config.d_model)
        for name, size in sizes.items()
    ]
    return columns("delta.in_proj.kernel", *tensors)


def _family(name: str, architecture: str, block: str) -> Family:
    is_text = name.endswith("_text")
    root = "model" if is_text else "model.language_model"
    apart, *others = (
        functools.partial(_parts, root=root, stacked=stacked, head_stacked=head_stacked)
        for stacked, head_stacked in _FORMS
    )
    return Family(
        name,
        architecture,
        functools.partial(read_text if is_text else read_whole, block=block),
        write_text if is_text else functools.partial(write_whole, kind=f"{name}_text"),
        apart,
        others=tuple(others),
        kept=r"model\.visual\..*",
        mtp=qwen3_next.head_blocks,
    )


FAMILIES = (
    _family("qwen3_5_text", "Qwen3_5ForCausalLM", "-"),
    _family("qwen3_5_moe_text", "Qwen3_5MoeForCausalLM", "E"),
    _family("qwen3_5", "Qwen3_5ForConditionalGeneration", "-"),
    _family("qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration", "E"),
)
