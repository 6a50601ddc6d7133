"""The settings of the mixers and feed-forward blocks, validated; `config.py` joins them."""

import dataclasses
import math
from typing import Any, Literal


def require(condition: bool, message: str) -> None:
    """Raises a `ValueError` with the message if the condition does not hold."""
    if not condition:
        raise ValueError(message)


def positive(config: Any, *names: str) -> None:
    """Requires fields to be above zero."""
    for name in names:
        value = getattr(config, name)
        require(value > 0, f"{name} must be positive, got {value}.")


def not_negative(config: Any, *names: str) -> None:
    """Requires fields to be zero or above."""
    for name in names:
        value = getattr(config, name)
        require(value >= 0, f"{name} must not be negative, got {value}.")


def one_of(config: Any, name: str, *choices: str) -> None:
    """Requires a field to be one of some words."""
    value = getattr(config, name)
    require(value in choices, f"{name} must be one of {choices}, got {value!r}.")


ACTIVATIONS = ("swiglu", "geglu", "relu2", "gelu")
GATED = ("swiglu", "geglu")
"""The activations that have a gate beside what goes up."""


@dataclasses.dataclass(frozen=True)
class Mamba1Config:
    """Mamba-1 (Gu and Dao 2023).

    Attributes:
        expand: `d_inner = expand * d_model`.
        d_state: states per channel.
        d_conv: taps of the causal convolution.
        dt_rank: rank of the step sizes; 0 is `ceil(d_model / 16)`.
        conv_bias: bias of the convolution.
        proj_bias: bias of the projections in and out.
        norm: RMS norms on B, C and the low-rank dt: `"unit"` without scales
            (Falcon-Mamba), `"learned"` with scales (Jamba).
        norm_eps: epsilon of these; 0 is the model's.
        chunk_size: tokens that `scan` takes at once; a matter of speed alone.
    """

    expand: int = 2
    d_state: int = 16
    d_conv: int = 4
    dt_rank: int = 0
    conv_bias: bool = True
    proj_bias: bool = False
    norm: Literal["none", "unit", "learned"] = "none"
    norm_eps: float = 0.0
    chunk_size: int = 32

    def __post_init__(self):
        positive(self, "expand", "d_state", "chunk_size")
        require(self.d_conv >= 2, f"d_conv must be at least 2, got {self.d_conv}.")
        not_negative(self, "dt_rank")
        one_of(self, "norm", "none", "unit", "learned")


@dataclasses.dataclass(frozen=True)
class Mamba2Config:
    """Mamba-2 (Dao and Gu 2024).

    Attributes:
        nheads: heads; `d_inner = nheads * headdim`.
        headdim: width of a head.
        d_state: state width; a multiple of 128 where a TPU is meant.
        ngroups: groups of heads that share B and C.
        d_conv: taps of the causal convolution.
        conv_bias: bias of the convolution.
        proj_bias: bias of the projections in and out.
        D_per_channel: a skip weight per channel, rather than one per head.
        norm: where the gated RMS norm stands: `"after"` the gate, `"before"` it, or
            `"none"` (the gate alone, Falcon-H1).
        norm_groups: groups that are normalised apart; 0 is `ngroups`.
        dt_limits: bounds of the step sizes.
        chunk_size: tokens that `scan` takes at once; a matter of speed alone.
        in_multiplier: factor of the block's input.
        out_multiplier: factor of its output.
        projection_multipliers: factors of z, x, B, C and dt as they are projected.
    """

    nheads: int
    headdim: int = 64
    d_state: int = 128
    ngroups: int = 1
    d_conv: int = 4
    conv_bias: bool = True
    proj_bias: bool = False
    D_per_channel: bool = False
    norm: Literal["after", "before", "none"] = "after"
    norm_groups: int = 0
    dt_limits: tuple[float, float] = (0.0, math.inf)
    chunk_size: int = 64
    in_multiplier: float = 1.0
    out_multiplier: float = 1.0
    projection_multipliers: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0, 1.0)

    def __post_init__(self):
        positive(self, "nheads", "headdim", "d_state", "ngroups", "chunk_size")
        require(self.d_conv >= 2, f"d_conv must be at least 2, got {self.d_conv}.")
        require(
            self.nheads % self.ngroups == 0,
            f"ngroups must divide nheads, got {self.ngroups} and {self.nheads}.",
        )
        one_of(self, "norm", "after", "before", "none")
        require(
            self.norm_groups >= 0 and self.d_inner % (self.norm_groups or 1) == 0,
            f"norm_groups must divide {self.d_inner}, got {self.norm_groups}.",
        )
        limits = self.dt_limits
        require(
            len(limits) == 2 and 0.0 <= limits[0] < limits[1],
            f"dt_limits are two numbers that rise, got {limits}.",
        )
        require(
            len(self.projection_multipliers) == 5,
            "projection_multipliers are five (z, x, B, C, dt), got "
            f"{self.projection_multipliers}.",
        )

    @property
    def d_inner(self) -> int:
        return self.nheads * self.headdim

    @property
    def conv_dim(self) -> int:
        """Channels of the convolution: x, B and C."""
        return self.d_inner + 2 * self.ngroups * self.d_state


