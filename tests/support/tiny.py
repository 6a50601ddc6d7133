"""Models small enough to compile in a second, one per thing that can go wrong."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

import oracle
from jaxspec import sampling
from jaxspec.models import hybrid
from jaxspec.models.config import (
    AttentionConfig,
    DeltaConfig,
    Mamba1Config,
    Mamba2Config,
    MLPConfig,
    ModelConfig,
    MoEConfig,
)
from jaxspec.trees import TokenTree

VOCAB = 48
MAMBA1 = Mamba1Config(d_state=8, chunk_size=8)
MAMBA2 = Mamba2Config(nheads=4, headdim=8, d_state=8, chunk_size=8)
DELTA = DeltaConfig(4, 2, value_head_dim=8, key_head_dim=6, chunk_size=8)
ATTENTION = AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=8)
MLP = MLPConfig(d_ff=24)
MOE = MoEConfig(num_experts=6, top_k=2, d_ff=8, shared_d_ff=12, shared_gate=True)


def config(layers, **settings):
    parts = {"mamba1": MAMBA1, "mamba2": MAMBA2, "delta": DELTA}
    parts |= {"attention": ATTENTION, "mlp": MLP, "moe": MOE}
    return ModelConfig(VOCAB, 16, layers, **(parts | settings))


CONFIGS = {
    "mamba1": config("mm"),
    "mamba1-unit-norms": config("mm", mamba1=dataclasses.replace(MAMBA1, norm="unit")),
    "mamba1-learned-norms": config(
        "mm",
        mamba1=dataclasses.replace(
            MAMBA1, norm="learned", dt_rank=3, conv_bias=False, proj_bias=True
        ),
    ),
    "mamba1-narrow": config(
        "m", mamba1=dataclasses.replace(MAMBA1, expand=3, d_conv=2), mamba2=None
    ),
    "mamba2": config("MM"),
    "mamba2-groups": config(
        "MM",
        mamba2=dataclasses.replace(
            MAMBA2, ngroups=2, norm="before", D_per_channel=True, dt_limits=(0.01, 0.5)
        ),
    ),
    "mamba2-multipliers": config(
        "M-",
        mamba2=dataclasses.replace(
            MAMBA2,
            norm="none",
            proj_bias=True,
            conv_bias=False,
            in_multiplier=1.25,
            out_multiplier=0.5,
            projection_multipliers=(0.5, 1.5, 0.75, 1.25, 0.9),
        ),
        mlp=MLPConfig(24, gate_multiplier=0.7, out_multiplier=1.3),
        embedding_multiplier=3.0,
        residual_multiplier=0.6,
        logits_multiplier=0.5,
        tie_embeddings=False,
    ),
    "delta": config(  # beside filters of another width
        "GM",
        delta=dataclasses.replace(
            DELTA, num_key_heads=1, d_conv=3, allow_neg_eigval=True
        ),
    ),
    "delta-hybrid": config(  # Qwen3-Next
        "G*-",
        attention=dataclasses.replace(
            ATTENTION, rope_fraction=0.25, qk_norm=True, output_gate=True
        ),
        norm_eps=1e-6,
        zero_centered_norms=True,
        tie_embeddings=False,
    ),
    "attention": config("*-", mlp=MLPConfig(24, "gelu", bias=True)),
    "attention-window": config(
        "**-",
        attention=dataclasses.replace(
            ATTENTION,
            rope_fraction=0.5,
            window=5,
            scale=0.5,
            qk_norm=True,
            key_multiplier=0.8,
        ),
        mlp=MLPConfig(24, "relu2"),
    ),
    "attention-no-rope": config(
        "**",
        attention=dataclasses.replace(
            ATTENTION, rope_fraction=0.0, qkv_bias=True, out_bias=True
        ),
    ),
    "attention-itself": config(
        "*-", attention=dataclasses.replace(ATTENTION, window=1)
    ),
    "parallel": config("P-P-", attention=dataclasses.replace(ATTENTION, window=7)),
    "falcon-h1": config(
        "P-",
        mamba1=None,
        mamba2=dataclasses.replace(
            MAMBA2,
            ngroups=2,
            norm_groups=4,
            d_conv=3,
            in_multiplier=0.8,
            out_multiplier=1.2,
            projection_multipliers=(0.5, 1.5, 0.75, 1.25, 0.9),
        ),
        attention=dataclasses.replace(
            ATTENTION,
            rope_theta=100.0,
            in_multiplier=0.7,
            key_multiplier=0.8,
            out_multiplier=1.4,
        ),
        mlp=MLPConfig(24, gate_multiplier=0.7, out_multiplier=1.3, bias=True),
        norm_eps=1e-3,
        embedding_multiplier=3.0,
        residual_multiplier=0.6,
        logits_multiplier=0.5,
    ),
    "shared": config(  # Zamba2: the first set of weights twice, the second once
        "SMSS",
        num_shared=2,
        attention=dataclasses.replace(ATTENTION, scale=0.2, adapter_rank=3),
        mlp=MLPConfig(24, "geglu", adapter_rank=2),
        embedding_multiplier=10.0,
    ),
    "experts": config("ME*E"),
    "small-hybrid": config("M*-m"),
    "hybrid": config("M*-M*-m"),
}


@functools.cache
def model(name, **options):
    return hybrid.language_model(CONFIGS[name], **options)


@functools.cache
def params(name):
    """Random params, the state-space ones as they are initialised, all else larger."""
    params = jax.jit(model(name).init)(jax.random.key(0))
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [
        leaf + 0.1 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return structure.unflatten(leaves)


@functools.cache
def _float64_params(name):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params(name))


def oracle_logits(name, tokens):
    """Float64 logits `[T, V]` after each token."""
    return _oracle_logits(name, tuple(np.asarray(tokens).tolist()))


@functools.cache  # tests ask for the same texts under every rollback
def _oracle_logits(name, tokens):
    return oracle.logits(CONFIGS[name], _float64_params(name), tokens)


def settings(batch, temperature=1.0, top_k=0, top_p=1.0, position=0):
    """How every row is sampled, one value for all or one for each."""
    values = temperature, top_k, top_p, position
    dtypes = jnp.float32, jnp.int32, jnp.float32, jnp.int32
    each = (
        jnp.broadcast_to(jnp.asarray(value, dtype), (batch,))
        for value, dtype in zip(values, dtypes, strict=True)
    )
    return sampling.Sampling(*each)


def relative_error(value, expected):
    value, expected = np.asarray(value, np.float64), np.asarray(expected, np.float64)
    return np.max(np.abs(value - expected)) / np.max(np.abs(expected))


def random_tokens(rng, *shape):
    return jnp.asarray(rng.integers(0, VOCAB, shape), jnp.int32)


def random_tree(rng, batch, num_nodes, max_path, padding=0.2):
    """Trees of random shape, another one per row, with padded slots in between."""
    parents = np.full((batch, num_nodes), -1)
    for row in parents:
        depth = {0: 0}
        for node in range(1, num_nodes):
            above = [n for n, d in depth.items() if d < max_path - 1]
            if rng.random() >= padding and above:
                row[node] = rng.choice(above)
                depth[node] = depth[row[node]] + 1
    tokens = random_tokens(rng, batch, num_nodes)
    return TokenTree(tokens, jnp.asarray(parents, jnp.int32))


def path_of(tree, row, node):
    """Slots from the root to a node."""
    parents, path = np.asarray(tree.parents[row]), []
    while node >= 0:
        path.append(int(node))
        node = parents[node]
    return path[::-1]


def real_nodes(tree, row):
    return [0, *np.flatnonzero(np.asarray(tree.parents[row]) >= 0)]


def pad_path(path, length):
    return [*path, *[-1] * (length - len(path))]
