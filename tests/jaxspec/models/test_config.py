"""Configs: frozen, validated, and the same after a trip to JSON."""

import dataclasses
import json
import math

import pytest

from jaxspec.models import config as configs
from jaxspec.models.config import (
    AttentionConfig,
    DeltaConfig,
    Mamba1Config,
    Mamba2Config,
    MLPConfig,
    ModelConfig,
    MoEConfig,
)

SMALL = {"vocab_size": 11, "d_model": 8}
MODELS = {
    "mamba1": ModelConfig(
        **SMALL, layers="mm", mamba1=Mamba1Config(dt_rank=3, norm="learned")
    ),
    "mamba2": ModelConfig(
        **SMALL, layers="MM", mamba2=Mamba2Config(nheads=4, ngroups=2)
    ),
    "delta": ModelConfig(
        **SMALL,
        layers="G",
        delta=DeltaConfig(4, 2, key_head_dim=6, allow_neg_eigval=True),
        zero_centered_norms=True,
    ),
    "attention": ModelConfig(
        **SMALL,
        layers="*",
        attention=AttentionConfig(
            4, 2, rope_fraction=0.5, qk_norm=True, output_gate=True
        ),
    ),
    "shared": ModelConfig(
        **SMALL,
        layers="MSMSS",
        mamba2=Mamba2Config(nheads=2),
        attention=AttentionConfig(2, 2, adapter_rank=3),
        mlp=MLPConfig(d_ff=4, activation="geglu", adapter_rank=2),
        num_shared=2,
    ),
    "all": ModelConfig(
        **SMALL,
        layers="M-m-*-PE",
        mamba1=Mamba1Config(norm="unit"),
        mamba2=Mamba2Config(
            nheads=4,
            headdim=6,
            norm_groups=3,
            dt_limits=(0.001, 0.1),
            projection_multipliers=(1.0, 2.0, 0.5, 0.25, 3.0),
        ),
        attention=AttentionConfig(4, 1, window=16, scale=0.2),
        mlp=MLPConfig(d_ff=32, activation="relu2", bias=True),
        moe=MoEConfig(8, 2, 4, "gelu", "sigmoid", False, 4, 2, 2.5, 6, True, 5),
        tie_embeddings=False,
        dtype="bfloat16",
    ),
}


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS.keys())
def test_a_config_survives_json(config):
    again = configs.from_json(configs.to_json(config))
    assert again == config
    assert hash(again) == hash(config)


def test_an_infinite_limit_survives_json():
    again = configs.from_json(configs.to_json(MODELS["mamba2"]))
    assert again.mamba2.dt_limits == (0.0, math.inf)


def test_json_names_the_version_of_the_format():
    record = json.loads(configs.to_json(MODELS["all"]))
    assert record["format_version"] == configs.FORMAT_VERSION
    assert record["layers"] == "M-m-*-PE"


def test_configs_are_equal_by_value():
    first, second = (Mamba2Config(nheads=4, ngroups=n) for n in (1, 2))
    assert first == Mamba2Config(nheads=4)
    assert len({first, second, Mamba2Config(nheads=4)}) == 2
    one, other = (ModelConfig(**SMALL, layers="M", mamba2=m) for m in (first, second))
    assert len({one, other, ModelConfig(**SMALL, layers="M", mamba2=first)}) == 2


@pytest.mark.parametrize("config", [MODELS["all"], MODELS["all"].mamba2])
def test_configs_are_frozen(config):
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.dtype = "float32"


# --- What JSON is refused ---

ALL = json.loads(configs.to_json(MODELS["all"]))


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "not JSON"),
        ("", "not JSON"),
        ("[1]", "Expected a JSON object, got list"),
        (
            json.dumps(ALL | {"format_version": 1}),
            "version 1, .* reads version 2: convert",
        ),
        ("{}", "format version None"),
        (json.dumps(ALL | {"d_modle": 8}), "ModelConfig has no field d_modle"),
        (json.dumps(ALL | {"mlp": {"d_ff": 4, "x": 1}}), "MLPConfig has no field x"),
        (json.dumps(ALL | {"mlp": {}}), "MLPConfig: .*missing .*'d_ff'"),
        (json.dumps(ALL | {"mlp": None}), "block '-', which needs .* `mlp`"),
        (json.dumps(ALL | {"mlp": 3}), "MLPConfig"),
        (json.dumps(ALL | {"mlp": []}), "MLPConfig"),
        (json.dumps(ALL | {"d_model": "wide"}), "d_model cannot be 'wide'"),
        (json.dumps(ALL | {"vocab_size": 4.5}), "vocab_size cannot be 4.5"),
        (json.dumps(ALL | {"tie_embeddings": 1}), "tie_embeddings cannot be 1"),
        (json.dumps({k: v for k, v in ALL.items() if k != "layers"}), "'layers'"),
    ],
)
def test_json_that_is_no_config_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        configs.from_json(text)


