"""A folder of published weights, and ways to change it."""

import json

import safetensors.numpy
import torch

import published

NAME = "mamba2"
"""The model that the folder holds."""

WEIGHTS = "model.safetensors"


def tensors(path):
    return safetensors.numpy.load_file(path / WEIGHTS)


def put(path, arrays):
    safetensors.numpy.save_file(arrays, path / WEIGHTS)


def record(path, name="config.json", **fields):
    """Changes fields of a file."""
    file = path / name
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def as_pickle(path):
    state = published.model(NAME).state_dict()  # the tied head is there twice
    torch.save(state, path / "pytorch_model.bin")
    (path / WEIGHTS).unlink()


def as_old_pickle(path):
    state = published.model(NAME).state_dict()
    file = path / "pytorch_model.bin"
    torch.save(state, file, _use_new_zipfile_serialization=False)
    (path / WEIGHTS).unlink()


def as_shards(path):
    published.model(NAME).save_pretrained(path, max_shard_size="12KB")
    (path / WEIGHTS).unlink(missing_ok=True)
    assert len(list(path.glob("model-*.safetensors"))) > 2


def as_shards_of_pickle(path):
    state = list(published.model(NAME).state_dict().items())
    where = {}
    for i, part in enumerate((state[:7], state[7:])):
        torch.save(dict(part), path / f"pytorch_model-{i}.bin")
        where |= {name: f"pytorch_model-{i}.bin" for name, _ in part}
    index = path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    (path / WEIGHTS).unlink()
