"""Parts of one's own: what they announce is what they do, or it is refused in one line."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
import texts
import tiny
from jaxspec.drafting.fusion import Pair
from refusals import one_line
from texts import TARGET, baseline, check_same, make_drafter, start, target

NGRAM, _ = make_drafter("ngram-tree")
PARAMS = tiny.params(TARGET)
LOOPS = {
    "generate": (jaxspec.generate, {}),
    "speculative_generate": (jaxspec.speculative_generate, {"drafter": NGRAM}),
    "speculative_step": (
        jaxspec.speculative_step,
        {"drafter": NGRAM, "verifier": jaxspec.traversal()},
    ),
}


def begin(model, drafter=None):
    """A state of one short prompt of a model without params."""
    return jaxspec.init_state(
        jaxspec.Params(()),
        [[1, 2, 3]],
        target=model,
        drafter=drafter,
        max_new_tokens=4,
    )


@pytest.mark.parametrize("setting", texts.SETTINGS)
def test_slot_0_is_the_root_whatever_the_drafter_puts_there(setting):
    def propose(params, state, context):
        state, draft = NGRAM.propose(params, state, context)
        tree = draft.tree.replace(
            tokens=draft.tree.tokens.at[:, 0].set(7),
            parents=draft.tree.parents.at[:, 0].set(0),
        )
        return state, draft.replace(tree=tree)

    careless = NGRAM._replace(propose=propose)
    found, info = texts.speculative(careless, **texts.SETTINGS[setting])
    expected, right = texts.speculative(NGRAM, **texts.SETTINGS[setting])
    check_same(found, expected)
    check_same(found, baseline(setting))
    np.testing.assert_array_equal(info.target_calls, right.target_calls)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda draft: draft.replace(max_path=3), "paths of 3 nodes"),
        (lambda draft: draft.replace(kind=draft.kind[:, 1:]), "kind to be [B, N]"),
        (lambda draft: draft.tree, "a Draft, got TokenTree"),
    ],
)
def test_drafts_are_what_their_drafter_announced(change, words):
    def propose(*args):
        state, draft = NGRAM.propose(*args)
        return state, change(draft)

    params, state = start(NGRAM)
    with pytest.raises((TypeError, ValueError)) as error:
        jaxspec.speculative_generate(
            params, state, target=target(), drafter=NGRAM._replace(propose=propose)
        )
    one_line(error, type(error.value), words)


def table(width=tiny.VOCAB, **leaves):
    """A model of one's own, whose logits are of some width."""

    def step(params, state, token):
        return state, token[:, None].astype(jnp.float32)

    def init_state(params, batch):
        return {"of each": jnp.zeros((batch, 2))} | leaves

    def logits(params, hidden):
        return jnp.zeros((*hidden.shape[:-1], width)) + hidden[..., :1]

    return jaxspec.from_step(step, init_state, logits, vocab_size=tiny.VOCAB)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("width", [tiny.VOCAB - 1, tiny.VOCAB + 1])
def test_logits_of_another_width_are_refused(loop, width):
    run, machinery = LOOPS[loop]
    machinery = machinery | {"target": table(width)}
    drafter = machinery.get("drafter")
    state = begin(table(width), drafter)
    with pytest.raises(ValueError) as error:
        run(jaxspec.Params(()), state, **machinery)
    one_line(error, ValueError, f"{width})", "vocab_size is 48")


@pytest.mark.parametrize("leaf", [jnp.zeros(()), jnp.zeros(1), jnp.zeros((1, 4))])
def test_a_leaf_without_rows_is_refused(leaf):
    with pytest.raises(ValueError) as error:
        begin(table(shared=leaf))
    one_line(error, ValueError, "['shared']", "belongs to params")


def test_a_hidden_of_another_shape_is_refused():
    model = jaxspec.from_step(
        lambda params, state, token: (state, jnp.zeros((len(token), 2, 2))),
        lambda params, batch: jnp.zeros((batch,)),
        lambda params, hidden: hidden,
        vocab_size=4,
    )
    with pytest.raises(ValueError, match=r"Expected a hidden \[1, C\] of a step"):
        begin(model)


def test_a_drafter_may_hold_what_it_likes():
    """A user's, which counts what it is told."""

    def init(params, batch_size, max_length):
        none = jnp.zeros(batch_size, jnp.int32)
        counts = {"absorbed": none, "steps": none, "emitted": none}
        return counts | {"room": jnp.int32(max_length)}

    def absorb(params, state, tokens, hidden, lengths):
        return state | {"absorbed": state["absorbed"] + lengths}

    def propose(params, state, context):
        return state, NGRAM.propose(params, (), context)[1]

    def observe(params, state, outcome):
        live = (outcome.count > 0).astype(jnp.int32)
        emitted = state["emitted"] + outcome.count
        return state | {"steps": state["steps"] + live, "emitted": emitted}

    drafter = NGRAM._replace(init=init, absorb=absorb, propose=propose, observe=observe)
    found, info = texts.speculative(drafter)
    check_same(found, baseline("greedy"))
    told = found.drafter
    np.testing.assert_array_equal(told["absorbed"], found.prompt_lengths - 1)
    np.testing.assert_array_equal(told["steps"], info.target_calls)
    np.testing.assert_array_equal(told["emitted"], found.lengths - found.prompt_lengths)
    assert int(told["room"]) == found.tokens.shape[1] - target().max_path


def test_the_shape_of_a_fused_drafter_is_seen():
    """The first of the two has read another vocabulary."""
    first, other = (jaxspec.recycling(size, (2, 1)) for size in (tiny.VOCAB, 40))
    drafter = jaxspec.fuse(first, NGRAM, 8)
    wrong = jaxspec.fuse(other._replace(vocab_size=tiny.VOCAB), NGRAM, 8)
    _, state = start(drafter, Pair(None, None))
    with pytest.raises(ValueError) as error:
        jaxspec.speculative_generate(
            jaxspec.Params(PARAMS, Pair(None, None)),
            state,
            target=target(),
            drafter=wrong,
        )
    one_line(error, ValueError, "another drafter", ".first.successors")
