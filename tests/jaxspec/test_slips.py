"""Slips that everybody makes: each is one line that says what to do, or simply works."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
import texts
import tiny
from jaxspec import checks
from jaxspec.pretrained import Pretrained
from refusals import one_line
from texts import TARGET, baseline, check_same, make_drafter, start, target

NGRAM, _ = make_drafter("ngram-tree")
MODEL = make_drafter("model-tree")
LAZY = target("lazy")
PARAMS = tiny.params(TARGET)
LOADED = Pretrained(target(), PARAMS, None)
HOST = jaxspec.SuffixDecoder()


def begin(**options):
    """A state of one short prompt, of which the prompts are as they are given."""
    options = {"prompt": [[1, 2, 3]], "params": jaxspec.Params(PARAMS)} | options
    options = {"target": target(), "max_new_tokens": 4} | options
    return jaxspec.init_state(options.pop("params"), options.pop("prompt"), **options)


FIRST = {
    "bare params": ({"params": PARAMS}, TypeError, "Params(target=params)"),
    "what was loaded as params": (
        {"params": jaxspec.Params(LOADED)},
        TypeError,
        "pytree of arrays",
    ),
    "what was loaded as target": ({"target": LOADED}, TypeError, "got Pretrained"),
    "a drafter's factory": ({"drafter": jaxspec.ngram}, TypeError, "ngram(...)"),
    "a builder": ({"drafter": jaxspec.chain(3)}, TypeError, "draft_model(model"),
    "a model": ({"drafter": target()}, TypeError, "got LanguageModel"),
    "no params of a draft": (
        {"drafter": jaxspec.draft_model(tiny.model("mamba2"))},
        ValueError,
        "Params(target=..., drafter=...)",
    ),
    "no datastore": ({"drafter": jaxspec.retrieval(4, 3)}, ValueError, "Datastore"),
    "no pair": ({"drafter": jaxspec.fuse(NGRAM, NGRAM, 8)}, ValueError, "Pair"),
    "a ragged prompt": ({"prompt": [[1, 2], [3]]}, ValueError, "pad_prompts"),
    "a flat prompt": ({"prompt": [1, 2]}, ValueError, "[B, T]", "batch of one"),
    "a text": ({"prompt": "def f"}, ValueError, "tokenizer.encode(text).ids"),
    "texts": ({"prompt": ["a", "b"]}, ValueError, "tokenizer.encode(text).ids"),
    "no integers": ({"prompt": [[1.5]]}, ValueError, "Tokens are integers"),
    "lengths of another size": ({"lengths": [3, 3]}, ValueError, "one lengths or 1"),
    "fractions of lengths": ({"lengths": [1.5]}, ValueError, "lengths to be integers"),
    "a fraction of tokens": (
        {"max_new_tokens": 4.5},
        ValueError,
        "max_new_tokens to be integers",
    ),
    "a fraction of room": ({"max_length": 9.5}, ValueError, "an integer max_length"),
    "no room": ({"max_length": 0}, ValueError, "max_length must be positive"),
    "a mass as a number": ({"top_k": 0.9}, ValueError, "top_k to be integers"),
    "a word": ({"temperature": "hot"}, ValueError, "temperature to be numbers"),
    "ragged settings": ({"top_p": [[1.0], 1.0]}, ValueError, "one length in top_p"),
    "a temperature beyond float32": ({"temperature": 1e39}, ValueError, "infinite"),
    "a top_k beyond int32": ({"top_k": 2**40}, ValueError, "top_k must not be"),
    "a fraction of a stop": ({"stops": [0.5]}, ValueError, "Stops are integers"),
    "a text as stop": ({"stops": ["end"]}, ValueError, "Stops are integers"),
    "ragged stops": ({"stops": [[1], [1, 2]]}, ValueError, "one length in stops"),
    "stops of more rows": ({"stops": [[1], [2]]}, ValueError, "stops [K] or [1, K]"),
    "no such stop": ({"stops": [1, 48]}, ValueError, "stops from 0 to 47", "48"),
    "a negative stop": ({"stops": -2}, ValueError, "stops from 0 to 47"),
    "a seed as key": ({"keys": 0}, ValueError, "one typed key"),
}


@pytest.mark.parametrize("name", FIRST)
def test_a_slip_at_the_beginning_is_one_line(name):
    options, kind, *words = FIRST[name]
    with pytest.raises(kind) as error:
        begin(**options)
    one_line(error, kind, *words)


@functools.cache
def states():
    """States with a drafter, without one, and with room for drafts from elsewhere."""
    options = {"plain": {}, "ngram": {"drafter": NGRAM}, "room": {"speculative": True}}
    return {name: start(**each)[1] for name, each in options.items()}


@functools.cache
def between():
    """A draft, and what became of it."""
    params, state = jaxspec.Params(PARAMS), states()["ngram"]
    _, draft = jaxspec.propose(params, state, drafter=NGRAM)
    verify = functools.partial(
        jaxspec.verify, target=target(), verifier=jaxspec.traversal()
    )
    return draft, jax.eval_shape(verify, params, state, draft)[1]


def propose(params, state, *, target, drafter):
    """It needs no target."""
    return jaxspec.propose(params, state, drafter=drafter)


def verify(params, state, draft=None, **records):
    return jaxspec.verify(params, state, draft or between()[0], **records)


def observe(params, state, outcome=None, *, target, drafter):
    """It needs no target."""
    outcome = outcome or between()[1]
    return jaxspec.observe(params, state, outcome, drafter=drafter)


LOOPS = {
    "generate": (jaxspec.generate, {}),
    "speculative_generate": (jaxspec.speculative_generate, {"drafter": NGRAM}),
    "speculative_step": (
        jaxspec.speculative_step,
        {"drafter": NGRAM, "verifier": jaxspec.traversal()},
    ),
    "generate_from_host": (
        jaxspec.generate_from_host,
        {"host": HOST, "num_nodes": 4, "max_path": 3},
    ),
    "propose": (propose, {"drafter": NGRAM}),
    "verify": (verify, {"verifier": jaxspec.traversal()}),
    "observe": (observe, {"drafter": NGRAM}),
}
RIGHT = {"generate": "plain", "generate_from_host": "room"}  # "ngram" else
LATER = {
    "bare params": ({"params": PARAMS}, TypeError, "Params(target=params)"),
    "a pair for a state": (
        lambda state: {"state": (state, None)},
        TypeError,
        "state to be a DecodeState, got tuple",
    ),
    "what was loaded as target": ({"target": LOADED}, TypeError, "got Pretrained"),
    "a state of another target": (
        {"target": tiny.model("mamba2", max_path=texts.MAX_PATH)},
        ValueError,
        "another target",
        ".blocks[",
    ),
    "a setting of another shape": (
        lambda state: {"state": state.replace(top_p=jnp.ones(2))},
        ValueError,
        "one top_p or 3",
    ),
    "a fraction of steps": ({"max_steps": 1.5}, ValueError, "integer max_steps"),
    "fewer than no steps": ({"max_steps": -1}, ValueError, "at least 0, got -1"),
    "looks at no step": ({"check_every": 0}, ValueError, "positive, got 0"),
    "looks between steps": ({"check_every": 2.5}, ValueError, "integer check_every"),
    "a verifier's factory": (
        {"verifier": jaxspec.traversal},
        TypeError,
        "call it: traversal(...)",
    ),
    "a drafter's factory": ({"drafter": jaxspec.ngram}, TypeError, "ngram(...)"),
    "no drafter": ({"drafter": None}, TypeError, "got NoneType; ngram(8)"),
    "a state without a drafter": (
        lambda state: {"state": states()["plain"]},
        ValueError,
        "state",
        "drafter",
    ),
    "another drafter": (
        {"drafter": jaxspec.recycling(tiny.VOCAB, (2, 1))},
        ValueError,
        "another drafter",
    ),
    "a longer drafter": (
        {"drafter": jaxspec.ngram(8, 8)},
        ValueError,
        "raise the target's max_path",
    ),
    "a draft without params": (
        lambda state: {"state": start(*MODEL)[1], "drafter": MODEL[0]},
        ValueError,
        "Params(target=..., drafter=...)",
    ),
    "a state without room": (
        lambda state: {"state": start(model=LAZY)[1], "target": LAZY},
        ValueError,
        "speculative=True",
        "drafter",
    ),
    "a host's type": ({"host": jaxspec.SuffixDecoder}, TypeError, "SuffixDecoder()"),
    "longer paths": ({"max_path": 9}, ValueError, "raise the target's max_path"),
    "paths of no draft": ({"max_path": 1}, ValueError, "max_path must be at least 2"),
    "no slot": ({"num_nodes": 0}, ValueError, "num_nodes must be positive"),
    "a tree for a draft": (
        lambda state: {"draft": between()[0].tree},
        TypeError,
        "draft to be a Draft, got TokenTree; propose makes one",
    ),
    "a draft of another batch": (
        lambda state: {"draft": jax.tree.map(lambda x: x[:2], between()[0])},
        ValueError,
        "tree.tokens to be [B, N], got (2, 8) for 3 rows",
    ),
    "a draft of longer paths": (
        lambda state: {"draft": between()[0].replace(max_path=9)},
        ValueError,
        "paths of 9 nodes and the target keeps paths of 5",
    ),
    "a verdict for an outcome": (
        lambda state: {"outcome": between()[1].verdict},
        TypeError,
        "outcome to be a Outcome, got Verdict; verify returns one",
    ),
}
ONLY = {  # loops that take the argument
    "max_steps": ("generate", "speculative_generate", "generate_from_host"),
    "check_every": ("generate", "speculative_generate"),
    "host": ("generate_from_host",),
    "max_path": ("generate_from_host",),
    "num_nodes": ("generate_from_host",),
    "drafter": ("speculative_generate", "speculative_step", "propose", "observe"),
    "verifier": ("speculative_generate", "speculative_step", "generate_from_host")
    + ("verify",),
    "target": ("generate", "speculative_generate", "speculative_step")
    + ("generate_from_host", "verify"),
}
ONLY_OF = {  # slips that only some can know
    "a state without a drafter": ONLY["drafter"],
    "a state without room": ("generate_from_host", "verify"),
    "a setting of another shape": ONLY["target"],
    "another drafter": ("speculative_generate", "speculative_step"),
    "a longer drafter": ("speculative_generate", "speculative_step"),
    "a draft without params": ("speculative_generate", "speculative_step", "propose"),
    "a tree for a draft": ("verify",),
    "a draft of another batch": ("verify",),
    "a draft of longer paths": ("verify",),
    "a verdict for an outcome": ("observe",),
}
TOLD = [
    (slip, loop)
    for slip, (options, *_) in LATER.items()
    for loop in LOOPS
    for name in [next(iter(options)) if isinstance(options, dict) else "state"]
    if loop in ONLY.get(name, LOOPS) and loop in ONLY_OF.get(slip, LOOPS)
]


@pytest.mark.parametrize("slip, loop", TOLD)
def test_a_slip_in_a_loop_is_one_line(slip, loop):
    options, kind, *words = LATER[slip]
    run, machinery = LOOPS[loop]
    state = states()[RIGHT.get(loop, "ngram")]
    options = options if isinstance(options, dict) else options(state)
    given = {"params": jaxspec.Params(PARAMS), "state": state, "target": target()}
    with pytest.raises(kind) as error:
        run(**given | machinery | options)
    one_line(error, kind, *words)


@pytest.mark.parametrize(
    "prompts, words",
    [
        (["def f", "class"], "prompt 0 as a list of tokens, got str"),
        ("def f", "at least one prompt"),
        ([1, 2], "prompt 0 as a list of tokens, got int"),
        ([[1], [0.5]], "prompt 1 as a list of tokens, got list of float64"),
        ([[1], [[2]]], "prompt 1 as a list of tokens"),
        ([[1, [2]]], "one length in prompt 0"),
    ],
)
def test_prompts_are_lists_of_tokens(prompts, words):
    with pytest.raises(ValueError) as error:
        jaxspec.pad_prompts(prompts)
    one_line(error, ValueError, words)
    with pytest.raises(ValueError, match="multiple must be positive"):
        jaxspec.pad_prompts([[1]], multiple=0)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: jaxspec.fuse(jaxspec.ngram, NGRAM, 8), "call it: ngram(...)"),
        (lambda: jaxspec.draft_model(LOADED), "got Pretrained"),
        (lambda: jaxspec.draft_model(target(), jaxspec.dyspec), "dyspec(...)"),
        (lambda: jaxspec.draft_model(target(), NGRAM), "builder to be a Builder"),
        (lambda: jaxspec.draft_head(target()), "load_mtp(target)"),
        (
            lambda: jaxspec.rasd(target(), (2, 1), NGRAM),
            "got tuple; (3, 2, 1), chain(4)",
        ),
        (
            lambda: jaxspec.rasd(target(), jaxspec.chain(2), jaxspec.ngram),
            "call it: ngram(...)",
        ),
    ],
)
def test_parts_of_drafters_are_records(make, words):
    with pytest.raises(TypeError) as error:
        make()
    one_line(error, TypeError, words)


def test_lists_are_prompts_and_stops_and_settings():
    tokens, lengths = jaxspec.pad_prompts(texts.PROMPTS, multiple=16)
    _, state = start(
        tokens=tokens.tolist(), max_new_tokens=texts.BUDGETS.tolist(), stops=()
    )
    found = jaxspec.generate(jaxspec.Params(PARAMS), state, target=target())
    check_same(found, baseline("greedy"))


def test_one_setting_may_be_put_in_for_all_rows():
    params, state = start(temperature=[0.1, 0.2, 0.3])
    _, wanted = start(temperature=1.5, top_k=3)
    state = state.replace(temperature=1.5, top_k=3)
    found, expected = (
        jaxspec.generate(params, one, target=target()) for one in (state, wanted)
    )
    check_same(found, expected)
    np.testing.assert_array_equal(found.temperature, [1.5, 1.5, 1.5])


REPLACED = {
    "limits": (1000, "beyond the state's room"),
    "temperature": (-1.0, "temperature must not be negative"),
    "top_p": (0.0, "top_p must be in (0, 1]"),
    "top_k": (-3, "top_k must not be negative"),
    "stops": ([999], "Expected stops from 0 to"),
    "keys": (jax.random.key(1), "keys of shape [3], got []"),
    "lengths": (5, "lengths of shape [3], got []"),
}


@pytest.mark.parametrize("name", REPLACED)
def test_what_is_put_in_is_checked(name):
    params, state = start()
    value, words = REPLACED[name]
    with pytest.raises(ValueError) as error:
        jaxspec.generate(params, state.replace(**{name: value}), target=target())
    one_line(error, ValueError, words)


def test_stops_may_be_put_in_as_a_list():
    params, state = start()
    text = np.asarray(baseline("greedy").tokens)[0]
    stop = int(text[int(state.prompt_lengths[0]) + 2])
    found = jaxspec.generate(params, state.replace(stops=[stop]), target=target())
    _, wanted = start(stops=[stop])
    check_same(found, jaxspec.generate(params, wanted, target=target()))


def test_a_step_leaves_one_setting_per_row():
    run, machinery = LOOPS["speculative_step"]
    step = functools.partial(run, target=target(), **machinery)
    state = states()["ngram"].replace(temperature=0.5, limits=48)
    state, _ = jax.eval_shape(step, jaxspec.Params(PARAMS), state)
    assert state.temperature.shape == state.limits.shape == (3,)


def test_a_state_of_another_rollback_is_refused():
    params, state = start(NGRAM, model=texts.target("lazy"))
    with pytest.raises(ValueError, match=r"another target.* \.blocks.*ring"):
        jaxspec.speculative_generate(params, state, target=target(), drafter=NGRAM)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.dtype("float32"), "bfloat16"])
def test_dtypes_may_be_types(dtype):
    model, params, _ = jaxspec.load("stdlib-draft", dtype=dtype)
    assert params["embed"]["embedding"].dtype == jnp.dtype(dtype)
    with pytest.raises(ValueError, match="dtype must be one of .*bf16"):
        jaxspec.load("stdlib-draft", dtype="bf16")


def test_differences_are_named():
    tree = {"a": jnp.zeros((2, 3)), "b": None}
    assert checks.difference(tree, tree) is None
    other = tree | {"b": jnp.zeros(2, jnp.int32)}
    assert "['b'] is missing, expected int32[2]" in checks.difference(tree, other)
    assert "['b'] is int32[2], expected none" in checks.difference(other, tree)