@dataclasses.dataclass(frozen=True)
class DeltaConfig:
    """The gated delta rule (Yang et al. 2024), as Qwen3-Next has it.

    Attributes:
        num_value_heads: heads, each with a state of its own.
        num_key_heads: groups of heads that share queries and keys.
        value_head_dim: width of a value.
        key_head_dim: width of a query and a key; a multiple of 128 where a TPU is meant.
        d_conv: taps of the causal convolution.
        allow_neg_eigval: `beta` is within (0, 2) rather than (0, 1), so that a token can
            turn around what the state holds at its key.
        chunk_size: tokens that `scan` takes at once; a matter of speed alone.
    """

    num_value_heads: int
    num_key_heads: int
    value_head_dim: int = 128
    key_head_dim: int = 128
    d_conv: int = 4
    allow_neg_eigval: bool = False
    chunk_size: int = 64

    def __post_init__(self):
        positive(self, "num_value_heads", "num_key_heads", "chunk_size")
        positive(self, "value_head_dim", "key_head_dim")
        require(self.d_conv >= 2, f"d_conv must be at least 2, got {self.d_conv}.")
        require(
            self.num_value_heads % self.num_key_heads == 0,
            "num_key_heads must divide num_value_heads, got "
            f"{self.num_key_heads} and {self.num_value_heads}.",
        )

    @property
    def key_dim(self) -> int:
        """Channels of the queries, and of the keys."""
        return self.num_key_heads * self.key_head_dim

    @property
    def value_dim(self) -> int:
        """Channels of the values."""
        return self.num_value_heads * self.value_head_dim

    @property
    def conv_dim(self) -> int:
        """Channels of the convolution: q, k and v."""
        return 2 * self.key_dim + self.value_dim


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
        positive(self, "num_heads", "num_kv_heads", "head_dim", "rope_theta")
        not_negative(self, "window", "adapter_rank")
        require(
            self.num_heads % self.num_kv_heads == 0,
            "num_kv_heads must divide num_heads, got "
            f"{self.num_kv_heads} and {self.num_heads}.",
        )
        require(
            0.0 <= self.rope_fraction <= 1.0 and self.rope_dim % 2 == 0,
            "rope_fraction must be within [0, 1] and turn an even number of "
            f"dimensions, got {self.rope_fraction} of {self.head_dim}.",
        )
        require(
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
        positive(self, "d_ff")
        not_negative(self, "adapter_rank")
        one_of(self, "activation", *ACTIVATIONS)


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
        positive(self, "num_experts", "top_k", "d_ff", "num_groups", "top_groups")
        one_of(self, "activation", *ACTIVATIONS)
        one_of(self, "scores", "softmax", "sigmoid")
        groups, top = self.num_groups, self.top_groups
        require(
            groups == 1 or self.scores == "sigmoid",
            f"num_groups must be 1 unless scores are 'sigmoid', got {groups}.",
        )
        require(
            self.num_experts % groups == 0,
            f"num_groups must divide num_experts, got {groups} and {self.num_experts}.",
        )
        require(
            top <= groups,
            f"top_groups must not exceed num_groups, got {top} of {groups}.",
        )
        size = self.num_experts // groups
        require(
            top == groups or size >= 2,
            "A group is judged by its two best experts, got "
            f"{self.num_experts} experts in {groups} groups.",
        )
        require(
            self.top_k <= top * size,
            f"top_k must not exceed the {top * size} experts of {top} groups, got "
            f"{self.top_k}."
            if groups > 1
            else f"top_k must not exceed num_experts, got {self.top_k} of {size}.",
        )
        not_negative(self, "shared_d_ff", "d_latent")
        require(
            self.shared_d_ff > 0 or not self.shared_gate,
            "shared_gate needs a shared expert: set shared_d_ff.",
        )
