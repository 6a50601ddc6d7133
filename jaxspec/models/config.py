"""The shape of a language model: frozen, hashable, validated, and a JSON file on disk.

Names follow state-spaces/mamba (`d_model, d_state, d_conv, expand, headdim, ngroups,
chunk_size`). A model is a string of residual blocks, one character each:

    M Mamba-2    m Mamba-1    G gated delta rule    * attention
    - feed-forward    E mixture of experts
    P Mamba-2 beside attention
"""

import dataclasses
import json
import math
from typing import Any, Literal

FORMAT_VERSION = 1

BLOCKS = {
    "M": ("mamba2",),
    "m": ("mamba1",),
    "G": ("delta",),
    "*": ("attention",),
    "-": ("mlp",),
    "E": ("moe",),
    "P": ("mamba2", "attention"),
}
"""The settings that each kind of block reads."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


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
        _positive(self, "expand", "d_state", "chunk_size")
        _require(self.d_conv >= 2, f"d_conv must be at least 2, got {self.d_conv}.")
        _require(
            self.dt_rank >= 0, f"dt_rank must not be negative, got {self.dt_rank}."
        )
        _one_of(self, "norm", "none", "unit", "learned")


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
        _positive(self, "nheads", "headdim", "d_state", "ngroups", "chunk_size")
        _require(self.d_conv >= 2, f"d_conv must be at least 2, got {self.d_conv}.")
        _require(
            self.nheads % self.ngroups == 0,
            f"ngroups must divide nheads, got {self.ngroups} and {self.nheads}.",
        )
        _one_of(self, "norm", "after", "before", "none")
        _require(
            self.norm_groups >= 0 and self.d_inner % (self.norm_groups or 1) == 0,
            f"norm_groups must divide {self.d_inner}, got {self.norm_groups}.",
        )
        limits = self.dt_limits
        _require(
            len(limits) == 2 and 0.0 <= limits[0] < limits[1],
            f"dt_limits are two numbers that rise, got {limits}.",
        )
        _require(
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
        _positive(self, "num_value_heads", "num_key_heads", "chunk_size")
        _positive(self, "value_head_dim", "key_head_dim")
        _require(self.d_conv >= 2, f"d_conv must be at least 2, got {self.d_conv}.")
        _require(
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

    def __post_init__(self):
        _positive(self, "num_heads", "num_kv_heads", "head_dim", "rope_theta")
        _require(
            self.num_heads % self.num_kv_heads == 0,
            "num_kv_heads must divide num_heads, got "
            f"{self.num_kv_heads} and {self.num_heads}.",
        )
        _require(
            0.0 <= self.rope_fraction <= 1.0 and self.rope_dim % 2 == 0,
            "rope_fraction must be within [0, 1] and turn an even number of "
            f"dimensions, got {self.rope_fraction} of {self.head_dim}.",
        )
        _require(
            len(self.rope_scaling) in (0, 4),
            f"rope_scaling is empty or four numbers, got {self.rope_scaling}.",
        )
        _require(self.window >= 0, f"window must not be negative, got {self.window}.")

    @property
    def rope_dim(self) -> int:
        return round(self.head_dim * self.rope_fraction)


@dataclasses.dataclass(frozen=True)
class MLPConfig:
    """Feed-forward.

    Attributes:
        d_ff: hidden width.
        activation: `"swiglu"`, `"relu2"` (squared ReLU) or `"gelu"`.
        bias: biases of both projections.
        gate_multiplier: factor of SwiGLU's gate before the activation.
        out_multiplier: factor of the output.
    """

    d_ff: int
    activation: Literal["swiglu", "relu2", "gelu"] = "swiglu"
    bias: bool = False
    gate_multiplier: float = 1.0
    out_multiplier: float = 1.0

    def __post_init__(self):
        _positive(self, "d_ff")
        _one_of(self, "activation", "swiglu", "relu2", "gelu")


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
    activation: Literal["swiglu", "relu2", "gelu"] = "swiglu"
    scores: Literal["softmax", "sigmoid"] = "softmax"
    renormalize: bool = True
    num_groups: int = 1
    top_groups: int = 1
    routed_multiplier: float = 1.0
    shared_d_ff: int = 0
    shared_gate: bool = False
    d_latent: int = 0

    def __post_init__(self):
        _positive(self, "num_experts", "top_k", "d_ff", "num_groups", "top_groups")
        _one_of(self, "activation", "swiglu", "relu2", "gelu")
        _one_of(self, "scores", "softmax", "sigmoid")
        groups, top = self.num_groups, self.top_groups
        _require(
            groups == 1 or self.scores == "sigmoid",
            f"num_groups must be 1 unless scores are 'sigmoid', got {groups}.",
        )
        _require(
            self.num_experts % groups == 0,
            f"num_groups must divide num_experts, got {groups} and {self.num_experts}.",
        )
        _require(
            top <= groups,
            f"top_groups must not exceed num_groups, got {top} of {groups}.",
        )
        size = self.num_experts // groups
        _require(
            top == groups or size >= 2,
            "A group is judged by its two best experts, got "
            f"{self.num_experts} experts in {groups} groups.",
        )
        _require(
            self.top_k <= top * size,
            f"top_k must not exceed the {top * size} experts of {top} groups, got "
            f"{self.top_k}."
            if groups > 1
            else f"top_k must not exceed num_experts, got {self.top_k} of {size}.",
        )
        for name in ("shared_d_ff", "d_latent"):
            value = getattr(self, name)
            _require(value >= 0, f"{name} must not be negative, got {value}.")
        _require(
            self.shared_d_ff > 0 or not self.shared_gate,
            "shared_gate needs a shared expert: set shared_d_ff.",
        )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A language model.

    Attributes:
        vocab_size: tokens.
        d_model: width of the residual stream.
        layers: residual blocks in order, one character each (see the module).
        mamba1, mamba2, delta, attention, mlp, moe: settings of the mixers that `layers`
            names.
        norm_eps: epsilon of every RMS norm.
        zero_centered_norms: norms between mixers, and of attention's queries and keys,
            scale by `1 + w`; those within a recurrence by `w` in any case.
        tie_embeddings: the head is the embedding, transposed.
        embedding_multiplier: factor of the embeddings.
        residual_multiplier: factor of each block's output.
        logits_multiplier: factor of the logits.
        dtype: of the activations; states, step sizes and logits are float32 always.
    """

    vocab_size: int
    d_model: int
    layers: str
    mamba1: Mamba1Config | None = None
    mamba2: Mamba2Config | None = None
    delta: DeltaConfig | None = None
    attention: AttentionConfig | None = None
    mlp: MLPConfig | None = None
    moe: MoEConfig | None = None
    norm_eps: float = 1e-5
    zero_centered_norms: bool = False
    tie_embeddings: bool = True
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_multiplier: float = 1.0
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        _positive(self, "vocab_size", "d_model", "norm_eps")
        _one_of(self, "dtype", "float32", "bfloat16")
        _require(len(self.layers) > 0, "layers must name at least one block.")
        for kind in self.layers:
            _require(
                kind in BLOCKS,
                f"Unknown block {kind!r} in layers {self.layers!r}; expected one of "
                f"{' '.join(BLOCKS)}.",
            )
            for setting in BLOCKS[kind]:
                _require(
                    getattr(self, setting) is not None,
                    f"layers {self.layers!r} has a block {kind!r}, which needs the "
                    f"settings `{setting}`.",
                )

    @property
    def conv_width(self) -> int:
        """Taps of the widest convolution of the mixers that `layers` names."""
        names = {name for kind in self.layers for name in BLOCKS[kind]}
        return max(getattr(getattr(self, name), "d_conv", 1) for name in names)


