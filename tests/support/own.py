"""One of each contract, as a user writes it: with the public names alone."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

import jaxspec as js

Array = jax.Array


@functools.cache
def frequent(vocab_size: int, width: int) -> js.Drafter:
    """Makes a drafter of the tokens that a text has most of, side by side."""

    def init(params: Any, batch_size: int, max_length: int) -> Array:
        return jnp.zeros((batch_size, vocab_size), jnp.int32)

    def absorb(
        params: Any, counts: Array, tokens: Array, hidden: Array, lengths: Array
    ) -> Array:
        row = jnp.arange(len(tokens))[:, None]
        was_read = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
        return counts.at[row, tokens].add(was_read.astype(jnp.int32))

    def propose(
        params: Any, counts: Array, context: js.Context
    ) -> tuple[Array, js.Draft]:
        most, tokens = jax.lax.top_k(counts, width)
        tree = js.builder.start(context.root, 1 + width)
        tree = js.builder.grow(tree, 1, tokens, jnp.where(most > 0, 0, -1))
        share = most / jnp.maximum(jnp.sum(counts, axis=1, keepdims=True), 1)
        score = jnp.pad(share, ((0, 0), (1, 0)))
        return counts, js.deterministic_draft(tree, 2, score)

    def observe(params: Any, counts: Array, outcome: js.Outcome) -> Array:
        path = jnp.maximum(outcome.verdict.path, 0)
        tokens = js.ragged.take(outcome.tree.tokens, path)
        return absorb(params, counts, tokens, outcome.hidden, outcome.count)

    return js.Drafter(init, absorb, propose, observe, 2, vocab_size)


@functools.cache
def first_child() -> js.Verifier:
    """Makes a verifier of one draft: the root's first child, kept or refused."""

    def verify_row(
        key: Array,
        draft: js.Draft,
        logits: Array,
        settings: js.sampling.Sampling,
        needs: js.sampling.Needs,
    ) -> js.Verdict:
        key = js.sampling.noise_key(key, js.sampling.Role.VERIFY, settings.position)
        for_child, for_last = jax.random.split(key)
        root, places = jnp.int32(0), jnp.arange(draft.max_path)
        child, exists = js.proposals.next_child(draft.tree.parents, root, root)
        wanted = js.sampling.law(logits[0], settings, needs)
        drawn = js.proposals.child_law(draft, child, jnp.zeros(wanted.shape, bool))
        token = draft.tree.tokens[child]
        kept = js.sampling.accept(for_child, wanted[token], drawn[token]) & exists
        refused = jnp.where(exists, js.sampling.residual(wanted, drawn), wanted)
        below = js.sampling.law(logits[child], settings, needs)
        law = jnp.log(jnp.where(kept, below, refused))
        last = js.sampling.draw(for_last, law)
        path = jnp.where(places == 0, 0, jnp.where(kept & (places == 1), child, -1))
        emitted = jnp.where(kept & (places == 0), token, last)
        logprobs = jax.nn.log_softmax(logits[jnp.maximum(path, 0)])[places, emitted]
        logprobs = jnp.where(path >= 0, logprobs, 0.0)
        return js.Verdict(path, kept.astype(jnp.int32), last, logprobs)

    return js.Verifier(functools.partial(js.proposals.verify, verify_row))


@functools.cache
def hesitant(length: int, least: float) -> js.Builder:
    """Makes a builder of drawn chains that end where the draft model is unsure."""

    def build(reader: js.Reader, tape: Any, context: js.Context) -> js.Built:
        tree, laws = js.builder.start(context.root, length + 1), []
        scores = [jnp.ones(context.root.shape, jnp.float32)]
        for at in range(length):
            tape, logits = reader.read(tape, tree, at, at + 1)
            slot = jnp.array([at + 1])
            keys = js.builder.node_keys(context.keys, context.sampling, slot)
            laws.append(js.builder.law_logits(logits, context.sampling))  # largest is 0
            columns = jax.vmap(jax.vmap(js.sampling.draw))(keys, laws[-1])
            sure = jnp.exp(-jax.nn.logsumexp(laws[-1][:, 0], axis=1))
            scores.append(jnp.where(sure >= least, scores[-1] * sure, 0.0))
            tokens = js.builder.token_ids(columns, reader.vocab_ids)
            parents = jnp.where(scores[-1] > 0.0, at, -1)[:, None]
            tree = js.builder.grow(tree, at + 1, tokens, parents)
        slots = js.builder.read_slots(tree, length)
        draft = js.Draft(
            tree=tree,
            kind=jnp.full(slots.shape, js.Draft.IID, jnp.int32),
            draft_logits=jnp.concatenate(laws, axis=1),
            logits_row=jnp.maximum(slots, 0),
            score=jnp.stack(scores, axis=1),
            vocab_ids=reader.vocab_ids,
            max_path=length + 1,
        )
        return js.Built(tape, draft, slots)

    return js.Builder(build, length + 1, length, length + 1, 1)


@functools.cache
def mixing_head(vocab_size: int, width: int) -> js.DraftHead:
    """Makes a head without a past: it mixes a token with the hidden before it."""

    def init(key: Array) -> dict[str, Array]:
        embed, mix = jax.random.split(key)
        return {
            "embed": jax.random.normal(embed, (vocab_size, width)),
            "mix": jax.random.normal(mix, (width, width)) / width**0.5,
        }

    def mixed(params: Any, tokens: Array, before: Array) -> Array:
        return jnp.tanh(before @ params["mix"] + params["embed"][tokens])

    return js.DraftHead(
        init=init,
        init_carry=lambda params, batch_size, max_length: (),
        scan=lambda params, carry, tokens, before, lengths: (
            carry,
            mixed(params, tokens, before),
        ),
        init_tape=lambda params, batch_size, num_nodes: (),
        extend_tree=lambda params, carry, tape, tree, before, start, stop: (
            tape,
            mixed(params, tree.tokens[:, start:stop], before),
        ),
        keep=lambda tape, slots: tape,
        logits=lambda params, hidden: hidden @ params["embed"].T,
        vocab_size=vocab_size,
        hidden_size=width,
    )


@functools.cache
def leaky(vocab_size: int, width: int, max_path: int) -> js.LanguageModel:
    """Makes a model whose state is a leaky sum of embeddings."""

    def init(key: Array) -> dict[str, Array]:
        embed, decay = jax.random.split(key)
        return {
            "embed": jax.random.normal(embed, (vocab_size, width)),
            "decay": jax.nn.sigmoid(jax.random.normal(decay, (width,))),
        }

    def init_state(params: Any, batch_size: int) -> Array:
        return jnp.zeros((batch_size, width), jnp.float32)

    def step(params: Any, state: Array, token: Array) -> tuple[Array, Array]:
        state = params["decay"][None] * state + params["embed"][token]
        return state, jnp.tanh(state)

    def logits(params: Any, hidden: Array) -> Array:
        return hidden @ params["embed"].T

    return js.from_step(
        step,
        init_state,
        logits,
        vocab_size=vocab_size,
        max_path=max_path,
        init=init,
    )
