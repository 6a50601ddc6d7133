"""What drafters are made from, and what comes of it."""

import importlib.resources
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxspec import pretrained, tokenizer_files
from jaxspec.core import Drafter, LanguageModel, Params
from jaxspec.decode_state import DecodeState
from jaxspec.decoding import speculative_generate
from jaxspec.drafting import datastore, vocabulary
from jaxspec.drafting.datastore import Datastore
from jaxspec.drafting.model import Trimmed
from jaxspec.drafting.padded import with_vocab_size
from jaxspec.models import forms
from jaxspec.pretrained import Folder, Pretrained
from jaxspec.spec_info import SpecInfo

TREES, SURVIVAL = "tree-T1.json", "survival-T1.json"  # measured with the shipped pair

Loop = Callable[..., tuple[DecodeState, SpecInfo]]
"""`speculative_generate`, or what takes the same arguments."""


class Sources(NamedTuple):
    """Models and files that drafters are made from; each kind uses those that it needs.

    Attributes:
        draft: the draft model, loaded, or its name or folder.
        datastore: text to retrieve from, made by `jaxspec tune datastore`.
        trees: topologies for `sequoia`, made by `jaxspec tune tree`; None for those that
            were measured with the shipped pair.
        vocabulary: tokens that the head of the draft model keeps, or of MTP, made by
            `jaxspec tune vocabulary`; None for all.
        survival: measured acceptance for `dyspec-measured`, made by `jaxspec tune
            survival`; None for that of the shipped pair.
        dtype: that a draft model which is loaded by name computes in; None for what its
            config says.
    """

    draft: Pretrained | str | pathlib.Path | None = None
    datastore: str | pathlib.Path | None = None
    trees: str | pathlib.Path | None = None
    vocabulary: str | pathlib.Path | None = None
    survival: str | pathlib.Path | None = None
    dtype: str | None = None

    def load_draft(
        self, target: Pretrained, max_path: int
    ) -> tuple[LanguageModel, Any]:
        """The draft model and its params, trimmed if a vocabulary is given.

        Raises:
            ValueError: if it reads tokens otherwise than the target.
        """
        draft = self.draft
        if not isinstance(draft, Pretrained):
            draft = pretrained.load(draft, self.dtype)
        draft = draft.having(max_path=max_path)
        tokenizer_files.check_same_tokenizer(target.tokenizer, draft.tokenizer)
        return trim(draft, target.config.vocab_size, self.kept_tokens(target))

    def kept_tokens(self, target: Folder) -> np.ndarray | None:
        """The tokens that a head keeps, None for all."""
        if self.vocabulary is None:
            return None
        hash_ = tokenizer_files.tokenizer_hash(target.tokenizer)
        return vocabulary.load(self.vocabulary, hash_).keep

    def load_datastore(self, target: Folder) -> Datastore:
        """The text to retrieve from."""
        return datastore.load(self.datastore, target.tokenizer)

    def tree_file(self) -> pathlib.Path:
        """The file of measured topologies."""
        return _file(self.trees, TREES)

    def survival_file(self) -> pathlib.Path:
        """The file of measured acceptance."""
        return _file(self.survival, SURVIVAL)


def _file(given: str | pathlib.Path | None, shipped: str) -> pathlib.Path:
    """A file that was named, or one of those that ship."""
    assets = importlib.resources.files("jaxspec.assets")
    return pathlib.Path(str(assets / "tuned" / shipped) if given is None else given)


class Setup(NamedTuple):
    """A target and a drafter, ready to decode.

    Attributes:
        target: the target, with room for the drafter's longest path.
        drafter: the drafter.
        params: of both.
        generate: the loop that the drafter needs.
    """

    target: Pretrained
    drafter: Drafter
    params: Params
    generate: Loop


class Made(NamedTuple):
    """A drafter without its target.

    Attributes:
        drafter: the drafter.
        params: its own.
        join: the target -> its params, of a drafter that shares some; else None.
        generate: the loop that it needs: another than `speculative_generate` where its
            trees are made on the host.
    """

    drafter: Drafter
    params: Any
    join: Callable[[Pretrained], Any] | None = None
    generate: Loop = speculative_generate

    def beside(self, target: Pretrained) -> Setup:
        """Puts it beside its target, which gets the room that it needs."""
        own = self.params if self.join is None else self.join(target)
        return Setup(
            target=target.having(max_path=self.drafter.max_path),
            drafter=self.drafter,
            params=Params(target.params, own),
            generate=self.generate,
        )


Make = Callable[[Sources, Folder], Made]
"""What a shape that was read stands for: sources, target's folder -> the drafter."""


def trim(
    draft: Pretrained, vocab_size: int, keep: np.ndarray | None
) -> tuple[LanguageModel, Any]:
    """A draft model of the target's `vocab_size`, and its params.

    The head is cut to the tokens `keep`, as far as both tables have them; None is all.
    """
    own = draft.model.vocab_size
    model = with_vocab_size(draft.model, vocab_size)
    if keep is not None:
        keep = keep[keep < min(own, vocab_size)]
    if keep is None or len(keep) == own:
        return model, draft.params
    return model, Trimmed(forms.trim_head(draft.params, keep), jnp.asarray(keep))