def to_json(config: ModelConfig) -> str:
    """Writes a config as JSON, with the version of the format; no limit is null."""
    record = {"format_version": FORMAT_VERSION, **dataclasses.asdict(config)}
    if config.mamba2 is not None:
        limits = [None if math.isinf(x) else x for x in config.mamba2.dt_limits]
        record["mamba2"]["dt_limits"] = limits
    return json.dumps(record, indent=2, allow_nan=False) + "\n"


def from_json(text: str) -> ModelConfig:
    """Reads a config that `to_json` wrote.

    Raises:
        ValueError: on malformed JSON, another version, or a field that is unknown,
            missing or of another type.
    """
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"The config is not JSON: {error}.") from None
    if not isinstance(record, dict):
        raise ValueError(f"Expected a JSON object, got {type(record).__name__}.")
    version = record.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise ValueError(
            f"The config has format version {version}, and this jaxspec reads version "
            f"{FORMAT_VERSION}."
        )
    parts = {
        "mamba1": Mamba1Config,
        "mamba2": Mamba2Config,
        "delta": DeltaConfig,
        "attention": AttentionConfig,
        "mlp": MLPConfig,
        "moe": MoEConfig,
    }
    for name, part in parts.items():
        if record.get(name) is not None:
            record[name] = _build(part, record[name])
    return _build(ModelConfig, record)


def _build(cls: type, record: Any) -> Any:
    if not isinstance(record, dict):
        raise ValueError(f"{cls.__name__} is a JSON object, got {record!r}.")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if unknown := sorted(set(record) - set(fields)):
        raise ValueError(f"{cls.__name__} has no field {', '.join(unknown)}.")
    values = {}
    for name, value in record.items():
        if isinstance(value, list):
            value = tuple(math.inf if x is None else x for x in value)
        expected = {float: (float, int), int: int, str: str, bool: bool}
        declared = fields[name].type
        is_bool = isinstance(value, bool)
        if not isinstance(value, expected.get(declared, object)) or (
            is_bool and declared is not bool
        ):
            raise ValueError(f"{cls.__name__}.{name} cannot be {value!r}.")
        values[name] = value
    try:
        return cls(**values)
    except TypeError as error:
        raise ValueError(f"{cls.__name__}: {error}.") from None


def _positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(value > 0, f"{name} must be positive, got {value}.")


def _one_of(config: Any, name: str, *choices: str) -> None:
    value = getattr(config, name)
    _require(value in choices, f"{name} must be one of {choices}, got {value!r}.")
