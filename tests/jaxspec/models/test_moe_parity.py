"""Mixtures of experts, against those of transformers with the same weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from jaxspec.models import moe
from jaxspec.models.config import MoEConfig

torch = pytest.importorskip("torch", reason="the modules compared with run on torch")
pytest.importorskip("transformers", reason="the modules compared with are of it")

C, E, K, F, SHARED = 16, 8, 3, 10, 12
SIZES = {"num_experts": E, "top_k": K, "d_ff": F}


def granite():
    from transformers.models.granitemoehybrid import modeling_granitemoehybrid as m

    config = m.GraniteMoeHybridConfig(
        hidden_size=C,
        num_local_experts=E,
        num_experts_per_tok=K,
        intermediate_size=F,
        shared_intermediate_size=SHARED,
        mamba_n_heads=4,
    )
    both = torch.nn.ModuleDict(
        {"moe": m.GraniteMoeHybridMoE(config), "shared": m.GraniteMoeHybridMLP(config)}
    )
    names = {
        "router": "moe.router.weight",
        "up_proj": "moe.experts.gate_up_proj",
        "down_proj": "moe.experts.down_proj",
        "shared_up_proj": "shared.input_linear.weight",
        "shared_down_proj": "shared.output_linear.weight",
    }
    ours = MoEConfig(**SIZES, shared_d_ff=SHARED)
    return ours, both, lambda x: both["moe"](x) + both["shared"](x), names


def qwen(renormalize):
    from transformers.models.qwen3_next import modeling_qwen3_next as m

    config = m.Qwen3NextConfig(
        hidden_size=C,
        num_experts=E,
        num_experts_per_tok=K,
        moe_intermediate_size=F,
        shared_expert_intermediate_size=SHARED,
        norm_topk_prob=renormalize,
    )
    block = m.Qwen3NextSparseMoeBlock(config)
    names = {
        "router": "gate.weight",
        "up_proj": "experts.gate_up_proj",
        "down_proj": "experts.down_proj",
        "shared_up_proj": "shared_expert.gate_proj.weight shared_expert.up_proj.weight",
        "shared_down_proj": "shared_expert.down_proj.weight",
        "shared_gate": "shared_expert_gate.weight",
    }
    ours = MoEConfig(
        **SIZES, renormalize=renormalize, shared_d_ff=SHARED, shared_gate=True
    )
    return ours, block, block, names


def qwen_3_5():
    from transformers.models.qwen3_5_moe import modeling_qwen3_5_moe as m

    config = m.Qwen3_5MoeTextConfig(
        hidden_size=C,
        num_experts=E,
        num_experts_per_tok=K,
        moe_intermediate_size=F,
        shared_expert_intermediate_size=SHARED,
    )
    block = m.Qwen3_5MoeSparseMoeBlock(config)
    ours, _, _, names = qwen(True)
    return ours, block, block, names


def nemotron(groups, top_groups, renormalize, latent=0):
    from transformers.models.nemotron_h import modeling_nemotron_h as m

    config = m.NemotronHConfig(
        hidden_size=C,
        n_routed_experts=E,
        num_experts_per_tok=K,
        moe_intermediate_size=F,
        moe_shared_expert_intermediate_size=SHARED,
        n_group=groups,
        topk_group=top_groups,
        norm_topk_prob=renormalize,
        routed_scaling_factor=2.5,
        moe_latent_size=latent or None,
    )
    block = m.NemotronHMoE(config)
    names = {
        "router": "gate.weight",
        "correction_bias": "gate.e_score_correction_bias",
        "up_proj": "experts.up_proj",
        "down_proj": "experts.down_proj",
        "shared_up_proj": "shared_experts.up_proj.weight",
        "shared_down_proj": "shared_experts.down_proj.weight",
    }
    if latent:
        names["latent_in_proj"] = "fc1_latent_proj.weight"
        names["latent_out_proj"] = "fc2_latent_proj.weight"
    ours = MoEConfig(
        **SIZES,
        activation="relu2",
        scores="sigmoid",
        renormalize=renormalize,
        num_groups=groups,
        top_groups=top_groups,
        routed_multiplier=2.5,
        shared_d_ff=SHARED,
        d_latent=latent,
    )
    return ours, block, block, names


def jamba():
    from transformers.models.jamba import modeling_jamba as m

    config = m.JambaConfig(
        hidden_size=C, num_experts=E, num_experts_per_tok=K, intermediate_size=F
    )
    block = m.JambaSparseMoeBlock(config)
    names = {
        "router": "router.weight",
        "up_proj": "experts.gate_up_proj",
        "down_proj": "experts.down_proj",
    }
    return MoEConfig(**SIZES, renormalize=False), block, block, names


BLOCKS = {
    "granite": granite,
    "qwen3-next": functools.partial(qwen, True),
    "qwen3-next-bare": functools.partial(qwen, False),
    "qwen3.5": qwen_3_5,
    "nemotron-h": functools.partial(nemotron, 1, 1, True),
    "nemotron-h-groups": functools.partial(nemotron, 4, 2, False),
    "nemotron-h-latent": functools.partial(nemotron, 1, 1, True, 6),
    "jamba": jamba,
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_that_of_transformers(name):
    config, module, call, names = BLOCKS[name]()
    rng = np.random.default_rng(0)
    state = {
        key: torch.tensor(rng.standard_normal(old.shape) / 2, dtype=torch.float32)
        for key, old in module.state_dict().items()
    }
    module.load_state_dict(state)
    x = rng.standard_normal((2, 9, C)).astype(np.float32)
    with torch.no_grad():
        wanted = call(torch.tensor(x)).numpy()

    params = {}
    for ours, theirs in names.items():  # torch stores projections as [out, in]
        own = np.concatenate([state.pop(key).numpy() for key in theirs.split()])
        is_bias = ours == "correction_bias"
        params[ours] = own if is_bias else {"kernel": own.swapaxes(-1, -2)}
    assert not state
    mixer = moe.Mixer(tiny.config("E", moe=config))
    shapes = jax.eval_shape(
        functools.partial(mixer.init, method="mix"), jax.random.key(0), x
    )["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(jnp.shape, shapes)
    found = jax.jit(functools.partial(mixer.apply, method="mix"))({"params": params}, x)
    assert tiny.relative_error(found, wanted) < 1e-5
