"""How often the target accepts the child of each rank, over texts that it wrote itself.

At every token of a text the draft model draws `W` children, the shipped builder's one-level
tree, and the shipped verifier judges them by the target's law at that place. `p_k` is the
share of all places at which the child of rank `k` was accepted (section 4.1 of 2402.12374);
what is left of 1 is the share at which none was. Both models read a text once, in
parallel: nothing is decoded.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec import compilation, sampling
from jaxspec.core import Context, LanguageModel
from jaxspec.drafting.builder import Reader
from jaxspec.drafting.model import Trimmed
from jaxspec.drafting.static import static_tree
from jaxspec.verification.recursive_rejection import recursive_rejection

Array = jax.Array


def law(temperature: float) -> str:
    """How the children of a static tree should be drawn at a temperature."""
    return "without_replacement" if temperature > 0.0 else "top_k"


def measure(
    target: tuple[LanguageModel, Any],
    draft: tuple[LanguageModel, Any],
    prompts: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    *,
    temperature: float,
    width: int,
    seed: int = 0,
    advance: Callable[[int], None] = lambda texts: None,
) -> np.ndarray:
    """Counts accepted ranks.

    Args:
        target: the model and its params.
        draft: the draft model and its params, which may be `Trimmed`.
        prompts: tokens before each text; drafts are not made there.
        texts: what the target wrote, at `temperature`.
        temperature: 0 takes the likeliest tokens, else children are drawn without
            replacement.
        width: `W`.
        seed: of the draws.
        advance: called with 1 after every text.

    Returns:
        `[W + 1]` int64: places at which the child of each rank was accepted, and at which
        none was.

    Raises:
        ValueError: if the draft model has fewer tokens than children are drawn.
    """
    params = draft[1] if isinstance(draft[1], Trimmed) else Trimmed(draft[1], None)
    has = draft[0].vocab_size if params.vocab_ids is None else len(params.vocab_ids)
    if not 1 <= width <= has:
        raise ValueError(f"Expected a width from 1 to {has}, got {width}.")
    whole = [[*prompt, *text] for prompt, text in zip(prompts, texts, strict=True)]
    size = -(-max(map(len, whole)) // 64) * 64
    counts = np.zeros((width + 1,), np.int64)
    keys = jax.random.split(sampling.key(seed), len(whole))
    for i, tokens in enumerate(whole):
        padded = jnp.asarray([tokens + [0] * (size - len(tokens))], jnp.int32)
        ranks = _ranks(
            (target[1], params),
            padded,
            keys[i],
            jnp.float32(temperature),
            models=(target[0], draft[0]),
            law=law(temperature),
            width=width,
        )
        # The root of the first text token is the last of the prompt.
        places = np.asarray(ranks)[len(prompts[i]) - 1 : len(tokens) - 1]
        counts += np.bincount(places, minlength=width + 1)
        advance(1)
    return counts


@functools.partial(compilation.jit, static_argnames=("models", "law", "width"))
def _ranks(
    params, tokens: Array, key: Array, temperature: Array, *, models, law, width
):
    """`[T]`: the rank that is accepted after each token of a text `[1, T]`, or `width`."""
    trimmed = params[1]
    wanted = _logits(models[0], params[0], tokens)
    proposed = _logits(models[1], trimmed.params, tokens)
    builder, verifier = static_tree((width,), law), recursive_rejection()

    def place(root, position, wanted, proposed):
        """One token of the text, as a batch of one row."""
        settings = sampling.Sampling(
            temperature[None],
            jnp.zeros((1,), jnp.int32),
            jnp.ones((1,)),
            position[None],
        )
        context = Context(
            tokens=root[None, None],
            lengths=jnp.ones((1,), jnp.int32),
            keys=key[None],
            sampling=settings,
            budget=jnp.full((1,), width, jnp.int32),
        )
        reader = Reader(
            lambda tape, *_: (tape, proposed[None, None]),
            trimmed.vocab_ids,
            models[1].vocab_size,
        )
        built = builder.build(reader, None, context)
        logits = jnp.broadcast_to(wanted, (1, width + 1, len(wanted)))
        verdict = verifier.verify(key[None], built.draft, logits, settings)
        child = verdict.path[0, 1]  # slots are the root's, then one per rank
        return jnp.where(child > 0, child - 1, width)

    positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    each = tokens[0], positions, wanted, proposed
    return jax.lax.map(lambda one: place(*one), each)


def _logits(model: LanguageModel, params, tokens: Array) -> Array:
    """What a model says after every token of a text: `[T, V]`."""
    size = tokens.shape[1]
    carry = model.init_carry(params, 1, size, speculative=False)
    lengths = jnp.full((1,), size, jnp.int32)
    _, hidden = model.scan(params, carry, tokens, lengths)
    return model.logits(params, hidden)[0]
