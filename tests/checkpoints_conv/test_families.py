"""Configs as they are published are read, and what is not implemented is refused."""

import dataclasses
import math

import pytest

from checkpoints_conv import families
from jaxspec.bench import published as published_shapes
from jaxspec.models.config import AttentionConfig, Mamba1Config, Mamba2Config, MLPConfig

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
    **{"embedding_multiplier": 12, "hidden_act": "silu", "intermediate_size": 1024},
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


def read(record):
    return families.find(record).read(record)


def test_the_authors_pad_their_tables():
    config = read(MAMBA_130M)
    assert (config.layers, config.vocab_size) == ("m" * 24, 50280)
    assert config.mamba1 == Mamba1Config() and config.tie_embeddings
    config = read(MAMBA2_130M)
    assert (config.layers, config.vocab_size) == ("M" * 24, 50288)
    assert config.mamba2 == Mamba2Config(nheads=24)


def test_both_forms_of_mamba_are_one_model():
    rank = dataclasses.replace(read(MAMBA_130M).mamba1, dt_rank=48)
    expected = dataclasses.replace(read(MAMBA_130M), mamba1=rank)
    assert read(MAMBA_130M_HF) == expected


def test_a_width_that_is_given_goes_before_expand():
    mixer = Mamba1Config(expand=2, dt_rank=256, norm="unit", norm_eps=1e-6)
    assert read(FALCON_MAMBA_7B).mamba1 == mixer


def test_rope_of_older_configs():
    assert read(LLAMA_31_8B).attention == AttentionConfig(
        32, 8, 128, rope_theta=5e5, rope_scaling=(8.0, 1.0, 4.0, 8192.0)
    )


def test_granite_of_older_configs():
    config = read(GRANITE)
    assert config.layers == "M-M-*-M-" and config.mlp == MLPConfig(512)
    assert config.attention.rope_dim == 0 and config.attention.scale == 0.015625
    assert (config.embedding_multiplier, config.logits_multiplier) == (12.0, 0.5)


def test_falcon_h1s_factors():
    config = read(FALCON_H1)
    assert config.layers == "P-" * 36 and config.mamba2.norm == "none"
    assert config.mamba2.projection_multipliers == (0.35, 0.25, 0.35, 0.5, 0.35)
    assert config.mlp.out_multiplier == 0.5859375
    assert (config.mamba2.d_inner, config.attention.rope_theta) == (1536, 1e11)


def test_nemotron_h_by_its_letters():
    config = read(NEMOTRON_H)
    assert config.layers == "M-M*-" and config.mlp.activation == "relu2"
    assert config.attention == AttentionConfig(32, 8, 128, rope_fraction=0.0)
    assert config.mamba2.dt_limits == (0.0, math.inf)


def test_a_width_may_be_said_again():
    """And the turned part of a head; what contradicts the rest is refused below."""
    assert read(CODESTRAL).mamba2 == Mamba2Config(128, ngroups=8)
    config = read(BAMBA)
    assert (config.layers, config.attention.rope_dim) == ("M-*-M-", 64)


def test_what_other_libraries_note_is_not_refused():
    """As in SmolLM2's config, and in Jamba's."""
    own = {"is_llama_config": True, "rope_interleaved": False}
    assert read(LLAMA_31_8B | own | {"transformers.js_config": {"dtype": "q4"}}) == (
        read(LLAMA_31_8B)
    )
    jamba = {"model_type": "jamba", "hidden_size": 64, "vocab_size": 256}
    jamba |= {"num_hidden_layers": 8, "num_attention_heads": 8}
    assert read(jamba | {"n_ctx": 262144, "mamba_inner_layernorms": True}) == read(
        jamba
    )


def test_zamba2s_shared_blocks():
    config = read(ZAMBA2)
    assert (config.layers, config.num_shared) == ("MSMSS", 2) and config.tie_embeddings
    assert config.mlp == MLPConfig(2048, "geglu", adapter_rank=128)
    plain = AttentionConfig(16, 16, 64, rope_fraction=0.0, scale=32**-0.5)
    assert config.attention == plain
    own = {"use_mem_rope": True, "use_shared_attention_adapter": True}
    turned = dataclasses.replace(plain, rope_fraction=1.0, adapter_rank=128)
    assert read(ZAMBA2 | own).attention == turned
    assert read(ZAMBA2 | {"num_mem_blocks": 9}).num_shared == 3


