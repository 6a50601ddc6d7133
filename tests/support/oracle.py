"""A language model in NumPy float64, one token after another, from its definition.

Written from the equations alone: no chunks, no trees, no caches but lists, and nothing of
jaxspec but the config and the params.
"""

import itertools
import math

import numpy as np


def logits(config, params, tokens):
    """Logits `[T, V]` after each of `tokens`; params as numpy float64, unrolled."""
    past = [{} for _ in config.layers]
    rows = []
    for position, token in enumerate(tokens):
        x = params["embed"]["embedding"][token] * config.embedding_multiplier
        embedding, sets = x, itertools.cycle(params.get("shared", [None]))
        for kind, block, own in zip(config.layers, params["layers"], past, strict=True):
            if kind == "S":
                x = shared(config, next(sets), block, own, x, embedding, position)
                continue
            h = outer_norm(config, block["norm"], x)
            for name in BLOCKS[kind]:
                mixer = MIXERS[name]
                y = mixer(config, block[name], own.setdefault(name, {}), h, position)
                x = x + config.residual_multiplier * y
        x = outer_norm(config, params["final_norm"], x)
        tied = "lm_head" not in params
        head = params["embed"]["embedding"].T if tied else params["lm_head"]["kernel"]
        rows.append(x @ head * config.logits_multiplier)
    return np.stack(rows)


def shared(config, common, own, past, x, embedding, position):
    h, adapters = np.concatenate([x, embedding]), own["adapters"]
    for name, mixer in (("attention", attention), ("mlp", mlp)):
        p = {**common[name], **adapters[name]}
        h = outer_norm(config, common[f"{name}_norm"], h)
        h = mixer(config, p, past.setdefault(name, {}), h, position)
    h = outer_norm(config, own["norm"], x + dense(own["out_proj"], h))
    y = mamba2(config, own["mamba2"], past.setdefault("mamba2", {}), h, position)
    return x + config.residual_multiplier * y


def norm(x, scale, eps, groups=1):
    parts = x.reshape(groups, -1)
    parts = parts / np.sqrt(np.mean(parts**2, axis=-1, keepdims=True) + eps)
    return parts.reshape(x.shape) * (1.0 if scale is None else scale)


def outer_norm(config, p, x):
    return norm(x, p["scale"] + config.zero_centered_norms, config.norm_eps)


def silu(x):
    return x / (1.0 + np.exp(-x))


def softplus(x):
    return np.logaddexp(x, 0.0)


def dense(p, x):
    return x @ p["kernel"] + p.get("bias", 0.0)


def adapt(p, x):
    """What an adapter adds."""
    return dense(p["up"], dense(p["down"], x))


def conv(p, past, u):
    seen = past.setdefault("conv", [])
    seen.append(u)
    taps = p["kernel"]
    y = p.get("bias", np.zeros_like(u)).copy()
    for back in range(min(len(taps), len(seen))):
        y += taps[-1 - back] * seen[-1 - back]
    return y


def mamba2(config, p, past, x, position):
    c = config.mamba2
    h = dense(p["in_proj"], x * c.in_multiplier)
    groups = c.ngroups * c.d_state
    z, xs, B, C, dt = np.split(h, np.cumsum([c.d_inner, c.d_inner, groups, groups]))
    z, xs, B, C, dt = (
        m * a for m, a in zip(c.projection_multipliers, (z, xs, B, C, dt), strict=True)
    )
    u = silu(conv(p["conv"], past, np.concatenate([xs, B, C])))
    xs, B, C = np.split(u, [c.d_inner, c.d_inner + groups])
    dt = np.clip(softplus(dt + p["dt_bias"]), *c.dt_limits)
    A = -np.exp(p["A_log"])
    heads = c.nheads // c.ngroups
    B, C = (np.repeat(a.reshape(c.ngroups, -1), heads, axis=0) for a in (B, C))
    xs = xs.reshape(c.nheads, c.headdim)
    state = past.get("state", np.zeros((c.nheads, c.headdim, c.d_state)))
    state = np.exp(dt * A)[:, None, None] * state
    state = state + dt[:, None, None] * xs[:, :, None] * B[:, None]
    past["state"] = state
    y = np.einsum("hps,hs->hp", state, C) + p["D"].reshape(c.nheads, -1) * xs
    y, groups = y.reshape(-1), c.norm_groups or c.ngroups
    if c.norm == "after":
        y = norm(y * silu(z), p["norm"]["scale"], config.norm_eps, groups)
    elif c.norm == "before":
        y = norm(y, p["norm"]["scale"], config.norm_eps, groups) * silu(z)
    else:
        y = y * silu(z)
    return dense(p["out_proj"], y) * c.out_multiplier


def mamba1(config, p, past, x, position):
    c = config.mamba1
    u, z = np.split(dense(p["in_proj"], x), 2)
    u = silu(conv(p["conv"], past, u))
    rank = p["dt_proj"]["kernel"].shape[0]
    dt, B, C = np.split(dense(p["x_proj"], u), [rank, rank + c.d_state])
    if c.norm != "none":
        dt, B, C = (
            norm(a, p.get(name, {}).get("scale"), config.norm_eps)
            for a, name in ((dt, "dt_norm"), (B, "B_norm"), (C, "C_norm"))
        )
    dt = softplus(dense(p["dt_proj"], dt) + p["dt_bias"])
    A = -np.exp(p["A_log"])
    state = np.exp(dt * A) * past.get("state", np.zeros_like(A))
    past["state"] = state + np.outer(B, dt * u)
    y = C @ past["state"] + p["D"] * u
    return dense(p["out_proj"], y * silu(z))


