"""A refused draft that is not finite leaves no trace; what hangs from it stays that way."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from jaxspec.models import hybrid
from jaxspec.models.rollback import ROLLBACKS
from jaxspec.trees import TokenTree
from rounds import LENGTHS, MAX_PATH, pad_paths

BAD, GOOD = 7, 8  # tokens: what the one is to its model the other is not
PARENTS = jnp.array([[-1, 0, 0, 1, 2, 1, 4]] * 3)
SLOTS = jnp.array([1, 1, -1])  # where the bad token is; nowhere in the last row
SPOILED = np.array([[0, 1, 0, 1, 0, 1, 0]] * 2 + [[0] * 7], bool)
PATHS = pad_paths([[0, 2, 4, 6], [0, 2], [0, 1, 3]])
ROUNDS = 4  # enough to fold a ring

MODELS = ["mamba1", "mamba2-groups", "delta", "attention-window", "falcon-h1"]
MODELS += ["shared", "experts", "hybrid"]


@functools.cache
def spoiled_params(name, kind):
    """Params of a model that makes of one token what is not finite.

    `"overflow"`: channel 0 of the residual stream is that token's alone, and every layer
    multiplies it by more than fits.
    """
    params = hybrid.separate_head(tiny.params(name))
    table = params["embed"]["embedding"]
    if kind != "overflow":
        table = table.at[BAD].set(dict(nan=jnp.nan, inf=jnp.inf)[kind])
        return {**params, "embed": {"embedding": table}}
    table = table.at[:, 0].set(0.0).at[BAD, 0].set(1.0)
    width = table.shape[1]

    def overflow(path, leaf):
        names = [getattr(key, "key", "") for key in path]
        if names[-1] not in ("kernel", "bias") or "layers" not in names[:1] + ["layers"]:
            return leaf
        if leaf.shape[-1] == width and names[-2] in ("out_proj", "down_proj", "shared_down_proj"):
            leaf = leaf.at[..., 0].set(0.0)
        if names[-2] in ("in_proj", "qkv_proj", "up_proj", "shared_up_proj") and names[-1] == "kernel":
            leaf = leaf.at[..., 0, :].set(jnp.where(leaf[..., 0, :] > 0, 3e38, -3e38))
        return leaf

    own = {n: jax.tree_util.tree_map_with_path(overflow, params[n]) for n in ("layers", "shared") if n in params}
    return {**params, "embed": {"embedding": table}, **own}


@functools.cache
def compiled(name, rollback, scanned=False):
    model = tiny.model(name, rollback=rollback, max_path=MAX_PATH, scan_layers=scanned)

    @jax.jit
    def round_(params, carry, tree, path):
        carry, tape, hidden = model.scan_tree(params, carry, tree)
        return model.commit(carry, tape, path), model.logits(params, hidden)

    return model, round_, jax.jit(model.scan)


def run(name, rollback, params, token):
    """Logits of every round, and the carry after them."""
    model, round_, scan = compiled(name, rollback)
    rng = np.random.default_rng(3)
    carry = model.init_carry(params, 3, 60)
    prompt = ordinary(rng, 3, max(LENGTHS))
    carry, _ = scan(params, carry, prompt, jnp.array(LENGTHS))
    seen = []
    for _ in range(ROUNDS):
        tokens = ordinary(rng, 3, PARENTS.shape[1])
        here = jnp.arange(PARENTS.shape[1])[None] == SLOTS[:, None]
        tree = TokenTree(jnp.where(here, token, tokens), PARENTS)
        carry, logits = round_(params, carry, tree, PATHS)
        seen.append(np.asarray(logits))
    return seen, carry


def ordinary(rng, *shape):
    tokens = tiny.random_tokens(rng, *shape)
    return jnp.where(tokens == BAD, GOOD, tokens)


@pytest.mark.parametrize("kind", ["nan", "inf", "overflow"])
@pytest.mark.parametrize("rollback", ROLLBACKS)
@pytest.mark.parametrize("name", MODELS)
def test_a_refused_draft_leaves_no_trace(name, rollback, kind):
    params = spoiled_params(name, kind)
    right, right_carry = run(name, rollback, params, GOOD)
    found, carry = run(name, rollback, params, BAD)
    for clean, logits in zip(right, found, strict=True):
        assert np.isfinite(clean).all()
        np.testing.assert_array_equal(logits[~SPOILED], clean[~SPOILED])
        assert not np.isfinite(logits[SPOILED]).all(axis=-1).any()
    jax.tree.map(np.testing.assert_array_equal, carry, right_carry)
