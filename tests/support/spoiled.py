"""Models that make of one token what is not finite, and trees in which it is refused."""

import contextlib
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import tiny
from jaxspec.models import forms, hybrid
from jaxspec.models.config import (
    AttentionConfig,
    DeltaConfig,
    Mamba1Config,
    Mamba2Config,
    ModelConfig,
)
from jaxspec.trees import TokenTree
from pallas_kernels import _dispatch

BAD, GOOD = 7, 8  # the second stands where the first is not wanted
KINDS = ["nan", "inf", "overflow"]
MAX_PATH = 5
FOLDED = 4  # rounds after which a ring has been folded
LENGTHS = (6, 3, 0)
PARENTS = np.array([[-1, 0, 0, 1, 2, 1, 4, -1]] * 3, np.int32)
IS_BAD = np.array([[0, 1, 0, 0, 0, 0, 0, 1]] * 2 + [[0] * 7 + [1]], bool)
SPOILED = np.array([[0, 1, 0, 1, 0, 1, 0, 1]] * 2 + [[0] * 7 + [1]], bool)
REFUSED = np.array([[0, 2, 4, 6, -1], [0, 2, -1, -1, -1], [0, 1, 3, -1, -1]], np.int32)

CONFIGS = tiny.CONFIGS | {
    "kernels": ModelConfig(  # as large as kernels take
        tiny.VOCAB,
        16,
        "MGm*",
        mamba1=Mamba1Config(d_state=8, expand=8, chunk_size=8),
        mamba2=Mamba2Config(nheads=2, headdim=64, d_state=128, chunk_size=8),
        delta=DeltaConfig(2, 1, value_head_dim=64, key_head_dim=128, chunk_size=8),
        attention=AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=64),
    )
}
_READS = ("in_proj", "qkv_proj", "up_proj", "shared_up_proj")
_WRITES = ("out_proj", "down_proj", "shared_down_proj")


@functools.cache
def params(name, kind):
    """Params of `CONFIGS[name]` for which `BAD` is not finite.

    Under `"overflow"` its embedding is, and has a channel of the residual stream for
    itself, which every layer multiplies by more than fits.
    """
    model = hybrid.language_model(CONFIGS[name])
    own = jax.jit(model.init)(jax.random.key(0))
    own = tiny.params(name) if name in tiny.CONFIGS else own
    own = forms.separate_head(own)  # else its logit is not finite after any token
    table = own["embed"]["embedding"]
    if kind == "overflow":
        own = jax.tree_util.tree_map_with_path(_overflow, own)
        table = table.at[:, 0].set(0.0).at[BAD, 0].set(1.0)
    else:
        table = table.at[BAD].set(float(kind))
    return {**own, "embed": {"embedding": table}}


def _overflow(path, leaf):
    names = [getattr(key, "key", "") for key in path][-2:]
    if names[0] in _READS and names[1] == "kernel":
        first = jnp.where(leaf[..., 0, :] > 0, 3e38, -3e38)
        return leaf.at[..., 0, :].set(first)
    return leaf.at[..., 0].set(0.0) if names[0] in _WRITES else leaf


@functools.cache
def compiled(name, rollback, machine=None, scanned=False):
    """The model, one round of it and its prefill."""
    model = hybrid.language_model(
        CONFIGS[name], rollback=rollback, max_path=MAX_PATH, scan_layers=scanned
    )

    @jax.jit
    def round_(params, carry, tree, path):
        with kernels_of(machine):
            carry, tape, hidden = model.scan_tree(params, carry, tree)
            return model.commit(carry, tape, path), model.logits(params, hidden)

    return model, round_, jax.jit(lambda *args: model.scan(*args))


@contextlib.contextmanager
def kernels_of(machine):
    """Traces what a TPU or a GPU runs, its kernels interpreted."""

    def choose(op, static, *args):
        kernel = f"pallas_{machine}"
        serves = kernel in op.refusals and op.refusals[kernel](*args, **static) is None
        name = machine if machine in op.implementations else "xla"
        name = f"{kernel}_interpret" if serves else name
        return _dispatch._call(op, name, static, *args)

    choose = _dispatch._by_platform if machine is None else choose
    with mock.patch.object(_dispatch, "_by_platform", choose):
        yield


def run(name, kind, token, path=REFUSED, rounds=FOLDED, **settings):
    """Logits of all rounds, and the carry, with some token where `BAD` is to be.

    Also in the padding of the prompts and of the trees.
    """
    model, round_, scan = compiled(name, **settings)
    weights, rng = params(name, kind), np.random.default_rng(3)
    if settings.get("scanned"):
        weights = forms.stack(CONFIGS[name], weights)

    def draw(is_bad):
        tokens = np.array(tiny.random_tokens(rng, *is_bad.shape))
        tokens[tokens == BAD] = GOOD
        return jnp.asarray(np.where(is_bad, token, tokens))

    padding = np.arange(max(LENGTHS))[None] >= np.array(LENGTHS)[:, None]
    carry = model.init_carry(weights, 3, 60)
    carry, _ = scan(weights, carry, draw(padding), jnp.array(LENGTHS))
    seen = []
    for _ in range(rounds):
        tree = TokenTree(draw(IS_BAD), jnp.asarray(PARENTS))
        carry, logits = round_(weights, carry, tree, jnp.asarray(path))
        seen.append(np.asarray(logits))
    return np.stack(seen), carry
