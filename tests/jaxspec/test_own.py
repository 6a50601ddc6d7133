"""A drafter, a verifier, a builder, a head and a model of one's own, forty lines each."""

import ast
import inspect
import pathlib

import jax
import jax.numpy as jnp
import pytest

import jaxspec
import lossless
import own
import texts
import tiny

WIDTH = tiny.CONFIGS[texts.TARGET].d_model
FREQUENT, FIRST = own.frequent(tiny.VOCAB, 4), own.first_child()
HEAD = own.mixing_head(tiny.VOCAB, WIDTH)
MODEL = own.leaky(tiny.VOCAB, 16, texts.MAX_PATH)


def made(drafts):
    """A drafter and its params."""
    weights = MODEL.init(jax.random.key(5))
    return {
        "drafter": lambda: (FREQUENT, None),
        "builder": lambda: (jaxspec.draft_model(MODEL, own.hesitant(3, 0.1)), weights),
        "head": lambda: (
            jaxspec.draft_head(HEAD, (2, 1)),
            HEAD.init(jax.random.key(6)),
        ),
    }[drafts]()


@pytest.mark.parametrize("drafts", ["drafter", "builder", "head"])
def test_the_text_is_the_autoregressive_one(drafts):
    state, info = texts.speculative(*made(drafts), **texts.SAMPLED)
    texts.check_same(state, texts.baseline("sampled"))
    assert info.drafted.sum() > 0


def test_an_own_model_writes_with_drafts_what_it_writes_alone():
    params = jaxspec.Params(MODEL.init(jax.random.key(7)))
    tokens, lengths = jaxspec.pad_prompts(texts.PROMPTS)
    options = {"target": MODEL, "max_new_tokens": 20, **texts.SAMPLED}
    alone = jaxspec.init_state(params, tokens, lengths, **options)
    alone = jaxspec.generate(params, alone, target=MODEL)
    state = jaxspec.init_state(params, tokens, lengths, drafter=FREQUENT, **options)
    state, info = jaxspec.speculative_generate(
        params, state, target=MODEL, drafter=FREQUENT
    )
    texts.check_same(state, alone)
    assert info.kept.sum() > 0


def test_an_own_drafter_counts_what_the_target_has_read():
    state, _ = texts.speculative(FREQUENT, **texts.GREEDY)
    for row, length in enumerate(state.lengths.tolist()):
        text = state.tokens[row, : length - 1]
        counts = jnp.bincount(text, length=tiny.VOCAB)
        assert state.drafter[row].tolist() == counts.tolist()


def test_an_own_verifier_keeps_the_law(monkeypatch):
    """Of drafts by the own builder, which ends its chains before they are drawn."""
    for least in (0.1, 0.45):
        drafts = lossless.drafts_of_builder(own.hesitant(2, least), monkeypatch)
        written = lossless.Written(FIRST, drafts[0], monkeypatch, drafts[1])
        assert written.distance < 1e-12
        assert written.tokens > 1.0


def test_an_own_verifier_is_part_of_the_loop():
    params, state = texts.start(FREQUENT, **texts.GREEDY)
    state, info = jaxspec.speculative_generate(
        params, state, target=texts.target(), drafter=FREQUENT, verifier=FIRST
    )
    texts.check_same(state, texts.baseline("greedy"))
    assert info.drafted.sum() > 0


@pytest.mark.parametrize(
    "name", ["frequent", "first_child", "hesitant", "mixing_head", "leaky"]
)
def test_each_takes_at_most_forty_lines(name):
    lines = inspect.getsource(getattr(own, name).__wrapped__).splitlines()
    assert len(lines) <= 40


def test_public_names_are_enough():
    """Beside JAX nothing but `jaxspec` is imported, and no private name is used."""
    tree = ast.parse(pathlib.Path(own.__file__).read_text())
    nodes = list(ast.walk(tree))
    modules = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    modules |= {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
    assert modules == {"functools", "typing", "jax", "jax.numpy", "jaxspec"}
    names = [n.attr for n in nodes if isinstance(n, ast.Attribute)]
    assert not [name for name in names if name.startswith("_")]
