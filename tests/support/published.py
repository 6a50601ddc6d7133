"""Tiny models of every family, made by transformers with random weights, and converted.

All share their table of tokens, and their heads are close to it, so that models of
different families often agree.
"""

import atexit
import functools
import json
import math
import pathlib
import shutil
import tempfile

import numpy as np
import safetensors.torch
import torch
import transformers

import checkpoints_conv
import folder

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()

WIDTH, VOCAB = 32, folder.VOCAB
MAMBA2 = {"num_heads": 4, "head_dim": 16, "state_size": 8, "hidden_size": WIDTH}
HYBRID = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8}
HYBRID |= {"mamba_chunk_size": 8, "hidden_size": WIDTH}
ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": WIDTH}
DELTA = {**ATTENTION, "head_dim": 16, "linear_num_key_heads": 2}
DELTA |= {"linear_num_value_heads": 4, "linear_key_head_dim": 8}
DELTA |= {"linear_value_head_dim": 12}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
EXPERTS |= {"shared_expert_intermediate_size": 16}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0}
LLAMA3 |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64}
FAMILIES = {  # transformers' config, and what it is given
    "mamba2": (
        "Mamba2Config",
        {**MAMBA2, "n_groups": 2, "num_hidden_layers": 2, "tie_word_embeddings": True}
        | {"time_step_limit": (0.01, 0.5), "use_bias": True, "chunk_size": 8},
    ),
    "mamba": (
        "MambaConfig",
        {"hidden_size": WIDTH, "state_size": 8, "num_hidden_layers": 2, "expand": 2},
    ),
    "llama": (
        "LlamaConfig",
        {**ATTENTION, "intermediate_size": 48, "num_hidden_layers": 2, "mlp_bias": True}
        | {"attention_bias": True, "rope_parameters": LLAMA3},
    ),
    "granitemoehybrid": (
        "GraniteMoeHybridConfig",
        {**HYBRID, **ATTENTION, "num_local_experts": 0, "shared_intermediate_size": 48}
        | {"layer_types": ["linear_attention", "full_attention"]}
        | {"embedding_multiplier": 3.0, "residual_multiplier": 0.6}
        | {"attention_multiplier": 0.3, "logits_scaling": 6.0, "mamba_n_groups": 2}
        | {"num_hidden_layers": 2, "tie_word_embeddings": True},
    ),
    "granite-experts": (
        "GraniteMoeHybridConfig",
        {**HYBRID, **ATTENTION, "layer_types": ["linear_attention", "full_attention"]}
        | {"num_local_experts": 6, "num_experts_per_tok": 3, "intermediate_size": 24}
        | {"shared_intermediate_size": 16, "num_hidden_layers": 2}
        | {"residual_multiplier": 0.6, "tie_word_embeddings": True},
    ),
    "falcon_h1": (
        "FalconH1Config",
        {**HYBRID, **ATTENTION, "intermediate_size": 48, "num_hidden_layers": 2}
        | {"mamba_d_ssm": 48, "mamba_n_heads": 3, "mlp_multipliers": [0.7, 1.3]}
        | {"embedding_multiplier": 1.5, "lm_head_multiplier": 0.3}
        | {"key_multiplier": 0.4, "attention_in_multiplier": 1.2}
        | {"attention_out_multiplier": 0.9, "ssm_in_multiplier": 1.25}
        | {"ssm_out_multiplier": 0.5, "ssm_multipliers": [0.6, 1.5, 0.8, 1.2, 0.9]}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e11}},
    ),
    "falcon_mamba": (
        "FalconMambaConfig",
        {"hidden_size": WIDTH, "state_size": 8, "num_hidden_layers": 2, "expand": 16}
        | {"intermediate_size": 64, "mixer_rms_eps": 1e-2},
    ),
    "nemotron_h": (
        "NemotronHConfig",
        {**ATTENTION, "head_dim": 16, "intermediate_size": 48, "ssm_state_size": 8}
        | {"layers_block_type": ["linear_attention", "mlp", "full_attention"]}
        | {"mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 2, "chunk_size": 8}
        | {"time_step_min": 0.5, "time_step_limit": (0.0, 0.9), "mlp_bias": True},
    ),
    "bamba": (
        "BambaConfig",
        {**HYBRID, **ATTENTION, "intermediate_size": 48, "num_hidden_layers": 2}
        | {"attn_layer_indices": [1]},
    ),
    "jamba": (
        "JambaConfig",
        {**ATTENTION, "intermediate_size": 48, "num_hidden_layers": 2}
        | {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1}
        | {"mamba_d_state": 8},
    ),
    "zamba2": (
        "Zamba2Config",
        {"hidden_size": WIDTH, "num_attention_heads": 4, "intermediate_size": 48}
        | {"layers_block_type": ["hybrid", "linear_attention", "hybrid", "hybrid"]}
        | {"num_hidden_layers": 4, "num_mem_blocks": 2, "adapter_rank": 6}
        | {"use_shared_attention_adapter": True, "use_mem_rope": True}
        | {"n_mamba_heads": 4, "mamba_d_state": 8, "mamba_ngroups": 2, "chunk_size": 8}
        | {"time_step_min": 0.5, "add_bias_linear": True},
    ),
    "nemotron-experts": (
        "NemotronHConfig",
        {**ATTENTION, "head_dim": 16, "ssm_state_size": 8, "n_groups": 2}
        | {"layers_block_type": ["linear_attention", "moe", "full_attention", "moe"]}
        | {"mamba_num_heads": 4, "mamba_head_dim": 16, "chunk_size": 8}
        | {"n_routed_experts": 6, "num_experts_per_tok": 2, "n_group": 3}
        | {"topk_group": 2, "moe_intermediate_size": 24, "moe_latent_size": 16}
        | {"moe_shared_expert_intermediate_size": 16, "routed_scaling_factor": 2.5},
    ),
    "falcon-norm": (
        "FalconH1Config",
        {**HYBRID, **ATTENTION, "intermediate_size": 48, "num_hidden_layers": 1}
        | {"mamba_d_ssm": 64, "mamba_rms_norm": True, "mamba_norm_before_gate": True},
    ),
    "jamba-experts": (
        "JambaConfig",
        {**ATTENTION, "intermediate_size": 24, "num_hidden_layers": 2}
        | {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 4}
        | {"expert_layer_offset": 0, "mamba_d_state": 8},
    ),
    "qwen3_next": (
        "Qwen3NextConfig",
        {**DELTA, **EXPERTS, "intermediate_size": 48, "num_hidden_layers": 3}
        | {"layer_types": [*(["linear_attention"] * 2), "full_attention"]}
        | {"mlp_only_layers": [0], "norm_topk_prob": False},
    ),
    "qwen3_5_text": (
        "Qwen3_5TextConfig",
        {**DELTA, "intermediate_size": 48, "num_hidden_layers": 2}
        | {"layer_types": ["linear_attention", "full_attention"]}
        | {"tie_word_embeddings": True},
    ),
    "qwen3_5_moe_text": (
        "Qwen3_5MoeTextConfig",
        {**DELTA, **EXPERTS, "num_hidden_layers": 2}
        | {"layer_types": ["linear_attention", "full_attention"]},
    ),
}


