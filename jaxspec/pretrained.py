"""Trained models from a folder, or by the name of one that ships.

A folder holds `config.json`, `tokenizer.json` (Hugging Face `tokenizers`) and the weights:
`model.safetensors` in bfloat16 where jaxspec trained the model, or one Orbax checkpoint
per part where `jaxspec convert` made it of a published one.
"""

import dataclasses
import hashlib
import importlib.resources
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import tokenizers

from checkpoints_conv import native, stored
from jaxspec import digests, files, sampling, tokenizer_files
from jaxspec.core import DraftHead, LanguageModel
from jaxspec.models import config as configs
from jaxspec.models import forms, hybrid, mtp

END_OF_TEXT = stored.END_OF_TEXT
DTYPES = ("float32", "bfloat16")
# small, and precise
_ALWAYS_FLOAT32 = ("A_log", "D", "dt_bias", "scale", "correction_bias")


class Pretrained(NamedTuple):
    """A model, its parameters and its tokenizer."""

    model: LanguageModel
    params: Any
    tokenizer: tokenizers.Tokenizer


def shipped() -> list[str]:
    """Names of the models that come with jaxspec."""
    assets = importlib.resources.files("jaxspec.assets")
    return sorted(d.name for d in assets.iterdir() if (d / "config.json").is_file())


def find(name_or_dir: str | pathlib.Path) -> pathlib.Path:
    """The folder of a model.

    Raises:
        ValueError: if it is neither a shipped model nor a folder with a config, or the
            config is a published one.
    """
    folder = pathlib.Path(name_or_dir)
    if str(name_or_dir) in shipped():
        assets = importlib.resources.files("jaxspec.assets")
        folder = pathlib.Path(str(assets / str(name_or_dir)))
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{str(name_or_dir)!r} is neither a folder with a config.json nor one of the "
            f"shipped models {shipped()}."
        )
    text = files.read_text(folder / "config.json")
    if '"format_version"' not in text and ('"model_type"' in text or "ssm_cfg" in text):
        raise ValueError(
            f"{folder} holds a published checkpoint; convert it first: jaxspec convert "
            f"{folder} DEST."
        )
    return folder


def read_config(name_or_dir: str | pathlib.Path) -> configs.ModelConfig:
    """The shape of a model, as `find` finds it."""
    folder = find(name_or_dir)
    config = configs.read(folder / "config.json")
    digests.check(folder, ["config.json"])
    return config


def load(
    name_or_dir: str | pathlib.Path,
    dtype: jax.typing.DTypeLike | None = None,
    **options: Any,
) -> Pretrained:
    """Loads a model.

    Args:
        name_or_dir: a shipped name (`shipped()`) or a folder.
        dtype: of activations and kernels, `"float32"` or `"bfloat16"`; by default the
            config's, which is float32 for float16 checkpoints. Decay rates, step sizes and
            norms are float32 always.
        **options: of `language_model`: `rollback`, `max_path`, `ring_size`,
            `scan_layers`.

    Raises:
        ValueError: if the model cannot be found, or a file is damaged, of another
            version, or does not fit the config.
    """
    folder = find(name_or_dir)
    config = _config(name_or_dir, dtype)
    converted = stored.is_converted(folder)
    if converted:
        stored.read_source(folder)  # refuses another format
    stored.check(folder)
    like = _like(config, hybrid.language_model(config).init)
    if converted:
        params = _load_parts(folder, like)
    else:
        params = native.load(folder / stored.WEIGHTS, like)
        params = jax.tree.map(jnp.asarray, params)
    if jax.default_backend() == "cpu" and config.tie_embeddings:
        params = forms.separate_head(params)
    if options.get("scan_layers"):
        params = forms.stack(config, params)
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    if not converted and tokenizer.get_vocab_size() > config.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.get_vocab_size()} tokens and the "
            f"model {config.vocab_size}."
        )
    return Pretrained(hybrid.language_model(config, **options), params, tokenizer)


def load_mtp(
    name_or_dir: str | pathlib.Path,
    target: Any,
    dtype: jax.typing.DTypeLike | None = None,
) -> tuple[DraftHead, Any]:
    """Loads the multi-token-prediction head of a model, for `draft_head`.

    Args:
        name_or_dir: as in `load`.
        target: the model's params, of which the head shares the embedding and the head.
        dtype: as in `load`.

    Raises:
        ValueError: if the model has no such head, or as `load`.
    """
    head = mtp_head(name_or_dir, dtype)
    config = _config(name_or_dir, dtype)
    like = mtp.own(_like(config, head.init))
    params = _load_parts(find(name_or_dir), like, stored.MTP)
    return head, mtp.share(params, target)


def mtp_head(
    name_or_dir: str | pathlib.Path,
    dtype: jax.typing.DTypeLike | None = None,
) -> DraftHead:
    """The functions of the head that `load_mtp` loads.

    Raises:
        ValueError: if the model has no such head.
    """
    config = _config(name_or_dir, dtype)
    if not config.mtp:
        raise ValueError(
            f"{name_or_dir} has no multi-token-prediction head: the checkpoint that it was "
            "converted from had no tensors mtp.*."
        )
    return mtp.mtp_head(config)


