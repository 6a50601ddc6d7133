"""Fields of configs as they are published, one for each family and form."""

import math

COMMON = {"torch_dtype": "bfloat16", "transformers_version": "4.43.0.dev0"}
COMMON |= {"bos_token_id": 0, "eos_token_id": 11, "pad_token_id": 11, "use_cache": True}
TIMES = {"time_step_floor": 1e-4, "time_step_max": 0.1, "time_step_min": 1e-3}
MAMBA_130M = {  # state-spaces/mamba-130m
    "d_model": 768,
    "n_layer": 24,
    "vocab_size": 50277,
    "ssm_cfg": {},
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 8,
}
MAMBA2_130M = MAMBA_130M | {
    "d_intermediate": 0,
    "ssm_cfg": {"layer": "Mamba2"},
    "attn_layer_idx": [],
    "attn_cfg": {},
    "pad_vocab_size_multiple": 16,
    "tie_embeddings": True,
}
MAMBA_130M_HF = COMMON | {
    "model_type": "mamba",
    **{"conv_kernel": 4, "d_inner": 1536, "d_model": 768, "expand": 2, "ssm_cfg": {}},
    **{"fused_add_norm": True, "hidden_act": "silu", "hidden_size": 768, "n_layer": 24},
    **{"intermediate_size": 1536, "layer_norm_epsilon": 1e-5, "rms_norm": True},
    **{"num_hidden_layers": 24, "pad_vocab_size_multiple": 8, "state_size": 16},
    **{"time_step_rank": 48, "vocab_size": 50280, "use_bias": False, **TIMES},
}
FALCON_MAMBA_7B = COMMON | {
    "model_type": "falcon_mamba",
    **{"conv_kernel": 4, "expand": 16, "hidden_act": "silu", "hidden_size": 4096},
    **{"intermediate_size": 8192, "layer_norm_epsilon": 1e-5, "state_size": 16},
    **{"num_hidden_layers": 64, "tie_word_embeddings": False, "time_step_rank": 256},
    **{"use_bias": False, "use_conv_bias": True, "vocab_size": 65024, **TIMES},
}
LLAMA_31_8B = COMMON | {
    "model_type": "llama",
    **{"attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu"},
    **{"hidden_size": 4096, "intermediate_size": 14336, "mlp_bias": False},
    **{"num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8},
    **{"pretraining_tp": 1, "rms_norm_eps": 1e-5, "rope_theta": 5e5},
    "rope_scaling": {
        **{"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        **{"original_max_position_embeddings": 8192, "rope_type": "llama3"},
    },
    **{"tie_word_embeddings": False, "vocab_size": 128256},
}
GRANITE = COMMON | {  # as of transformers 4, of a small model
    "model_type": "granitemoehybrid",
    **{"attention_bias": False, "attention_multiplier": 0.015625, "hidden_size": 512},
    **{"embedding_multiplier": 12, "hidden_act": "silu", "intermediate_size": 512},
    **{"layer_types": ["mamba", "mamba", "attention", "mamba"], "logits_scaling": 2},
    **{"mamba_chunk_size": 256, "mamba_conv_bias": True, "mamba_d_conv": 4},
    **{"mamba_d_head": 128, "mamba_d_state": 128, "mamba_expand": 2},
    **{"mamba_n_groups": 1, "mamba_n_heads": 8, "mamba_proj_bias": False},
    **{"normalization_function": "rmsnorm", "num_attention_heads": 8},
    **{"num_experts_per_tok": 0, "num_hidden_layers": 4, "num_key_value_heads": 4},
    **{"num_local_experts": 0, "position_embedding_type": "nope"},
    **{"residual_multiplier": 0.22, "rms_norm_eps": 1e-5, "rope_scaling": None},
    **{"rope_theta": 10000, "shared_intermediate_size": 512, "vocab_size": 49152},
    "tie_word_embeddings": True,
}
FALCON_H1 = COMMON | {
    "model_type": "falcon_h1",
    **{"attention_in_multiplier": 1.0, "attention_out_multiplier": 0.9375},
    **{"attn_layer_indices": None, "embedding_multiplier": 5.656854249492381},
    **{"head_dim": 64, "hidden_act": "silu", "hidden_size": 1024},
    **{"intermediate_size": 2048, "key_multiplier": 0.390625},
    **{"lm_head_multiplier": 0.0390625, "mamba_chunk_size": 128, "mamba_d_conv": 4},
    **{"mamba_d_head": 64, "mamba_d_ssm": 1536, "mamba_d_state": 128},
    **{"mamba_expand": 2, "mamba_n_groups": 1, "mamba_n_heads": 24},
    **{"mamba_norm_before_gate": False, "mamba_rms_norm": False},
    **{"mamba_use_mlp": True, "mlp_expansion_factor": 8},
    **{"mlp_multipliers": [0.8838834764831844, 0.5859375], "projectors_bias": False},
    **{"num_attention_heads": 8, "num_hidden_layers": 36, "num_key_value_heads": 2},
    **{"rope_scaling": None, "rope_theta": 100000000000.0, "time_step_rank": "auto"},
    **{"ssm_in_multiplier": 1.25, "ssm_out_multiplier": 0.23570226039551584},
    **{"ssm_multipliers": [0.35, 0.25, 0.35, 0.5, 0.35], "vocab_size": 32784, **TIMES},
}
NEMOTRON_H = COMMON | {
    "model_type": "nemotron_h",
    **{"attention_head_dim": 128, "hidden_size": 4096, "intermediate_size": 21504},
    **{"hybrid_override_pattern": "M-M*-", "num_hidden_layers": 5, "n_groups": 8},
    **{"mamba_num_heads": 128, "mamba_head_dim": 64, "ssm_state_size": 128},
    **{"mlp_hidden_act": "relu2", "num_attention_heads": 32, "num_key_value_heads": 8},
    **{"mamba_hidden_act": "silu", "sliding_window": None, "expand": 2, **TIMES},
    **{"layer_norm_epsilon": 1e-5, "rms_norm_eps": 1e-5, "num_query_groups": 8},
    **{"time_step_limit": [0.0, math.inf], "use_bias": False, "vocab_size": 131072},
}

ZAMBA2 = COMMON | {  # as of transformers 4, of a small model
    "model_type": "zamba2",
    **{"adapter_rank": 128, "add_bias_linear": False, "attention_dropout": 0.0},
    **{"attention_head_dim": 64, "attention_hidden_size": 1024, "chunk_size": 256},
    **{"hidden_act": "gelu", "hidden_size": 512, "hybrid_layer_ids": [1, 3, 4]},
    **{"intermediate_size": 2048, "kv_channels": 32, "mamba_d_conv": 4},
    "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid", "hybrid"],
    **{"mamba_d_state": 64, "mamba_expand": 2, "mamba_headdim": 64},
    **{"mamba_ngroups": 1, "n_mamba_heads": 16, "num_attention_heads": 16},
    **{"num_hidden_layers": 5, "num_key_value_heads": 16, "num_logits_to_keep": 1},
    **{"num_mem_blocks": 2, "num_query_groups": 16, "rms_norm_eps": 1e-05},
    **{"rope_theta": 10000, "use_conv_bias": True, "use_long_context": False},
    **{"use_mem_rope": False, "use_shared_attention_adapter": False},
    **{"vocab_size": 32000, **TIMES},
}


CODESTRAL = COMMON | {  # mistralai/Mamba-Codestral-7B-v0.1
    "model_type": "mamba2",
    **{"chunk_size": 256, "conv_kernel": 4, "expand": 2, "head_dim": 64, "n_groups": 8},
    **{"hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 8192},
    **{"layer_norm_epsilon": 1e-5, "norm_before_gate": True, "num_heads": 128},
    **{"num_hidden_layers": 64, "rms_norm": True, "state_size": 128, **TIMES},
    **{"tie_word_embeddings": False, "time_step_limit": [0.0, math.inf]},
    **{"time_step_rank": 256, "use_bias": False, "vocab_size": 32768},
}
BAMBA = COMMON | {  # as of ibm-ai-platform/Bamba-9B, of fewer layers
    "model_type": "bamba",
    **{"attn_layer_indices": [1], "attn_rotary_emb": 64, "hidden_size": 4096},
    **{"mamba_d_head": 64, "mamba_d_state": 128, "mamba_n_heads": 128},
    **{"num_attention_heads": 32, "num_hidden_layers": 3, "num_key_value_heads": 8},
    **{"rope_scaling": None, "rope_theta": 10000.0, "vocab_size": 128256},
}

GRANITE_SMALL = {  # ibm-granite/granite-4.0-h-small
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
NEMOTRON_3_NANO = {  # nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16
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
QWEN3_NEXT = {  # Qwen/Qwen3-Next-80B-A3B-Instruct
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
QWEN3_5 = {  # Qwen/Qwen3.5-35B-A3B
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
JAMBA = {  # ai21labs/Jamba-v0.1
    "model_type": "jamba",
    **{"attn_layer_offset": 4, "attn_layer_period": 8, "attention_dropout": 0.0},
    **{"expert_layer_offset": 1, "expert_layer_period": 2, "hidden_act": "silu"},
    **{"hidden_size": 4096, "intermediate_size": 14336, "mamba_conv_bias": True},
    **{"mamba_d_conv": 4, "mamba_d_state": 16, "mamba_dt_rank": 256},
    **{"mamba_expand": 2, "mamba_inner_layernorms": True, "mamba_proj_bias": False},
    **{"num_attention_heads": 32, "num_experts": 16, "num_experts_per_tok": 2},
    **{"num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-06},
    **{"tie_word_embeddings": False, "use_mamba_kernels": True, "vocab_size": 65536},
}
MAMBA_IN_LLAMA = (
    LLAMA_31_8B
    | {  # JunxiongWang/Llama3.1-Mamba2-8B's two, beside each other
        "rms_norm_eps": 1e-5,
        "mamba_config": {
            **{"attn_layers": [i for i in range(32) if i % 2], "d_inner": 4096},
            **{"d_model": 4096, "d_xb": 1024, "hidden_act": "silu", "n_layer": 32},
            **{"intermediate_size": 14336, "rms_norm_eps": 1e-05, "vocab_size": None},
            "ssm_cfg": {"d_state": 128, "expand": 1, "ngroups": 32},
        },
    }
)
QWEN3_5_DENSE = {  # Qwen/Qwen3.5-9B's kind, without experts, of fewer layers
    **{"model_type": "qwen3_5", "image_token_id": 248056, "video_token_id": 248057},
    **{"tie_word_embeddings": False, "vision_config": {"depth": 27}},
    "text_config": {
        name: value
        for name, value in QWEN3_5["text_config"].items()
        if "expert" not in name and name != "moe_intermediate_size"
    }
    | {"model_type": "qwen3_5_text", "intermediate_size": 12288},
}
QWEN3_5_TEXT = QWEN3_5_DENSE["text_config"] | {"tie_word_embeddings": True}
QWEN3_5_MOE_TEXT = QWEN3_5["text_config"]
