"""Configs with experts as they are published are read, field by field."""

import dataclasses
import math

import pytest

from checkpoints_conv import families
from configs import GRANITE_SMALL, NEMOTRON_3_NANO, QWEN3_5, QWEN3_NEXT
from jaxspec.measure import published
from jaxspec.models.config import AttentionConfig, DeltaConfig, MoEConfig


def read(record):
    return families.find(record).read(record)


@pytest.mark.parametrize(
    "record, name",
    [(GRANITE_SMALL, "granite-4-h-small"), (NEMOTRON_3_NANO, "nemotron-3-nano")],
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
    [(QWEN3_NEXT, 48, 512, 10), (QWEN3_5, 40, 256, 8)],
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