@pytest.mark.parametrize(
    "record, fields, message",
    [
        (ZAMBA2, {"use_long_context": True}, "use_long_context True; it must be False"),
        (ZAMBA2, {"tie_word_embeddings": False}, "embeddings False; it must be True"),
        (ZAMBA2, {"rms_norm_eps": 1e-6}, "rms_norm_eps 1e-06; it must be 1e-05"),
        (ZAMBA2, {"attention_head_dim": 32}, "attention_head_dim 32; it must be 64"),
        (ZAMBA2, {"adapter_rank": 0}, "adapter_rank must be positive, got 0"),
        (ZAMBA2, {"n_mamba_heads": 24}, "n_mamba_heads must divide .* 24 and 1024"),
        (ZAMBA2, {"layers_block_type": ["attention"] * 5}, "a layer 'attention' in"),
        (ZAMBA2, {"use_shared_block_lora": True}, "not implement use_shared_block_lor"),
        (GRANITE, {"layer_types": ["hybrid"] * 4}, "does not implement a layer 'hybri"),
        (MAMBA_130M, {"rms_norm": False}, "does not implement rms_norm False"),
        (MAMBA_130M, {"attn_layer_idx": [3]}, r"not implement attn_layer_idx \[3\]"),
        (MAMBA_130M, {"ssm_cfg": {"layer": "Mamba3"}}, "layer 'Mamba3'"),
        (MAMBA2_130M, {"d_intermediate": 64}, "d_intermediate 64; it must be 0"),
        (MAMBA_130M_HF, {"d_inner": 512}, "d_inner 512; it must be 1536"),
        (FALCON_MAMBA_7B, {"intermediate_size": 5000}, "must be a multiple of hidden"),
        (LLAMA_31_8B, {"rope_scaling": {"type": "yarn"}}, "rope_type 'yarn'"),
        (
            LLAMA_31_8B,
            {"rope_interleaved": True},
            "not implement rope_interleaved True",
        ),
        (CODESTRAL, {"intermediate_size": 4096}, "intermediate_size 4096; .* 8192"),
        (BAMBA, {"attn_rotary_emb": 128}, "attn_rotary_emb 128; it must be 64"),
        (NEMOTRON_H, {"rms_norm_eps": 1e-6}, "rms_norm_eps 1e-06; it must be 1e-05"),
        (LLAMA_31_8B, {"hidden_act": "gelu"}, "hidden_act 'gelu'; it must be 'silu'"),
        (LLAMA_31_8B, {"num_key_value_heads": 5}, "num_kv_heads must divide"),
        (GRANITE, {"num_local_experts": 64}, "top_k must be positive, got 0"),
        (
            GRANITE,
            {"num_hidden_layers": 5},
            "names 4 layers and num_hidden_layers is 5",
        ),
        (GRANITE, {"layer_types": ["conv"] * 4}, "does not implement a layer 'conv'"),
        (GRANITE, {"mamba_n_heads": 7}, "mamba_n_heads .* is 896, .* 1024 wide"),
        (
            FALCON_H1,
            {"projectors_bias": True},
            "projectors_bias True; it must be False",
        ),
        (NEMOTRON_H, {"hybrid_override_pattern": "MX"}, "a layer 'X' in hybrid_over"),
        (NEMOTRON_H, {"hybrid_override_pattern": "ME"}, "no field n_routed_experts"),
        (NEMOTRON_H, {"hybrid_override_pattern": None}, "no field layers_block_type"),
        (FALCON_H1, {"mlp_multipliers": [1.0]}, "mlp_multipliers must be 2 numbers"),
        (NEMOTRON_H, {"mlp_hidden_act": "silu"}, "mlp_hidden_act 'silu'"),
        (
            LLAMA_31_8B,
            {"mamba_config": {"ssm_cfg": {"expand": 1}}},
            "Mamba-1 whose heads",
        ),
        (LLAMA_31_8B, {"mamba_config": {"d_xb": 9}}, "d_xb 9; it must be 1024"),
        (
            LLAMA_31_8B,
            {"quantization_config": {"bits": 4}},
            "not implement quantization",
        ),
    ],
)
def test_what_is_not_implemented_is_refused_in_one_line(record, fields, message):
    with pytest.raises(ValueError, match=message) as error:
        read(record | fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [*published_shapes.MODELS])
def test_a_published_shape_has_a_published_form(name):
    family, record = families.publish(published_shapes.MODELS[name])
    assert record["model_type"] == family.kind


def test_scores_have_a_scale_in_every_form():
    """Granite's is a field, and 0 means no default there."""
    _, record = families.publish(published_shapes.MODELS["granite-4-h-350m"])
    assert record["attention_multiplier"] == 64**-0.5


@pytest.mark.parametrize(
    "record, words",
    [
        (
            LLAMA_31_8B | {"partial_rotary_factor": 0.5},
            "partial_rotary_factor must be 1",
        ),
        (NEMOTRON_H | {"sliding_window": 7}, "does not implement sliding_window 7"),
        ({"model_type": "mamba_in_llama"}, "unknown architecture 'mamba_in_llama'"),
    ],
)
def test_what_transformers_computes_otherwise_is_refused(record, words):
    with pytest.raises(ValueError, match=words):
        families.find(record).read(record)
