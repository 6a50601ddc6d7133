"""Nemotron-H in NumPy float64, one token after another, from a published folder.

Written from the equations and the published names alone; nothing of jaxspec is used.
"""

import json
import math

import numpy as np
import safetensors.numpy

from oracle import norm, silu, softplus


def logits(folder, tokens):
    """Logits `[T, V]` after each of `tokens`."""
    config = json.loads((folder / "config.json").read_text())
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    p = {name: array.astype(np.float64) for name, array in tensors.items()}
    kinds, eps = config["layers_block_type"], config["layer_norm_epsilon"]
    past = [{} for _ in kinds]
    rows = []
    for token in tokens:
        x = p["backbone.embeddings.weight"][token]
        for i, kind in enumerate(kinds):
            at = f"backbone.layers.{i}"
            own = f"{at}.mixer."
            own = {n.removeprefix(own): a for n, a in p.items() if n.startswith(own)}
            h = norm(x, p[f"{at}.norm.weight"], eps)
            x = x + MIXERS[kind](config, own, past[i], h)
        x = norm(x, p["backbone.norm_f.weight"], eps)
        rows.append(p["lm_head.weight"] @ x)
    return np.stack(rows)


def linear(p, name, x):
    return p[f"{name}.weight"] @ x + p.get(f"{name}.bias", 0.0)


def step_limits(config):
    """Two numbers; `{"__float__": "Infinity"}` is how transformers writes infinity."""
    bounds = config["time_step_limit"]
    return [math.inf if isinstance(bound, dict) else bound for bound in bounds]


def mamba2(config, p, past, x):
    heads, groups = config["mamba_num_heads"], config["n_groups"]
    width, size = heads * config["mamba_head_dim"], groups * config["ssm_state_size"]
    h = linear(p, "in_proj", x)
    z, u, dt = np.split(h, [width, 2 * width + 2 * size])
    seen = past.setdefault("conv", [])
    seen.append(u)
    taps, u = p["conv1d.weight"][:, 0], p["conv1d.bias"].copy()
    for back in range(min(taps.shape[1], len(seen))):
        u = u + taps[:, -1 - back] * seen[-1 - back]
    v, B, C = np.split(silu(u), [width, width + size])
    v = v.reshape(heads, -1)
    B, C = (np.repeat(a.reshape(groups, -1), heads // groups, axis=0) for a in (B, C))
    dt = np.clip(softplus(dt + p["dt_bias"]), *step_limits(config))
    decay = np.exp(-np.exp(p["A_log"]) * dt)[:, None, None]
    write = dt[:, None, None] * v[:, :, None] * B[:, None]
    past["state"] = decay * past.get("state", 0.0) + write
    y = np.einsum("hps,hs->hp", past["state"], C) + p["D"][:, None] * v
    eps = config["layer_norm_epsilon"]
    y = norm(y.reshape(-1) * silu(z), p["norm.weight"], eps, groups)
    return linear(p, "out_proj", y)


def attention(config, p, past, x):
    width, heads = config["head_dim"], config["num_attention_heads"]
    each = heads // config["num_key_value_heads"]
    q, k, v = (
        linear(p, f"{name}_proj", x).reshape(-1, width) for name in ("q", "k", "v")
    )
    past.setdefault("k", []).append(np.repeat(k, each, axis=0))
    past.setdefault("v", []).append(np.repeat(v, each, axis=0))
    scores = np.einsum("thd,hd->th", np.stack(past["k"]), q) / np.sqrt(width)
    weights = np.exp(scores - scores.max(axis=0))
    y = np.einsum("th,thd->hd", weights / weights.sum(axis=0), np.stack(past["v"]))
    return linear(p, "o_proj", y.reshape(-1))


def mlp(config, p, past, x):
    return linear(p, "down_proj", np.maximum(linear(p, "up_proj", x), 0.0) ** 2)


def moe(config, p, past, x):
    count, groups = config["n_routed_experts"], config["n_group"]
    scores = 1.0 / (1.0 + np.exp(-(p["gate.weight"] @ x)))
    rank = scores + p["gate.e_score_correction_bias"]
    members = np.arange(count).reshape(groups, -1)
    best = np.sort(rank[members], axis=1)[:, -2:].sum(axis=1)
    allowed = members[np.argsort(-best)[: config["topk_group"]]].ravel()
    chosen = allowed[np.argsort(-rank[allowed])[: config["num_experts_per_tok"]]]
    weights = scores[chosen]
    if config["norm_topk_prob"]:
        weights = weights / weights.sum()
    inner = linear(p, "fc1_latent_proj", x)
    y = 0.0
    for weight, e in zip(weights, chosen, strict=True):
        y = y + weight * expert(p, f"experts.{e}", inner)
    y = linear(p, "fc2_latent_proj", config["routed_scaling_factor"] * y)
    return y + expert(p, "shared_experts", x)


def expert(p, at, x):
    up, down = p[f"{at}.up_proj.weight"], p[f"{at}.down_proj.weight"]
    return down @ np.maximum(up @ x, 0.0) ** 2


MIXERS = {"linear_attention": mamba2, "mamba": mamba2, "moe": moe, "mlp": mlp}
MIXERS |= {"full_attention": attention, "attention": attention}
