"""Heads that predict a token further, made of transformers' own layers, and published.

Transformers ignores such heads (`mtp.*`), and has all that they are made of.
"""

import copy
import functools
import importlib
import shutil

import safetensors.torch
import torch

import checkpoints_conv
import published

CLASSES = {
    "qwen3_next": "Qwen3Next",
    "qwen3_5_text": "Qwen3_5",
    "qwen3_5_moe_text": "Qwen3_5Moe",
}
FILE = "model.safetensors"


class Head(torch.nn.Module):
    """What `mtp.*` names, in transformers' classes."""

    def __init__(self, name):
        super().__init__()
        config = copy.deepcopy(published.model(name).config)
        config.layer_types, config.num_hidden_layers = ["full_attention"], 1
        package = config.model_type.removesuffix("_text")
        module = importlib.import_module(
            f"transformers.models.{package}.modeling_{package}"
        )
        kinds = {
            kind: getattr(module, CLASSES[name] + kind)
            for kind in ("DecoderLayer", "RMSNorm")
        }
        rotary = "TextRotaryEmbedding" if "5" in name else "RotaryEmbedding"
        norms = "norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden"
        for norm in norms:
            own = kinds["RMSNorm"](config.hidden_size, config.rms_norm_eps)
            self.add_module(norm, own)
        width = config.hidden_size
        self.fc = torch.nn.Linear(2 * width, width, bias=False)
        self.layers = torch.nn.ModuleList([kinds["DecoderLayer"](config, 0)])
        self.rotary = getattr(module, CLASSES[name] + rotary)(config)

    def forward(self, embedded, before):
        """Hidden `[T, C]` of whole texts, without a cache; both inputs `[T, C]`."""
        both = self.pre_fc_norm_embedding(embedded), self.pre_fc_norm_hidden(before)
        x = self.fc(torch.cat(both, dim=-1))[None]
        count = len(embedded)
        mask = torch.full((count, count), -torch.inf).triu(1)[None, None]
        turns = self.rotary(x, torch.arange(count)[None])
        x = self.layers[0](x, position_embeddings=turns, attention_mask=mask)
        return self.norm(x)[0]


@functools.cache
def head(name):
    torch.manual_seed(2)
    made = Head(name).eval()
    with torch.no_grad():
        for tensor in made.parameters():
            if tensor.ndim < 2:
                tensor += 0.2 * torch.randn_like(tensor)
            else:
                tensor.copy_(torch.randn_like(tensor) / tensor.shape[-1] ** 0.5)
    return made


def tensors(name, stacked=False):
    """What is published of a head; its experts in one tensor or apart."""
    found = {
        f"mtp.{name}": tensor.detach().clone()
        for name, tensor in head(name).state_dict().items()
        if not name.startswith("rotary")
    }
    experts = "mtp.layers.0.mlp.experts."
    if stacked or experts + "down_proj" not in found:
        return found
    up, down = (found.pop(experts + kind) for kind in ("gate_up_proj", "down_proj"))
    for i in range(len(up)):
        parts = *up[i].chunk(2), down[i]
        for kind, part in zip(("gate", "up", "down"), parts, strict=True):
            found[f"{experts}{i}.{kind}_proj.weight"] = part.contiguous()
    return found


def add(path, more):
    """Puts tensors into the weights of a folder."""
    arrays = safetensors.torch.load_file(path / FILE) | more
    safetensors.torch.save_file(arrays, path / FILE, {"format": "pt"})


@functools.cache
def converted(name):
    """The folder of a model with a head, as jaxspec loads it."""
    source = published.temporary() / name
    shutil.copytree(published.source(name), source)
    add(source, tensors(name))
    path = published.temporary() / name
    checkpoints_conv.convert(source, path)
    return path


@functools.cache  # of one text all nodes are asked for
def hidden(name, tokens):
    """The target's hidden `[T, C]` after its final norm, in transformers."""
    with torch.no_grad():
        made = published.model(name).model(torch.tensor(tokens)[None], use_cache=False)
        return made.last_hidden_state[0]


def logits(name, text, drafts=()):
    """Logits `[V]` after a text, and after drafts that the target has not seen."""
    made = published.model(name)
    embed = made.get_input_embeddings()
    before = hidden(name, tuple(text))
    with torch.no_grad():
        for count in range(len(drafts) + 1):
            tokens = torch.tensor([*text, *drafts[:count]])
            own = head(name)(embed(tokens)[1:], before[: len(tokens) - 1])
            before = torch.cat([before[: len(text) - 1], own[len(text) - 2 :]])
        return made.lm_head(own[-1]).numpy()