LLAMA = {  # in transformers' words for another family, with copies of what heads share
    "mamba_in_llama": (
        "GraniteMoeHybridConfig",
        {**ATTENTION, "num_local_experts": 0, "shared_intermediate_size": 48}
        | {"layer_types": ["linear_attention", "full_attention"], "rms_norm_eps": 1e-5}
        | {"attention_multiplier": 8**-0.5, "position_embedding_type": "rope"}
        | {
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_n_groups": 4,
            "mamba_expand": 1,
        }
        | {"mamba_d_state": 8, "num_hidden_layers": 2, "mamba_chunk_size": 8},
    )
}
DRAFTS = {  # smaller ones, that draft
    "small-mamba": ("MambaConfig", {"hidden_size": WIDTH, "num_hidden_layers": 1}),
    "small-mamba2": (
        "Mamba2Config",
        {**MAMBA2, "num_hidden_layers": 1, "tie_word_embeddings": True, "n_groups": 1}
        | {"vocab_size": VOCAB + 8},
    ),
}


def names():
    """Of the families."""
    return [*FAMILIES, *LLAMA]


@functools.cache
def model(name):
    """The model of a family in transformers."""
    config, settings = (FAMILIES | LLAMA | DRAFTS)[name]
    config = getattr(transformers, config)(**{"vocab_size": VOCAB} | settings)
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for tensor in made.parameters():
            _randomise(tensor)
        for buffer, tensor in made.named_buffers():
            if buffer.endswith("correction_bias"):
                _randomise(tensor)
        if name in LLAMA:
            _share(made)
        _bound_step_sizes(made)
        generator = torch.Generator().manual_seed(1)
        table = torch.randn(config.vocab_size, WIDTH, generator=generator)
        made.get_input_embeddings().weight.copy_(table)
        if not config.tie_word_embeddings:
            made.get_output_embeddings().weight.copy_(
                table + 0.2 * torch.randn(VOCAB, WIDTH)
            )
    return made


