"""Trained models from a folder, or by the name of one that ships.

What a folder holds, `weights` says.
"""

import dataclasses
import importlib.resources
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import tokenizers

from jaxspec import digests, files, sampling, tokenizer_files, weights
from jaxspec.core import DraftHead, LanguageModel
from jaxspec.models import config as configs
from jaxspec.models import forms, hybrid, mtp

DTYPES = ("float32", "bfloat16")
# small, and precise
_ALWAYS_FLOAT32 = ("A_log", "D", "dt_bias", "scale", "correction_bias")


@dataclasses.dataclass(frozen=True, eq=False)
class Folder:
    """A model on disk: all but its weights.

    Attributes:
        path: of the folder.
        config: its shape, with the dtype that it is to compute in.
        tokenizer: its tokenizer.
        stops: tokens that end its texts: those it was published with, or end-of-text.
            Published ones beyond the model's table, which it never writes, are left out.
    """

    path: pathlib.Path
    config: configs.ModelConfig
    tokenizer: tokenizers.Tokenizer
    stops: tuple[int, ...]

    @property
    def special_tokens(self) -> list[int]:
        """Control tokens: stops, and markers of chat templates."""
        return sorted({*self.stops, *self.tokenizer.get_added_tokens_decoder()})

    def load(self, **options: Any) -> "Pretrained":
        """Loads the weights; arguments and errors are those of `load`."""
        config = self.config
        params = weights.load(
            self.path, _like(config, hybrid.language_model(config).init)
        )
        if jax.default_backend() == "cpu" and config.tie_embeddings:
            params = forms.separate_head(params)
        if options.get("scan_layers"):
            params = forms.stack(config, params)
        return Pretrained(
            model=hybrid.language_model(config, **options),
            params=params,
            folder=self,
            options=options,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
    """A model that was loaded; `model, params, tokenizer = load(...)` unpacks it.

    Attributes:
        model: its functions.
        params: its parameters.
        folder: what else was read with them.
        options: of `language_model`, as given.
    """

    model: LanguageModel
    params: Any
    folder: Folder
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __iter__(self) -> Iterator[Any]:
        """Yields what a loop needs, so that three names may take it."""
        yield from (self.model, self.params, self.tokenizer)

    @property
    def config(self) -> configs.ModelConfig:
        """Its shape, with the dtype that it computes in."""
        return self.folder.config

    @property
    def tokenizer(self) -> tokenizers.Tokenizer:
        """Its tokenizer."""
        return self.folder.tokenizer

    @property
    def stops(self) -> tuple[int, ...]:
        """Tokens that end its texts."""
        return self.folder.stops

    def having(self, **options: Any) -> "Pretrained":
        """Returns the model with other options, and the same parameters.

        Args:
            **options: of `language_model`: `rollback`, `max_path`, `ring_size`; others
                stay.

        Raises:
            ValueError: if `scan_layers` changes, which is decided when params are loaded.
        """
        options = {**self.options, **options}
        if bool(options.get("scan_layers")) != bool(self.options.get("scan_layers")):
            raise ValueError(
                "The params were loaded for another scan_layers; give it to `load`."
            )
        model = hybrid.language_model(self.config, **options)
        return dataclasses.replace(self, model=model, options=options)


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
    return read(name_or_dir, dtype).load(**options)


def read(
    name_or_dir: str | pathlib.Path, dtype: jax.typing.DTypeLike | None = None
) -> Folder:
    """Reads all of a model but its weights; arguments and errors are those of `load`."""
    path = find(name_or_dir)
    config = _with_dtype(read_config(path), dtype)
    source = weights.read_source(path)  # refuses another format
    weights.check(path)
    return Folder(
        path=path,
        config=config,
        tokenizer=tokenizer_files.load(path),
        stops=tuple(t for t in source["stop_tokens"] if t < config.vocab_size),
    )


def load_mtp(target: Pretrained) -> tuple[DraftHead, Any]:
    """Loads the multi-token-prediction head of a model, for `draft_head`.

    Args:
        target: the model, of which the head shares the embedding and the head.

    Raises:
        ValueError: if the model has no such head, or as `load`.
    """
    head = mtp_head(target.folder)
    like = mtp.own(_like(target.config, head.init))
    params = weights.load(target.folder.path, like, weights.MTP)
    return head, mtp.share(params, target.params)


def mtp_head(folder: Folder) -> DraftHead:
    """The functions of the head that `load_mtp` loads.

    Raises:
        ValueError: if the model has no such head.
    """
    if not folder.config.mtp:
        raise ValueError(
            f"{folder.path} has no multi-token-prediction head: the checkpoint that it was "
            "converted from had no tensors mtp.*."
        )
    return mtp.mtp_head(folder.config)


def _with_dtype(config: configs.ModelConfig, dtype: Any) -> configs.ModelConfig:
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


def save(
    folder: str | pathlib.Path,
    config: configs.ModelConfig,
    params: Any,
    tokenizer: tokenizers.Tokenizer,
) -> None:
    """Writes a folder that `load` reads, weights in bfloat16.

    Args:
        folder: may hold a model already, which is replaced.
        config: the shape of the model.
        params: of it, unrolled.
        tokenizer: whose end-of-text token, if it has one, ends its texts.

    Raises:
        ValueError: if the tokenizer has more tokens than the model.
    """
    if tokenizer.get_vocab_size() > config.vocab_size:
        raise ValueError(
            f"The tokenizer has {tokenizer.get_vocab_size()} tokens and the model "
            f"{config.vocab_size}."
        )
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if config.tie_embeddings:  # the copy that `load` makes on a CPU is not a parameter
        params = {name: part for name, part in params.items() if name != "lm_head"}
    parts = weights.save(folder, params, jnp.bfloat16)
    end = tokenizer.token_to_id(weights.END_OF_TEXT)
    stops = [] if end is None else [end]
    source = {"format": weights.FORMAT, "parts": parts, "stop_tokens": stops}
    texts = {
        "config.json": configs.to_json(config),
        tokenizer_files.NAME: tokenizer.to_str(pretty=True),
        weights.SOURCE: json.dumps(source, indent=2) + "\n",
    }
    for name, text in texts.items():
        files.write_text(folder / name, text)
    digests.add(folder, texts)
