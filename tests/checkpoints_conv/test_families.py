"""Configs as they are published are read, and what is not implemented is refused."""

import dataclasses
import math

import pytest

from checkpoints_conv import families
from configs import (
    BAMBA,
    CODESTRAL,
    FALCON_H1,
    FALCON_MAMBA_7B,
    GRANITE,
    LLAMA_31_8B,
    MAMBA2_130M,
    MAMBA_130M,
    MAMBA_130M_HF,
    NEMOTRON_H,
    ZAMBA2,
)
from jaxspec.measure import published as published_shapes
from jaxspec.models.config import AttentionConfig, Mamba1Config, Mamba2Config, MLPConfig


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
