"""Drafters by name: `KIND:SHAPE`, as in `ngram:8`, `rsd-s:3x4` or `dyspec:16`.

Every kind takes a number of nodes: the slots of the tree in the target's pass, the root
included, so that kinds can be compared at equal cost of that pass. Some take a shape of
their own besides: `chain:4` four drafts in a row, `rsd-c:3,2,1` children level by level,
`rsd-s:3x4` a beam of three and four levels.
"""

import functools
import importlib.resources
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import tokenizers

from jaxspec import pretrained
from jaxspec.cli import shapes
from jaxspec.core import Drafter, LanguageModel
from jaxspec.decode_state import DecodeState, Params
from jaxspec.decoding import SpecInfo, speculative_generate
from jaxspec.drafting import datastore, sequoia, tree_file, vocabulary
from jaxspec.drafting.beam import stochastic_beam
from jaxspec.drafting.best_first import best_first
from jaxspec.drafting.builder import Builder
from jaxspec.drafting.datastore import Datastore
from jaxspec.drafting.dyspec import dyspec
from jaxspec.drafting.fusion import Pair, fuse
from jaxspec.drafting.given import given
from jaxspec.drafting.head import draft_head
from jaxspec.drafting.model import Trimmed, draft_model
from jaxspec.drafting.ngram import ngram
from jaxspec.drafting.padded import with_vocab_size
from jaxspec.drafting.rasd import rasd
from jaxspec.drafting.recycling import ACCEPTANCE, recycling
from jaxspec.drafting.retrieval import retrieval
from jaxspec.drafting.static import static_tree
from jaxspec.drafting.suffix import SuffixDecoder
from jaxspec.host_decoding import Host, generate_from_host
from jaxspec.models import forms

CALLS = 8  # of the draft model, for one tree that grows
LOOKUP_PATH = 8  # nodes on a path that is looked up


class Tools(NamedTuple):
    """What drafters are made from, by name or file.

    Attributes:
        target: the target.
        draft: the draft model, of drafters that have one.
        datastore: text to retrieve from, for `retrieval` and `rasd`.
        tree: measured topologies, for `sequoia`.
        vocabulary: what the head of the draft model keeps, or of MTP; None for all tokens.
        dtype: in which both compute; None for what their configs say.
    """

    target: str
    draft: str
    datastore: pathlib.Path | None = None
    tree: pathlib.Path | None = None
    vocabulary: pathlib.Path | None = None
    dtype: str | None = None


Loop = Callable[..., tuple[DecodeState, SpecInfo]]
"""`speculative_generate`, or what takes the same arguments."""


class Made(NamedTuple):
    """A drafter, and its params.

    Attributes:
        drafter: the drafter.
        params: its own.
        join: the target's params -> its own, of a drafter that shares some; else None.
        host: what makes its trees, of a drafter on the host; else None.
    """

    drafter: Drafter
    params: Any
    join: Callable[[Any], Any] | None = None
    host: Host | None = None

    @property
    def generate(self) -> Loop:
        """The loop that it needs."""
        if self.host is None:
            return speculative_generate
        return functools.partial(generate_from_host, host=self.host)

    def beside(self, target: Any) -> Params:
        """The params of both, given the target's."""
        return Params(target, self.params if self.join is None else self.join(target))


class Kind(NamedTuple):
    """A kind of drafter.

    Attributes:
        make: `Tools, shape -> Made`.
        shapes: what it takes besides a number of nodes.
        summary: one line.
        draws: whether its tokens are drawn, so that verifiers that use laws gain.
    """

    make: Callable[[Tools, str], Made]
    shapes: str
    summary: str
    draws: bool = False


def make(spec: str, tools: Tools) -> Made:
    """Makes the drafter that `KIND:SHAPE` names.

    Raises:
        ValueError: if there is no such kind, it has no such shape, or what it is made
            from is missing.
    """
    name, _, shape = spec.partition(":")
    if name not in KINDS:
        raise ValueError(f"Unknown drafter {spec!r}; expected one of {tuple(KINDS)}.")
    try:
        return KINDS[name].make(tools, shape or "8")
    except shapes.NoShape:
        more = KINDS[name].shapes
        raise ValueError(
            f"{shape!r} is no shape of {name}; expected a number of nodes up to "
            f"{shapes.MOST}, the root included{', or ' + more if more else ''}."
        ) from None