# --- What settings are refused ---


@pytest.mark.parametrize(
    "layers, message",
    [
        ("", "at least one block"),
        ("MxM", "Unknown block 'x' in layers 'MxM'; expected one of M m"),
        ("M*", "block '\\*', which needs the settings `attention`"),
        ("G", "block 'G', which needs the settings `delta`"),
        ("P", "block 'P', which needs the settings `attention`"),
        ("ME", "block 'E', which needs the settings `moe`"),
        ("MS", "block 'S', which needs the settings `attention`"),
        ("Mm", "block 'm', which needs the settings `mamba1`"),
    ],
)
def test_layers_that_cannot_be_built_are_refused(layers, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**SMALL, layers=layers, mamba2=Mamba2Config(nheads=2))


@pytest.mark.parametrize(
    "cls, settings, message",
    [
        (Mamba2Config, {"nheads": 3, "ngroups": 2}, "ngroups must divide nheads"),
        (Mamba2Config, {"nheads": 2, "norm_groups": 3}, "norm_groups must divide 128"),
        (Mamba2Config, {"nheads": 2, "norm_groups": -1}, "norm_groups must divide"),
        (Mamba2Config, {"nheads": 2, "dt_limits": (0.1, 0.1)}, "two numbers that rise"),
        (
            Mamba2Config,
            {"nheads": 2, "dt_limits": (-1.0, 1.0)},
            "two numbers that rise",
        ),
        (Mamba2Config, {"nheads": 2, "d_conv": 1}, "d_conv must be at least 2, got 1"),
        (Mamba2Config, {"nheads": 2, "norm": "unit"}, "norm must be one of .*'unit'"),
        (
            Mamba2Config,
            {"nheads": 2, "projection_multipliers": (1.0,) * 4},
            "projection_multipliers are five",
        ),
        (Mamba1Config, {"norm": "after"}, "norm must be one of .*'after'"),
        (Mamba1Config, {"dt_rank": -1}, "dt_rank must not be negative, got -1"),
        (Mamba1Config, {"d_conv": 1}, "d_conv must be at least 2, got 1"),
        (
            DeltaConfig,
            {"num_value_heads": 4, "num_key_heads": 3},
            "num_key_heads must divide num_value_heads, got 3 and 4",
        ),
        (
            DeltaConfig,
            {"num_value_heads": 2, "num_key_heads": 1, "d_conv": 1},
            "d_conv must be at least 2, got 1",
        ),
        (
            AttentionConfig,
            {"num_heads": 4, "num_kv_heads": 3},
            "num_kv_heads must divide num_heads, got 3 and 4",
        ),
        (
            AttentionConfig,
            {"num_heads": 2, "num_kv_heads": 1, "rope_fraction": 1.5},
            r"rope_fraction must be within \[0, 1\]",
        ),
        (
            AttentionConfig,
            {"num_heads": 2, "num_kv_heads": 1, "head_dim": 6, "rope_fraction": 0.5},
            "an even number of dimensions, got 0.5 of 6",
        ),
        (
            AttentionConfig,
            {"num_heads": 2, "num_kv_heads": 1, "window": -1},
            "window must not be negative, got -1",
        ),
        (MLPConfig, {"d_ff": 4, "activation": "relu"}, "activation must be .*'relu'"),
        (MLPConfig, {"d_ff": 4, "adapter_rank": -1}, "adapter_rank must not be negat"),
        (
            AttentionConfig,
            {"num_heads": 2, "num_kv_heads": 1, "adapter_rank": -2},
            "adapter_rank must not be negative, got -2",
        ),
        (MoEConfig, {"activation": "relu"}, "activation must be .*'relu'"),
        (MoEConfig, {"scores": "top"}, "scores must be one of .*'top'"),
        (MoEConfig, {"num_groups": 2}, "must be 1 unless scores are 'sigmoid', got 2"),
        (
            MoEConfig,
            {"scores": "sigmoid", "num_groups": 3},
            "num_groups must divide num_experts, got 3 and 8",
        ),
        (
            MoEConfig,
            {"scores": "sigmoid", "num_groups": 2, "top_groups": 3},
            "top_groups must not exceed num_groups, got 3 of 2",
        ),
        (
            MoEConfig,
            {"scores": "sigmoid", "num_groups": 8, "top_groups": 2},
            "two best experts, got 8 experts in 8 groups",
        ),
        (
            MoEConfig,
            {"scores": "sigmoid", "num_groups": 4, "top_k": 3},
            "top_k must not exceed the 2 experts of 1 groups, got 3",
        ),
        (MoEConfig, {"top_k": 9}, "top_k must not exceed num_experts, got 9 of 8"),
        (MoEConfig, {"shared_d_ff": -1}, "shared_d_ff must not be negative, got -1"),
        (MoEConfig, {"d_latent": -2}, "d_latent must not be negative, got -2"),
        (MoEConfig, {"shared_gate": True}, "needs a shared expert: set shared_d_ff"),
        (ModelConfig, {"dtype": "float16"}, "dtype must be one of .*'float16'"),
        (ModelConfig, {"num_shared": 0}, "num_shared must be from 1 to 1, .* got 0"),
        (ModelConfig, {"num_shared": 2}, "from 1 to 1, as many as layers 'm' can use"),
    ],
)
def test_settings_that_do_not_fit_are_refused(cls, settings, message):
    if cls is MoEConfig:
        settings = {"num_experts": 8, "top_k": 2, "d_ff": 4, **settings}
    if cls is ModelConfig:
        settings = {**SMALL, "layers": "m", "mamba1": Mamba1Config(), **settings}
    with pytest.raises(ValueError, match=message):
        cls(**settings)


