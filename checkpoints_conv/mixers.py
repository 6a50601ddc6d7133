"""Tables of the layers that families share; they differ in where a layer stands.

Every function lists the leaves of one mixer, whose published names begin with `at`.
"""

import math
from collections.abc import Iterator

from checkpoints_conv.table import FILTERS, Leaf, columns, linear, rows
from jaxspec.models.config import ModelConfig


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


def attention(config: ModelConfig, at: str) -> Iterator[Leaf]:
    """Attention with its three projections apart, as in Llama."""
    c = config.attention
    heads, width = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    sizes = {"q_proj": heads, "k_proj": width, "v_proj": width}
    qkv = [(f"{at}.{name}", size) for name, size in sizes.items()]
    yield from linear("attention.qkv_proj", qkv, config.d_model, c.qkv_bias)
    out = [(f"{at}.o_proj", config.d_model)]
    yield from linear("attention.out_proj", out, heads, c.out_bias)


def mlp(config: ModelConfig, at: str) -> Iterator[Leaf]:
    """Feed-forward, the gate of SwiGLU apart, as in Llama."""
    c = config.mlp
    names = ("gate_proj", "up_proj") if c.activation == "swiglu" else ("up_proj",)
    up = [(f"{at}.{name}", c.d_ff) for name in names]
    yield from linear("mlp.up_proj", up, config.d_model, c.bias)
    down = [(f"{at}.down_proj", config.d_model)]
    yield from linear("mlp.down_proj", down, c.d_ff, c.bias)
