"""The text's part of Qwen3.5 as it is published: within a model that sees and predicts.

What sees and what predicts comes back bit by bit, and experts in the form that they had.
"""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
import transformers

import checkpoints_conv
import folder
import heads
import jaxspec
import published
from checkpoints_conv import families
from jaxspec import weights

VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
VISION |= {"out_hidden_size": published.WIDTH, "num_position_embeddings": 16}
WHOLE = {"qwen3_5_text": "Qwen3_5", "qwen3_5_moe_text": "Qwen3_5Moe"}
FILE = "model.safetensors"


def save(name, path, is_head_stacked=False):
    """The model of a family, with something that sees and a head that predicts."""
    text = published.model(name)
    config = getattr(transformers, WHOLE[name] + "Config")(
        text_config=text.config.to_dict(),
        vision_config=VISION,
        tie_word_embeddings=text.config.tie_word_embeddings,
    )
    kind = getattr(transformers, WHOLE[name] + "ForConditionalGeneration")
    whole = kind(config)
    whole.model.language_model.load_state_dict(text.model.state_dict())
    whole.lm_head.load_state_dict(text.lm_head.state_dict())
    whole.save_pretrained(path)
    folder.tokenizer().save(str(path / "tokenizer.json"))
    heads.add(path, heads.tensors(name, is_head_stacked))
    file = path / "config.json"
    record = json.loads(file.read_text())
    record["text_config"] |= {"mtp_num_hidden_layers": 1, "eos_token_id": 7}
    record["text_config"]["rope_parameters"]["mrope_section"] = [1, 1, 0]
    file.write_text(json.dumps(record))


def tensors(path):
    return safetensors.numpy.load_file(path / FILE)


def put(path, arrays):
    safetensors.numpy.save_file(arrays, path / FILE, {"format": "pt"})


def stack_experts(arrays):
    """In one tensor, as Qwen publishes them."""
    found = {n: a for n, a in arrays.items() if ".experts." not in n or "mtp" in n}
    for layer in range(2):
        at = f"model.language_model.layers.{layer}.mlp.experts"
        up, gate, down = (
            np.stack([arrays[f"{at}.{i}.{name}_proj.weight"] for i in range(6)])
            for name in ("up", "gate", "down")
        )
        found[f"{at}.gate_up_proj"] = np.concatenate([gate, up], axis=1)
        found[f"{at}.down_proj"] = down
    return found


def params(path):
    """All that is loaded, by name."""
    target = jaxspec.load(path)
    params = {"model": target.params, "head": jaxspec.load_mtp(target)[1]}
    return dict(zip(weights.names(params), jax.tree.leaves(params), strict=True))


CASES = [("qwen3_5_text", "apart", "apart")]
CASES += [
    ("qwen3_5_moe_text", experts, its_head)
    for experts in ("apart", "stacked")
    for its_head in ("apart", "stacked")
]


@pytest.mark.parametrize("name, experts, its_head", CASES)
def test_the_text_is_read_and_the_rest_comes_back(name, experts, its_head, tmp_path):
    source, dest, back = (tmp_path / at for at in ("source", "dest", "back"))
    save(name, source, its_head == "stacked")
    if experts == "stacked":
        put(source, stack_experts(tensors(source)))
    checkpoints_conv.convert(source, dest)
    assert weights.read_source(dest)["stop_tokens"] == [7]
    found, expected = params(dest), params(heads.converted(name))
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)
    checkpoints_conv.export(dest, back)
    found, expected = tensors(back), tensors(source)
    assert found.keys() == expected.keys() and any("visual" in n for n in found)
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)
    for file in ("config.json", "tokenizer.json"):
        ours, theirs = (json.loads((at / file).read_text()) for at in (back, source))
        assert ours == theirs


@pytest.mark.parametrize(
    "name, has", [("qwen3_5_text", "no experts"), ("qwen3_5_moe", "experts")]
)
def test_a_config_with_the_other_kind_of_layers_is_refused(name, has, tmp_path):
    ours = {"qwen3_5_text": "qwen3_5_moe_text", "qwen3_5_moe": "qwen3_5_text"}[name]
    record = json.loads((published.source(ours) / "config.json").read_text())
    record = record | {"model_type": name}
    if name == "qwen3_5_moe":
        record = {"model_type": name, "text_config": record}
    with pytest.raises(
        ValueError, match=f"every layer of .* has {has}, got num_experts"
    ):
        families.find(record).read(record)