def _config(name_or_dir: str | pathlib.Path, dtype: Any) -> configs.ModelConfig:
    config = read_config(name_or_dir)
    if dtype is None:
        return config
    try:
        name = jnp.dtype(dtype).name  # of `jnp.bfloat16` too
    except TypeError:
        name = dtype
    return dataclasses.replace(config, dtype=name)


def _like(config: configs.ModelConfig, init: Callable[..., Any]) -> Any:
    """Shapes and dtypes of the params in memory, as a model makes them."""
    shapes = jax.eval_shape(init, sampling.key(0))

    def one(path, leaf):
        if path[-1].key in _ALWAYS_FLOAT32:
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(config.dtype))

    return jax.tree_util.tree_map_with_path(one, shapes)


def _load_parts(folder: pathlib.Path, like: Any, first: str = "") -> Any:
    """Reads what `jaxspec convert` made, the parts whose names begin so, one at a time."""

    def read(name, like):
        leaves = stored.flatten(stored.read_part(folder, first + name))
        expected = stored.flatten(like)
        shapes = {path: leaf.shape for path, leaf in leaves.items()}
        if shapes != {path: leaf.shape for path, leaf in expected.items()}:
            raise ValueError(
                f"{folder} does not fit its config: {first + name} has {shapes}."
            )
        arrays = [
            jnp.asarray(leaves[path].astype(expected[path].dtype))
            for path in native.names(like)
        ]
        return jax.tree.unflatten(jax.tree.structure(like), arrays)

    def read_all(name, like):
        if not isinstance(like, tuple):
            return read(name, like)
        return tuple(read(f"{name}.{i}", part) for i, part in enumerate(like))

    return {name: read_all(name, part) for name, part in like.items()}


def load_tokenizer(path: str | pathlib.Path) -> tokenizers.Tokenizer:
    """Reads a `tokenizer.json`, to encode whole texts.

    Some files hold how texts were clipped and padded in training (`truncation`, `padding`);
    a prompt is neither, so both are off here.

    Raises:
        ValueError: if there is none, or it is damaged.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"There is no tokenizer {path}.")
    if (path.parent / digests.TABLE).is_file():
        digests.check(path.parent, [path.name])
    return tokenizer_files.read(path)


def save(
    folder: str | pathlib.Path,
    config: configs.ModelConfig,
    params: Any,
    tokenizer: tokenizers.Tokenizer,
) -> None:
    """Writes a folder that `load` reads; params are those of an unrolled model."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if config.tie_embeddings:  # the copy that `load` makes on a CPU is not a parameter
        params = {name: part for name, part in params.items() if name != "lm_head"}
    native.save(folder / stored.WEIGHTS, params)
    files.write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    files.write_text(folder / "config.json", configs.to_json(config))
    digests.write(folder, ["config.json", stored.WEIGHTS, "tokenizer.json"])


def stop_tokens(name_or_dir: str | pathlib.Path) -> list[int]:
    """The tokens that end a model's texts: those it was published with, or end-of-text.

    Published ones that are beyond the model's table, which it never writes, are left out.
    """
    folder = find(name_or_dir)
    if stored.is_converted(folder):
        size = read_config(name_or_dir).vocab_size
        stops = stored.read_source(folder)["stop_tokens"]
        return [token for token in stops if token < size]
    token = load_tokenizer(folder / "tokenizer.json").token_to_id(END_OF_TEXT)
    return [] if token is None else [token]


def special_tokens(name_or_dir: str | pathlib.Path) -> list[int]:
    """Tokens that are no piece of text: stops, and what templates are made of."""
    tokenizer = load_tokenizer(find(name_or_dir) / "tokenizer.json")
    added = tokenizer.get_added_tokens_decoder()
    return sorted({*stop_tokens(name_or_dir), *added})


def tokenizer_hash(tokenizer: tokenizers.Tokenizer) -> str:
    """SHA-256 of what every token stands for."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()


def check_same_tokenizer(
    target: tokenizers.Tokenizer, draft: tokenizers.Tokenizer
) -> None:
    """Refuses a draft model that means other text by the same tokens.

    Raises:
        ValueError: with the first token that differs.
    """
    ours, theirs = target.get_vocab(), draft.get_vocab()
    if ours == theirs:
        return
    by_id = {i: text for text, i in theirs.items()}
    for text, i in sorted(ours.items(), key=lambda item: item[1]):
        if by_id.get(i) != text:
            raise ValueError(
                "The draft model's tokenizer is not the target's: token "
                f"{i} is {text!r} for the target and {by_id.get(i)!r} for the draft."
            )
    raise ValueError(
        f"The draft model's tokenizer has {len(theirs)} tokens, the target's {len(ours)}."
    )