def _bound_step_sizes(made):
    """As the config says, and the authors' code does; some of transformers' skips it."""
    for module in made.modules():
        if hasattr(module, "time_step_limit"):
            limit = getattr(made.config, "time_step_limit", (0.0, math.inf))
            module.time_step_limit = tuple(limit)


def _share(made):
    """Gives the x and the B of a head to its neighbour."""
    mixer = made.model.layers[0].mamba
    in_proj, conv = mixer.in_proj.weight, mixer.conv1d
    for tensor, x in ((in_proj, WIDTH), (conv.weight, 0), (conv.bias, 0)):
        for start in (x, x + WIDTH):
            heads = tensor[start : start + WIDTH].view(2, 2, 8, *tensor.shape[1:])
            heads[:, 1] = heads[:, 0]


def _save_as_llama(path, made):
    """Writes what is shared once, under Llama's names."""
    own = torch.arange(WIDTH)
    shared = torch.cat([own[:8], own[16:24]])
    channels = torch.cat([shared, WIDTH + shared, 2 * WIDTH + own])
    proj = torch.cat([own, WIDTH + channels, 4 * WIDTH + torch.arange(4)])
    state = {}
    for name, tensor in made.state_dict().items():
        if ".mamba.in_proj" in name:
            tensor = tensor[proj]
        elif ".mamba.conv1d" in name:
            tensor = tensor[channels]
        name = name.replace("shared_mlp.output_linear", "mlp.down_proj")
        if "input_linear" in name:
            at = name.removesuffix("shared_mlp.input_linear.weight") + "mlp"
            gate, up = tensor.chunk(2)
            state |= {f"{at}.gate_proj.weight": gate, f"{at}.up_proj.weight": up}
        else:
            state[name] = tensor
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    safetensors.torch.save_file(state, path / "model.safetensors")
    settings = {**ATTENTION, "intermediate_size": 48, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(vocab_size=VOCAB, rms_norm_eps=1e-5, **settings)
    config.save_pretrained(path)
    own = {"d_model": WIDTH, "d_inner": WIDTH, "d_xb": WIDTH // 2, "n_layer": 2}
    own |= {"intermediate_size": 48, "hidden_act": "silu", "rms_norm_eps": 1e-5}
    own |= {"vocab_size": None, "attn_layers": [1]}
    own |= {"ssm_cfg": {"expand": 1, "ngroups": 4, "d_state": 8}}
    (path / "mamba_config.json").write_text(json.dumps(own))


def _randomise(tensor):
    """Scales and rates around what they are, projections that keep a vector's size."""
    noise = torch.randn_like(tensor)
    if tensor.ndim == 1:
        tensor += 0.2 * noise
    elif tensor.ndim == 2 and min(tensor.shape) >= 4:
        tensor.copy_(noise / tensor.shape[1] ** 0.5)
    else:
        tensor += 0.2 * noise


def logits(name, tokens):
    """Logits `[B, T, V]` of transformers' forward pass over whole texts `[B, T]`."""
    tokens = torch.tensor(np.asarray(tokens), dtype=torch.long)
    with torch.no_grad():
        return model(name)(tokens, use_cache=False).logits.float().numpy()


@functools.cache
def source(name):
    """A folder of the model as transformers saves it, with a tokenizer."""
    path = temporary() / name
    path.mkdir()
    if name in LLAMA:
        _save_as_llama(path, model(name))
    else:
        model(name).save_pretrained(path)
    folder.tokenizer().save(str(path / "tokenizer.json"))
    return path


@functools.cache
def converted(name):
    """The folder of the model that jaxspec loads."""
    path = temporary() / name
    checkpoints_conv.convert(source(name), path)
    return path


def temporary():
    path = pathlib.Path(tempfile.mkdtemp(prefix="jaxspec-test-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path