def test_no_set_of_shared_weights_is_idle():
    with pytest.raises(ValueError, match="from 1 to 3, .* 'MSMSS' can use, got 4"):
        dataclasses.replace(MODELS["shared"], num_shared=4)
    storages = {"layers": "MSMSS", "shared": "SS"}
    assert MODELS["shared"].storages == storages
    assert MODELS["all"].storages == {"layers": MODELS["all"].layers}


@pytest.mark.parametrize("value", [0, -2])
@pytest.mark.parametrize(
    "config, name",
    [
        *[(Mamba1Config(), n) for n in ("expand", "d_state", "chunk_size")],
        *[(Mamba2Config(nheads=2), n) for n in ("nheads", "headdim", "d_state")],
        *[(Mamba2Config(nheads=2), n) for n in ("ngroups", "chunk_size")],
        *[(DeltaConfig(2, 1), n) for n in ("num_value_heads", "num_key_heads")],
        *[(DeltaConfig(2, 1), n) for n in ("value_head_dim", "key_head_dim")],
        (DeltaConfig(2, 1), "chunk_size"),
        *[(AttentionConfig(2, 1), n) for n in ("num_heads", "num_kv_heads")],
        *[(AttentionConfig(2, 1), n) for n in ("head_dim", "rope_theta")],
        (MLPConfig(d_ff=4), "d_ff"),
        *[(MoEConfig(8, 2, 4), n) for n in ("num_experts", "top_k", "d_ff")],
        *[(MoEConfig(8, 2, 4), n) for n in ("num_groups", "top_groups")],
        *[(MODELS["all"], n) for n in ("vocab_size", "d_model", "norm_eps")],
    ],
)
def test_sizes_are_positive(config, name, value):
    with pytest.raises(ValueError, match=f"{name} must be positive, got {value}"):
        dataclasses.replace(config, **{name: value})


def test_the_derived_widths():
    mamba2 = Mamba2Config(nheads=3, headdim=5, ngroups=3, d_state=7)
    assert (mamba2.d_inner, mamba2.conv_dim) == (15, 15 + 2 * 3 * 7)
    delta = DeltaConfig(4, 2, value_head_dim=3, key_head_dim=5)
    assert (delta.key_dim, delta.value_dim, delta.conv_dim) == (10, 12, 32)
    widths = {"delta": DeltaConfig(4, 2, d_conv=5), "mamba1": Mamba1Config(d_conv=3)}
    for layers, width in {"m": 3, "mG": 5, "G": 5, "*": 1}.items():
        parts = widths | {"attention": AttentionConfig(2, 1)}
        assert ModelConfig(**SMALL, layers=layers, **parts).conv_width == width
    assert AttentionConfig(2, 1, head_dim=8, rope_fraction=0.25).rope_dim == 2