def assets(name: str) -> pathlib.Path:
    """A file that was measured with the shipped pair."""
    return pathlib.Path(
        str(importlib.resources.files("jaxspec.assets") / "tuned" / name)
    )


def _grown(make_builder: Callable[[str], Builder]) -> Callable[[Tools, str], Made]:
    """What a builder grows by the draft model."""

    def make(tools: Tools, shape: str) -> Made:
        builder = make_builder(shape)
        model, params = _draft(tools, builder.max_path)
        return Made(draft_model(model, builder), params)

    return make


def _draft(tools: Tools, max_path: int) -> tuple[LanguageModel, Any]:
    """The draft model and its params, trimmed if so asked."""
    draft = pretrained.load(tools.draft, tools.dtype, max_path=max_path)
    tokenizer = pretrained.load_tokenizer(
        pretrained.find(tools.target) / "tokenizer.json"
    )
    pretrained.check_same_tokenizer(tokenizer, draft.tokenizer)
    keep = _kept_tokens(tools, tokenizer)
    return trim(draft, pretrained.read_config(tools.target).vocab_size, keep)


def _kept_tokens(tools: Tools, tokenizer: tokenizers.Tokenizer) -> np.ndarray | None:
    """What a draft's head keeps, None for all."""
    if tools.vocabulary is None:
        return None
    hash_ = pretrained.tokenizer_hash(tokenizer)
    return vocabulary.load(tools.vocabulary, hash_).keep


