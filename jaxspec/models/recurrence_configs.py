"""The settings of the recurrences, validated; `config.py` joins them with the others."""

import dataclasses
import math
from typing import Literal

from jaxspec import checks
from jaxspec.models import fields


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
        fields.positive(self, "expand", "d_state", "chunk_size")
        checks.require(
            self.d_conv >= 2, f"d_conv must be at least 2, got {self.d_conv}."
        )
        fields.not_negative(self, "dt_rank")
        fields.one_of(self, "norm", "none", "unit", "learned")


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
        fields.positive(self, "nheads", "headdim", "d_state", "ngroups", "chunk_size")
        checks.require(
            self.d_conv >= 2, f"d_conv must be at least 2, got {self.d_conv}."
        )
        checks.require(
            self.nheads % self.ngroups == 0,
            f"ngroups must divide nheads, got {self.ngroups} and {self.nheads}.",
        )
        fields.one_of(self, "norm", "after", "before", "none")
        checks.require(
            self.norm_groups >= 0 and self.d_inner % (self.norm_groups or 1) == 0,
            f"norm_groups must divide {self.d_inner}, got {self.norm_groups}.",
        )
        limits = self.dt_limits
        checks.require(
            len(limits) == 2 and 0.0 <= limits[0] < limits[1],
            f"dt_limits are two numbers that rise, got {limits}.",
        )
        checks.require(
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
        fields.positive(self, "num_value_heads", "num_key_heads", "chunk_size")
        fields.positive(self, "value_head_dim", "key_head_dim")
        checks.require(
            self.d_conv >= 2, f"d_conv must be at least 2, got {self.d_conv}."
        )
        checks.require(
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
