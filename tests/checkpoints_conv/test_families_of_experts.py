"""Configs with experts as they are published are read, field by field."""

import dataclasses
import math

import pytest

from checkpoints_conv import families
from jaxspec.bench import published
from jaxspec.models.config import AttentionConfig, DeltaConfig, MoEConfig

GRANITE = {  # ibm-granite/granite-4.0-h-small
    **{"attention_bias": False, "attention_multiplier": 0.0078125},
    **{"embedding_multiplier": 12, "hidden_act": "silu", "hidden_size": 4096},
    **{"init_method": "mup", "intermediate_size": 768, "logits_scaling": 16},
    "layer_types": (["mamba"] * 5 + ["attention"] + ["mamba"] * 4) * 4,
    **{"mamba_chunk_size": 256, "mamba_conv_bias": True, "mamba_d_conv": 4},
    **{"mamba_d_head": 64, "mamba_d_state": 128, "mamba_expand": 2},
    **{"mamba_n_groups": 1, "mamba_n_heads": 128, "mamba_proj_bias": False},
    **{"model_type": "granitemoehybrid", "normalization_function": "rmsnorm"},
    **{"num_attention_heads": 32, "num_experts_per_tok": 10, "num_hidden_layers": 40},
    **{"num_key_value_heads": 8, "num_local_experts": 72, "rms_norm_eps": 1e-05},
    **{"position_embedding_type": "nope", "residual_multiplier": 0.22},
    **{"rope_scaling": None, "rope_theta": 10000, "router_aux_loss_coef": 0.0},
    **{"shared_intermediate_size": 1536, "tie_word_embeddings": True},
    **{"torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 100352},
}
NEMOTRON = {  # nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16
    **{"attention_bias": False, "chunk_size": 128, "conv_kernel": 4, "expand": 2},
    **{"head_dim": 128, "hidden_size": 2688, "intermediate_size": 1856},
    "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
    **{"layer_norm_epsilon": 1e-05, "mamba_head_dim": 64, "mamba_hidden_act": "silu"},
    **{"mamba_num_heads": 64, "mamba_proj_bias": False, "mlp_bias": False},
    **{"mamba_ssm_cache_dtype": "float32", "mlp_hidden_act": "relu2"},
    **{"model_type": "nemotron_h", "moe_intermediate_size": 1856, "n_group": 1},
    **{"moe_shared_expert_intermediate_size": 3712, "n_groups": 8, "topk_group": 1},
    **{"n_routed_experts": 128, "n_shared_experts": 1, "norm_eps": 1e-05},
    **{"norm_topk_prob": True, "num_attention_heads": 32, "num_experts_per_tok": 6},
    **{"num_hidden_layers": 52, "num_key_value_heads": 2, "num_logits_to_keep": 1},
    **{"partial_rotary_factor": 1.0, "rescale_prenorm_residual": True},
    **{"residual_in_fp32": False, "rope_theta": 10000, "routed_scaling_factor": 2.5},
    **{"sliding_window": None, "ssm_state_size": 128, "tie_word_embeddings": False},
    **{"time_step_floor": 0.0001, "time_step_max": 0.1, "time_step_min": 0.001},
    **{"use_bias": False, "use_conv_bias": True, "use_mamba_kernels": True},
    **{"vocab_size": 131072, "torch_dtype": "bfloat16"},
}
LINEAR = {
    **{"linear_conv_kernel_dim": 4, "linear_key_head_dim": 128},
    **{"linear_num_key_heads": 16, "linear_num_value_heads": 32},
    **{"linear_value_head_dim": 128, "head_dim": 256, "rms_norm_eps": 1e-06},
}
QWEN_NEXT = {  # Qwen/Qwen3-Next-80B-A3B-Instruct
    **LINEAR,
    **{"decoder_sparse_step": 1, "full_attention_interval": 4, "hidden_act": "silu"},
    **{"hidden_size": 2048, "intermediate_size": 5120, "mlp_only_layers": []},
    **{"model_type": "qwen3_next", "moe_intermediate_size": 512},
    **{"norm_topk_prob": True, "num_attention_heads": 16, "num_experts": 512},
    **{"num_experts_per_tok": 10, "num_hidden_layers": 48, "num_key_value_heads": 2},
    **{"output_router_logits": False, "partial_rotary_factor": 0.25},
    **{"rope_scaling": None, "rope_theta": 10000000, "router_aux_loss_coef": 0.001},
    **{"shared_expert_intermediate_size": 512, "tie_word_embeddings": False},
    **{"use_sliding_window": False, "vocab_size": 151936},
}
QWEN = {  # Qwen/Qwen3.5-35B-A3B
    **{"model_type": "qwen3_5_moe", "image_token_id": 248056, "video_token_id": 248057},
    **{"vision_start_token_id": 248053, "vision_end_token_id": 248054},
    **{"tie_word_embeddings": False, "vision_config": {"depth": 27}},
    "text_config": {
        **LINEAR,
        **{"attention_bias": False, "attn_output_gate": True, "dtype": "bfloat16"},
        **{"eos_token_id": 248044, "full_attention_interval": 4, "hidden_act": "silu"},
        "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 10,
        **{"hidden_size": 2048, "mamba_ssm_dtype": "float32"},
        **{"model_type": "qwen3_5_moe_text", "moe_intermediate_size": 512},
        **{"mtp_num_hidden_layers": 1, "mtp_use_dedicated_embeddings": False},
        **{"num_attention_heads": 16, "num_experts": 256, "num_experts_per_tok": 8},
        **{"num_hidden_layers": 40, "num_key_value_heads": 2},
        **{"output_gate_type": "swish", "partial_rotary_factor": 0.25},
        "rope_parameters": {
            **{"mrope_interleaved": True, "mrope_section": [11, 11, 10]},
            **{"partial_rotary_factor": 0.25, "rope_theta": 10000000},
            "rope_type": "default",
        },
        **{"shared_expert_intermediate_size": 512, "vocab_size": 248320},
    },
}


def read(record):
    return families.find(record).read(record)


@pytest.mark.parametrize(
    "record, name", [(GRANITE, "granite-4-h-small"), (NEMOTRON, "nemotron-3-nano")]
)
def test_shapes_are_those_that_are_measured(record, name):
    """But for factors and bounds, which have no shape."""
    found, expected = read(record), published.MODELS[name]
    mamba2 = dataclasses.replace(found.mamba2, dt_limits=(0.0, math.inf))
    attention = dataclasses.replace(found.attention, scale=0.0)
    ours = {"mamba2": mamba2, "attention": attention, "dtype": expected.dtype}
    ours |= dict.fromkeys(("embedding_multiplier", "residual_multiplier"), 1.0)
    assert dataclasses.replace(found, **ours, logits_multiplier=1.0) == expected


@pytest.mark.parametrize(
    "record, layers, experts, top_k",
    [(QWEN_NEXT, 48, 512, 10), (QWEN, 40, 256, 8)],
)
def test_qwen(record, layers, experts, top_k):
    found = read(record)
    assert found.layers == "GEGEGE*E" * (layers // 4)
    assert found.zero_centered_norms and not found.tie_embeddings
    assert found.delta == DeltaConfig(32, 16, 128, 128)
    gates = {"qk_norm": True, "output_gate": True}
    assert found.attention == AttentionConfig(16, 2, 256, 0.25, 1e7, **gates)
    shared = {"shared_d_ff": 512, "shared_gate": True}
    assert found.moe == MoEConfig(experts, top_k, 512, **shared)
