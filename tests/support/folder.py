"""A model folder as `pretrained` reads it, small enough to make in a test."""

import atexit
import functools
import pathlib
import shutil
import tempfile

import jax

import tiny
from jaxspec import pretrained
from jaxspec.models import hybrid
from jaxspec.models.config import ModelConfig
from jaxspec.train import tokenizer as bpe

TEXT = "def add(a, b):\n    return a + b\n\n\ndef sub(a, b):\n    return a - b\n"
VOCAB = 280


@functools.cache
def tokenizer(text=TEXT):
    return bpe.train([text], VOCAB)


def config(layers="M*-", d_model=16):
    parts = {"mamba2": tiny.MAMBA2, "attention": tiny.ATTENTION, "mlp": tiny.MLP}
    return ModelConfig(VOCAB, d_model, layers, **parts)


@functools.cache
def make(layers="M*-", seed=0, text=TEXT):
    """Writes a folder once per process, until its end, and returns the path."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="jaxspec-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    params = jax.jit(hybrid.language_model(config(layers)).init)(jax.random.key(seed))
    params = jax.tree.map(lambda leaf: 3.0 * leaf if leaf.ndim > 1 else leaf, params)
    pretrained.save(folder, config(layers), params, tokenizer(text))
    return folder
