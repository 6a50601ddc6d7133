"""The settings of attention and feed-forward, validated; `config.py` joins them."""

import dataclasses
from typing import Literal

from jaxspec import checks
from jaxspec.models import fields

ACTIVATIONS = ("swiglu", "geglu", "relu2", "gelu")
GATED = ("swiglu", "geglu")
"""The activations that have a gate beside what goes up."""


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """Grouped-query attention.

    Attributes:
        num_heads: query heads.
        num_kv_heads: key and value heads; divides `num_heads`.
        head_dim: width of a head.
        rope_fraction: share of a head's width that RoPE turns: 1 full, 0 none.
        rope_theta: base of RoPE's wavelengths.
        rope_scaling: none, or Llama 3.1's four numbers: a turn that is made less than
            `low` times in `length` tokens is made `factor` times slower, one that is
            made more than `high` times is kept (factor, low, high, length).
        window: each token sees the last `window` tokens, itself included; 0 for all.
        scale: factor of the scores; 0 is `head_dim ** -0.5`.
        qkv_bias: bias of the projection in.
        out_bias: bias of the projection out.
        qk_norm: an RMS norm on every query and key, before RoPE.
        output_gate: what every head reads is gated by a sigmoid of the block's input.
        in_multiplier: factor of the block's input.
        key_multiplier: factor of the keys.
        out_multiplier: factor of the output.
        adapter_rank: rank of what is added to each of queries, keys and values (LoRA);
            0 for nothing. Where weights are shared, it is each block's own.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int = 64
    rope_fraction: float = 1.0
    rope_theta: float = 10_000.0
    rope_scaling: tuple[float, ...] = ()
    window: int = 0
    scale: float = 0.0
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    output_gate: bool = False
    in_multiplier: float = 1.0
    key_multiplier: float = 1.0
    out_multiplier: float = 1.0
    adapter_rank: int = 0

    def __post_init__(self):
        fields.positive(self, "num_heads", "num_kv_heads", "head_dim", "rope_theta")
        fields.not_negative(self, "window", "adapter_rank")
        checks.require(
            self.num_heads % self.num_kv_heads == 0,
            "num_kv_heads must divide num_heads, got "
            f"{self.num_kv_heads} and {self.num_heads}.",
        )
        checks.require(
            0.0 <= self.rope_fraction <= 1.0 and self.rope_dim % 2 == 0,
            "rope_fraction must be within [0, 1] and turn an even number of "
            f"dimensions, got {self.rope_fraction} of {self.head_dim}.",
        )
        checks.require(
            len(self.rope_scaling) in (0, 4),
            f"rope_scaling is empty or four numbers, got {self.rope_scaling}.",
        )

    @property
    def rope_dim(self) -> int:
        return round(self.head_dim * self.rope_fraction)


@dataclasses.dataclass(frozen=True)
class MLPConfig:
    """Feed-forward.

    Attributes:
        d_ff: hidden width.
        activation: `"swiglu"`, `"geglu"`, `"relu2"` (squared ReLU) or `"gelu"`.
        bias: biases of both projections.
        gate_multiplier: factor of the gate before the activation.
        out_multiplier: factor of the output.
        adapter_rank: rank of what is added to the projection in (LoRA); 0 for nothing.
            Where weights are shared, it is each block's own.
    """

    d_ff: int
    activation: Literal["swiglu", "geglu", "relu2", "gelu"] = "swiglu"
    bias: bool = False
    gate_multiplier: float = 1.0
    out_multiplier: float = 1.0
    adapter_rank: int = 0

    def __post_init__(self):
        fields.positive(self, "d_ff")
        fields.not_negative(self, "adapter_rank")
        fields.one_of(self, "activation", *ACTIVATIONS)


@dataclasses.dataclass(frozen=True)
class MoEConfig:
    """Mixture of experts.

    Attributes:
        num_experts: experts.
        top_k: how many of them each token chooses.
        d_ff: hidden width of an expert.
        activation: of all experts, see `MLPConfig`.
        scores: `"softmax"` over the experts (Granite, Qwen3-Next, Jamba), or `"sigmoid"`
            of each, with a correction bias for the choice (Nemotron-H).
        renormalize: the weights of the chosen add up to one, before `routed_multiplier`.
        num_groups: groups of consecutive experts, under sigmoid scores.
        top_groups: how many of them a token chooses from.
        routed_multiplier: factor of the weights of the chosen.
        shared_d_ff: hidden width of the expert that all tokens have; 0 for none.
        shared_gate: its output is times the sigmoid of a projection (Qwen3-Next).
        d_latent: width that the chosen experts' input is projected to and their output
            from (Nemotron-3-Super); 0 for none, `d_model`.
    """

    num_experts: int
    top_k: int
    d_ff: int
    activation: Literal["swiglu", "geglu", "relu2", "gelu"] = "swiglu"
    scores: Literal["softmax", "sigmoid"] = "softmax"
    renormalize: bool = True
    num_groups: int = 1
    top_groups: int = 1
    routed_multiplier: float = 1.0
    shared_d_ff: int = 0
    shared_gate: bool = False
    d_latent: int = 0

    def __post_init__(self):
        fields.positive(
            self, "num_experts", "top_k", "d_ff", "num_groups", "top_groups"
        )
        fields.one_of(self, "activation", *ACTIVATIONS)
        fields.one_of(self, "scores", "softmax", "sigmoid")
        groups, top = self.num_groups, self.top_groups
        checks.require(
            groups == 1 or self.scores == "sigmoid",
            f"num_groups must be 1 unless scores are 'sigmoid', got {groups}.",
        )
        checks.require(
            self.num_experts % groups == 0,
            f"num_groups must divide num_experts, got {groups} and {self.num_experts}.",
        )
        checks.require(
            top <= groups,
            f"top_groups must not exceed num_groups, got {top} of {groups}.",
        )
        size = self.num_experts // groups
        checks.require(
            top == groups or size >= 2,
            "A group is judged by its two best experts, got "
            f"{self.num_experts} experts in {groups} groups.",
        )
        checks.require(
            self.top_k <= top * size,
            f"top_k must not exceed the {top * size} experts of {top} groups, got "
            f"{self.top_k}."
            if groups > 1
            else f"top_k must not exceed num_experts, got {self.top_k} of {size}.",
        )
        fields.not_negative(self, "shared_d_ff", "d_latent")
        checks.require(
            self.shared_d_ff > 0 or not self.shared_gate,
            "shared_gate needs a shared expert: set shared_d_ff.",
        )
