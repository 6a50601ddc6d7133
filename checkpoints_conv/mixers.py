"""Tables of the layers that families share; they differ in where a layer stands.

Every function lists the leaves of one mixer, whose published names begin with `at`.
"""

import math
from collections.abc import Iterator

import numpy as np

from checkpoints_conv.table import (
    FILTERS,
    Leaf,
    columns,
    experts,
    linear,
    rows,
    stack,
)
from jaxspec.models.config import GATED, AttentionConfig, ModelConfig


def norm(path: str, name: str, width: int) -> Leaf:
    """The scale of an RMS norm."""
    return rows(f"{path}.scale", (f"{name}.weight", width))


def mamba2(config: ModelConfig, at: str) -> Iterator[Leaf]:
    """Mamba-2, as state-spaces/mamba and everybody after it names it."""
    c, at_leaf = config.mamba2, "mamba2"
    proj = c.d_inner + c.conv_dim + c.nheads
    in_proj = [(f"{at}.in_proj", proj)]
    yield from linear(f"{at_leaf}.in_proj", in_proj, config.d_model, c.proj_bias)
    yield from _conv(at_leaf, at, c.conv_dim, c.d_conv, c.conv_bias)
    for name in ("A_log", "dt_bias", "D"):
        yield rows(f"{at_leaf}.{name}", (f"{at}.{name}", c.nheads))
    if c.norm != "none":
        yield norm(f"{at_leaf}.norm", f"{at}.norm", c.d_inner)
    out_proj = [(f"{at}.out_proj", config.d_model)]
    yield from linear(f"{at_leaf}.out_proj", out_proj, c.d_inner, c.proj_bias)


def mamba1(config: ModelConfig, at: str) -> Iterator[Leaf]:
    """Mamba-1; Jamba's has norms with names of their own."""
    c, leaf, width = config.mamba1, "mamba1", config.mamba1.expand * config.d_model
    rank = c.dt_rank or math.ceil(config.d_model / 16)
    in_proj = [(f"{at}.in_proj", 2 * width)]
    yield from linear(f"{leaf}.in_proj", in_proj, config.d_model, c.proj_bias)
    yield from _conv(leaf, at, width, c.d_conv, c.conv_bias)
    x_proj = [(f"{at}.x_proj", rank + 2 * c.d_state)]
    yield from linear(f"{leaf}.x_proj", x_proj, width, False)
    yield from linear(f"{leaf}.dt_proj", [(f"{at}.dt_proj", width)], rank, False)
    yield rows(f"{leaf}.dt_bias", (f"{at}.dt_proj.bias", width))
    yield columns(f"{leaf}.A_log", (f"{at}.A_log", width, c.d_state))
    yield rows(f"{leaf}.D", (f"{at}.D", width))
    if c.norm == "learned":
        yield norm(f"{leaf}.dt_norm", f"{at}.dt_layernorm", rank)
        yield norm(f"{leaf}.B_norm", f"{at}.b_layernorm", c.d_state)
        yield norm(f"{leaf}.C_norm", f"{at}.c_layernorm", c.d_state)
    out_proj = [(f"{at}.out_proj", config.d_model)]
    yield from linear(f"{leaf}.out_proj", out_proj, width, c.proj_bias)


def _conv(leaf: str, at: str, channels: int, taps: int, bias: bool) -> Iterator[Leaf]:
    kernel = rows(f"{leaf}.conv.kernel", (f"{at}.conv1d.weight", channels, 1, taps))
    yield kernel._replace(layout=FILTERS)
    if bias:
        yield rows(f"{leaf}.conv.bias", (f"{at}.conv1d.bias", channels))


def delta(config: ModelConfig, at: str, in_proj: Leaf) -> Iterator[Leaf]:
    """The gated delta rule, whose projection in has many forms."""
    c = config.delta
    yield in_proj
    yield from _conv("delta", at, c.conv_dim, c.d_conv, False)
    for name in ("A_log", "dt_bias"):
        yield rows(f"delta.{name}", (f"{at}.{name}", c.num_value_heads))
    yield norm("delta.norm", f"{at}.norm", c.value_head_dim)
    out_proj = [(f"{at}.out_proj", config.d_model)]
    yield from linear("delta.out_proj", out_proj, c.value_dim, False)