def trim(
    draft: pretrained.Pretrained, vocab_size: int, keep: np.ndarray | None
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


def _mtp(tools: Tools, shape: str) -> Made:
    """A static tree by the target's own head."""
    builder = static_tree(shapes.levels(shape))
    head = pretrained.mtp_head(tools.target, tools.dtype)
    path = pretrained.find(tools.target) / "tokenizer.json"
    keep = _kept_tokens(tools, pretrained.load_tokenizer(path))

    def join(target: Any) -> Any:
        _, params = pretrained.load_mtp(tools.target, target, tools.dtype)
        if keep is None:
            return params
        return Trimmed(forms.trim_head(params, keep), jnp.asarray(keep))

    return Made(draft_head(head, builder), None, join)


def _static(law: str, noise: str = "own") -> Callable[[str], Builder]:
    return lambda shape: static_tree(shapes.levels(shape), law, noise)


def _chain(noise: str = "own") -> Callable[[str], Builder]:
    def make(shape: str) -> Builder:
        drafts = min(shapes.nodes(shape) - 1, shapes.LONGEST)
        return static_tree((1,) * drafts, "iid", noise)

    return make


def _dyspec(noise: str = "own") -> Callable[[str], Builder]:
    def make(shape: str) -> Builder:
        nodes = shapes.nodes(shape)
        return dyspec(nodes, -(-(nodes - 1) // CALLS), noise=noise)

    return make


def _best_first(shape: str) -> Builder:
    nodes = shapes.nodes(shape)
    width = math.isqrt(nodes - 1) + 1
    return best_first(nodes, width, min(width, shapes.LONGEST))


def _sequoia(tools: Tools, shape: str) -> Made:
    """Most tokens of a number of nodes; or `best`, what was the fastest."""
    path = assets("tree-T1.json") if tools.tree is None else tools.tree
    if shape == "best":
        parents = tree_file.load_tree(path)
    else:
        acceptance = tree_file.load_acceptance(path)
        parents = sequoia.optimal_tree(
            acceptance, shapes.nodes(shape), shapes.LONGEST + 1
        )
    return _grown(lambda _: static_tree(parents, "without_replacement"))(tools, shape)


def _ngram(tools: Tools, shape: str) -> Made:
    if shape.startswith("chain:"):
        size = shapes.nodes(shape.removeprefix("chain:"), 1) + 1
        return Made(ngram(size, size, num_matches=1), None)
    nodes = shapes.nodes(shape)
    path = min(nodes, LOOKUP_PATH)
    matches = max(4, -(-(nodes - 1) // (path - 1)))
    return Made(ngram(nodes, path, num_matches=matches), None)


def _retriever(nodes: int) -> Drafter:
    return retrieval(nodes, min(nodes, LOOKUP_PATH), num_matches=max(16, nodes))


def _datastore(tools: Tools) -> Datastore:
    if tools.datastore is None:
        raise ValueError(
            "Retrieval needs a datastore: --datastore FILE, which "
            "`jaxspec tune datastore` makes."
        )
    tokenizer = pretrained.find(tools.target) / "tokenizer.json"
    return datastore.load(tools.datastore, pretrained.load_tokenizer(tokenizer))


def _retrieval(tools: Tools, shape: str) -> Made:
    return Made(_retriever(shapes.nodes(shape)), _datastore(tools))


def _lookups(tools: Tools, shape: str) -> Made:
    nodes = shapes.nodes(shape)
    here = _ngram(tools, shape).drafter
    return Made(fuse(here, _retriever(nodes), nodes), Pair(None, _datastore(tools)))


def _rasd(order: str) -> Callable[[Tools, str], Made]:
    def make(tools: Tools, shape: str) -> Made:
        nodes = shapes.nodes(shape, 4)
        builder = stochastic_beam(*shapes.beam(str(nodes // 2 + 1)))
        retriever = _retriever(nodes - builder.num_nodes + 1)
        longest = max(builder.max_path, retriever.max_path)
        model, params = _draft(tools, longest)
        drafter = rasd(model, builder, retriever, nodes, order=order)
        return Made(drafter, Pair(params, _datastore(tools)))

    return make


def _recycling(tools: Tools, shape: str) -> Made:
    topology = sequoia.optimal_tree(ACCEPTANCE, shapes.nodes(shape), LOOKUP_PATH)
    return Made(
        recycling(pretrained.read_config(tools.target).vocab_size, topology), None
    )


LEVELS = "children level by level (3,2,1) or chain:K"


def _suffix(tools: Tools, shape: str) -> Made:
    nodes = shapes.nodes(shape)
    drafter = given(nodes, min(nodes, LOOKUP_PATH))
    return Made(drafter, None, host=SuffixDecoder())


KINDS = {
    "ngram": Kind(_ngram, "chain:K", "looks the last tokens up in the text so far"),
    "retrieval": Kind(_retrieval, "", "looks them up in a datastore (REST)"),
    "lookups": Kind(_lookups, "", "looks them up in both"),
    "suffix": Kind(_suffix, "", "what followed them how often, in a tree on the host"),
    "recycling": Kind(_recycling, "", "what followed a token in the target's eyes"),
    "model": Kind(
        _grown(_static("top_k")), LEVELS, "a draft model's likeliest, in a static tree"
    ),
    "mtp": Kind(_mtp, LEVELS, "what the target's own head predicts, likewise"),
    "best-first": Kind(_grown(_best_first), "", "its likeliest paths (EAGLE-2)"),
    "chain": Kind(_grown(_chain()), "", "a draft model's draws, one by one", True),
    "specinfer": Kind(
        _grown(_static("iid")), LEVELS, "a static tree, drawn with replacement", True
    ),
    "rsd-c": Kind(
        _grown(_static("without_replacement")),
        LEVELS,
        "a static tree, drawn without replacement",
        True,
    ),
    "sequoia": Kind(
        _sequoia,
        "best, the fastest",
        "the static tree of most tokens, as measured",
        True,
    ),
    "rsd-s": Kind(
        _grown(lambda shape: stochastic_beam(*shapes.beam(shape))),
        "WIDTHxLENGTH",
        "a stochastic beam",
        True,
    ),
    "dyspec": Kind(
        _grown(_dyspec()), "", "a tree that grows where drafts are likely", True
    ),
    "chain-shared": Kind(
        _grown(_chain("shared")), "", "a chain drawn with the noise that emits"
    ),
    "rsd-c-shared": Kind(
        _grown(_static("without_replacement", "shared")), LEVELS, "so is a static tree"
    ),
    "dyspec-shared": Kind(_grown(_dyspec("shared")), "", "so is a tree that grows"),
    "rasd": Kind(
        _rasd("draft first"),
        "",
        "a stochastic beam, and what is retrieved beside it",
        True,
    ),
    "rasd-first": Kind(
        _rasd("retrieval first"), "", "what is retrieved, and a beam beside it", True
    ),
}