def delta(config, p, past, x, position):
    c, heads = config.delta, config.delta.num_value_heads
    h = dense(p["in_proj"], x)
    qkv, z, b, a = np.split(h, np.cumsum([c.conv_dim, c.value_dim, heads]))
    q, k, v = np.split(silu(conv(p["conv"], past, qkv)), [c.key_dim, 2 * c.key_dim])
    q, k = (
        np.repeat(unit(a.reshape(c.num_key_heads, -1)), heads // c.num_key_heads, 0)
        for a in (q, k)
    )
    v, beta = v.reshape(heads, -1), (1 + c.allow_neg_eigval) / (1 + np.exp(-b))
    state = past.get("state", np.zeros((heads, c.value_head_dim, c.key_head_dim)))
    decay = np.exp(-np.exp(p["A_log"]) * softplus(a + p["dt_bias"]))
    state = decay[:, None, None] * state
    u = beta[:, None] * (v - np.einsum("hps,hs->hp", state, k))
    past["state"] = state = state + u[:, :, None] * k[:, None]
    y = np.einsum("hps,hs->hp", state, q / np.sqrt(c.key_head_dim))
    y = np.stack([norm(head, p["norm"]["scale"], config.norm_eps) for head in y])
    return dense(p["out_proj"], y.reshape(-1) * silu(z))


def unit(x):
    return x / np.sqrt((x**2).sum(axis=-1, keepdims=True) + 1e-6)


def attention(config, p, past, x, position):
    c = config.attention
    x = x * c.in_multiplier
    h = dense(p["qkv_proj"], x)
    if c.adapter_rank:
        more = np.concatenate([adapt(p[f"{name}_adapter"], x) for name in "qkv"])
        h[: len(more)] += more
    h = h.reshape(-1, c.head_dim)
    cuts = np.cumsum([c.num_heads, c.num_kv_heads, c.num_kv_heads])
    q, k, v, gate = np.split(h, cuts)
    if c.qk_norm:
        q = np.stack([outer_norm(config, p["q_norm"], head) for head in q])
        k = np.stack([outer_norm(config, p["k_norm"], head) for head in k])
    past.setdefault("k", []).append(rope(c, k * c.key_multiplier, position))
    past.setdefault("v", []).append(v)
    q, seen = rope(c, q, position), c.window or len(past["k"])
    keys, values = np.stack(past["k"][-seen:]), np.stack(past["v"][-seen:])
    out = []
    for head in range(c.num_heads):
        group = head // (c.num_heads // c.num_kv_heads)
        scores = keys[:, group] @ q[head] * (c.scale or c.head_dim**-0.5)
        weights = np.exp(scores - scores.max())
        out.append(weights / weights.sum() @ values[:, group])
    y = np.stack(out) / (1 + np.exp(-gate)) if c.output_gate else np.stack(out)
    return dense(p["out_proj"], y.reshape(-1)) * c.out_multiplier


def rope(c, x, position):
    half = round(c.head_dim * c.rope_fraction) // 2
    angle = position * c.rope_theta ** (-np.arange(half) / max(half, 1))
    a, b, rest = np.split(x, [half, 2 * half], axis=-1)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def mlp(config, p, past, x, position):
    c = config.mlp
    h = dense(p["up_proj"], x)
    h = h + adapt(p["up_adapter"], x) if c.adapter_rank else h
    h = activate(c.activation, h, c.gate_multiplier)
    return dense(p["down_proj"], h) * c.out_multiplier


def activate(activation, h, gate_multiplier=1.0):
    if activation == "swiglu":
        gate, h = np.split(h, 2)
        return silu(gate * gate_multiplier) * h
    if activation == "geglu":
        gate, h = np.split(h, 2)
        return gelu(gate * gate_multiplier) * h
    if activation == "relu2":
        return np.maximum(h, 0.0) ** 2
    return gelu(h)


def gelu(h):
    return h * 0.5 * (1.0 + np.vectorize(math.erf)(h / np.sqrt(2.0)))


def moe(config, p, past, x, position):
    c, y = config.moe, 0.0
    own = dense(p["latent_in_proj"], x) if c.d_latent else x
    for expert, weight in chosen(c, p, x).items():
        h = activate(c.activation, own @ p["up_proj"]["kernel"][expert])
        y += weight * (h @ p["down_proj"]["kernel"][expert])
    if c.d_latent:
        y = dense(p["latent_out_proj"], y)
    if c.shared_d_ff:
        h = activate(c.activation, dense(p["shared_up_proj"], x))
        h = dense(p["shared_down_proj"], h)
        y += h / (1.0 + np.exp(-dense(p["shared_gate"], x))) if c.shared_gate else h
    return y


def chosen(c, p, x):
    """The weights of the chosen experts, by index."""
    s = dense(p["router"], x)
    names = list(range(c.num_experts))
    if c.scores == "softmax":
        s = np.exp(s - s.max())
        s = rank = s / s.sum()
    else:
        s = 1.0 / (1.0 + np.exp(-s))
        rank = s + p["correction_bias"]
        size = c.num_experts // c.num_groups
        groups = [names[i : i + size] for i in range(0, c.num_experts, size)]
        groups.sort(key=lambda group: -sum(sorted(rank[group])[-2:]))
        names = sorted(sum(groups[: c.top_groups], []))
    names = sorted(names, key=lambda e: -rank[e])[: c.top_k]
    total = sum(s[names]) if c.renormalize else 1.0
    return {e: c.routed_multiplier * s[e] / total for e in names}


MIXERS = {"mamba2": mamba2, "mamba1": mamba1, "delta": delta}
MIXERS |= {"attention": attention, "mlp": mlp, "moe": moe}
BLOCKS = {"M": ["mamba2"], "m": ["mamba1"], "G": ["delta"], "*": ["attention"]}
BLOCKS |= {"-": ["mlp"], "E": ["moe"], "P": ["mamba2", "attention"]}