def attention(config: ModelConfig, at: str, d_in: int | None = None) -> Iterator[Leaf]:
    """Attention of inputs `d_in` wide, its three projections apart, as in Llama.

    Gates of the output follow the queries of each head, as in Qwen3-Next.
    """
    c = config.attention
    heads, width = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    queries = heads * (1 + c.output_gate)
    sizes = {"q_proj": queries, "k_proj": width, "v_proj": width}
    qkv = [(f"{at}.{name}", size) for name, size in sizes.items()]
    d_in = d_in or config.d_model
    for leaf in linear("attention.qkv_proj", qkv, d_in, c.qkv_bias):
        yield leaf.ordered(_gates_last(c)) if c.output_gate else leaf
    if c.qk_norm:
        yield norm("attention.q_norm", f"{at}.q_norm", c.head_dim)
        yield norm("attention.k_norm", f"{at}.k_norm", c.head_dim)
    out = [(f"{at}.o_proj", config.d_model)]
    yield from linear("attention.out_proj", out, heads, c.out_bias)


def _gates_last(c: AttentionConfig) -> np.ndarray:
    """Where the rows of all queries, keys, values and gates are, in this order."""
    heads = np.arange(2 * (c.num_heads + c.num_kv_heads) * c.head_dim)
    heads = heads.reshape(-1, c.head_dim)
    queries, others = np.split(heads, [2 * c.num_heads])
    return np.concatenate([queries[::2], others, queries[1::2]]).ravel()


def mlp(config: ModelConfig, at: str) -> Iterator[Leaf]:
    """Feed-forward, a gate apart, as in Llama."""
    c = config.mlp
    up = [(f"{at}.{name}", c.d_ff) for name in _up(c.activation)]
    yield from linear("mlp.up_proj", up, config.d_model, c.bias)
    down = [(f"{at}.down_proj", config.d_model)]
    yield from linear("mlp.down_proj", down, c.d_ff, c.bias)


def _up(activation: str) -> tuple[str, ...]:
    """Names of what goes up: a gate, and what it gates."""
    return ("gate_proj", "up_proj") if activation in GATED else ("up_proj",)


def moe(
    config: ModelConfig,
    at: str,
    router: str = "gate",
    shared: str = "shared_expert",
    stacked: bool = False,
) -> Iterator[Leaf]:
    """Experts each on its own, or all `stacked`, and the one that all tokens share."""
    c, d_model = config.moe, config.d_model
    width, names = c.d_latent or d_model, _up(c.activation)
    scores = f"{at}.{router}.weight", c.num_experts, d_model
    yield columns("moe.router.kernel", scores)
    if c.scores == "sigmoid":
        bias = f"{at}.{router}.e_score_correction_bias"
        yield rows("moe.correction_bias", (bias, c.num_experts))
    yield from (_stacked if stacked else _apart)(config, f"{at}.experts", width)
    if c.shared_d_ff:
        up = [(f"{at}.{shared}.{name}", c.shared_d_ff) for name in names]
        yield from linear("moe.shared_up_proj", up, d_model, False)
        down = [(f"{at}.{shared}.down_proj", d_model)]
        yield from linear("moe.shared_down_proj", down, c.shared_d_ff, False)
    if c.shared_gate:
        gate = [(f"{at}.{shared}_gate", 1)]
        yield from linear("moe.shared_gate", gate, d_model, False)
    if c.d_latent:
        latent = [(f"{at}.fc1_latent_proj", width)]
        yield from linear("moe.latent_in_proj", latent, d_model, False)
        latent = [(f"{at}.fc2_latent_proj", d_model)]
        yield from linear("moe.latent_out_proj", latent, width, False)


def _apart(config: ModelConfig, at: str, width: int) -> Iterator[Leaf]:
    """A tensor, or two, for each expert."""
    c, each = config.moe, range(config.moe.num_experts)
    names = _up(c.activation)
    up = [(f"{at}.{i}.{name}.weight", c.d_ff, width) for i in each for name in names]
    yield experts("moe.up_proj.kernel", c.num_experts, *up)
    down = [(f"{at}.{i}.down_proj.weight", width, c.d_ff) for i in each]
    yield experts("moe.down_proj.kernel", c.num_experts, *down)


def _stacked(config: ModelConfig, at: str, width: int) -> Iterator[Leaf]:
    """One tensor for all experts."""
    c, names = config.moe, _up(config.moe.activation)
    up = f"{at}.gate_up_proj" if len(names) > 1 else f"{at}.up_proj"
    yield stack("moe.up_proj.kernel", up, c.num_experts, len(names) * c.d_ff, width)
    yield stack("moe.down_proj.kernel", f"{at}.down_proj", c.num_experts, width, c.d_ff)
