"""Training: next-token cross entropy, or the distance to a teacher's laws.

A run is a function of its recipe: the data's order comes from the seed and the step, so a
run that was killed goes on from its last checkpoint as if nothing had happened.
"""

import functools
import json
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tokenizers
from rich import progress

from jaxspec import checkpointing, compilation, files, sampling, weights
from jaxspec.core import LanguageModel
from jaxspec.models import hybrid
from jaxspec.train import corpus, evaluate
from jaxspec.train.recipes import Recipe


class TrainState(NamedTuple):
    """All that a run needs to go on."""

    step: jax.Array  # int32
    params: Any
    opt_state: Any


class Teacher(NamedTuple):
    """A model to be distilled."""

    model: LanguageModel
    params: Any


class Data(NamedTuple):
    """The corpus as tokens; every document ends in its end-of-text token."""

    train: list[np.ndarray]
    held_out: list[np.ndarray]
    held_out_bytes: int


def encode(modules: list[corpus.Module], tokenizer: tokenizers.Tokenizer) -> Data:
    """Tokenizes a corpus."""
    end = tokenizer.token_to_id(weights.END_OF_TEXT)
    if end is None:
        raise ValueError(f"The tokenizer has no token {weights.END_OF_TEXT}.")
    documents: dict[bool, list[np.ndarray]] = {False: [], True: []}
    for module in modules:
        ids = tokenizer.encode(module.text).ids
        documents[module.held_out].append(np.array([*ids, end], np.int32))
    held_out = [m.text.encode() for m in modules if m.held_out]
    return Data(documents[False], documents[True], sum(map(len, held_out)))


def optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """AdamW with the recipe's schedule and clipped gradients."""
    cosine = optax.warmup_cosine_decay_schedule(
        0.0,
        recipe.learning_rate,
        min(recipe.warmup, recipe.steps // 4),
        recipe.horizon,
        0.1 * recipe.learning_rate,
    )
    half = recipe.steps // 2
    cool_down = optax.linear_schedule(1.0, 0.0, recipe.steps - half, half)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            lambda step: cosine(step) * cool_down(step),
            b2=0.98,
            weight_decay=recipe.weight_decay,
            mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim >= 2, params),
        ),
    )


def loss_fn(
    model: LanguageModel, params: Any, tokens: jax.Array, teacher: Teacher | None
) -> jax.Array:
    """Nats per token of sequences `[B, T + 1]`, given all tokens before.

    With a teacher, the cross entropy is against its law instead of the token that came.
    """
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    logits = _predict(model, params, inputs)
    if teacher is None:
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    else:
        law = jax.nn.softmax(_predict(*teacher, inputs))
        loss = optax.softmax_cross_entropy(logits, jax.lax.stop_gradient(law))
    return jnp.mean(loss)


def _predict(model: LanguageModel, params: Any, tokens: jax.Array) -> jax.Array:
    batch, length = tokens.shape
    carry = model.init_carry(params, batch, length, speculative=False)
    lengths = jnp.full((batch,), length, jnp.int32)
    _, hidden = model.scan(params, carry, tokens, lengths)
    return model.logits(params, hidden)


@functools.partial(
    compilation.jit, static_argnames=("model", "recipe", "teacher_model")
)
def _update(model, recipe, state, tokens, teacher_model, teacher_params):
    teacher = teacher_model and Teacher(teacher_model, teacher_params)
    loss, grads = jax.value_and_grad(
        lambda params: loss_fn(model, params, tokens, teacher)
    )(state.params)
    updates, opt_state = optimizer(recipe).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, opt_state), loss


def train(
    recipe: Recipe,
    data: Data,
    directory: pathlib.Path,
    *,
    teacher: Teacher | None = None,
    save_every: int = 500,
    quiet: bool = False,
) -> Any:
    """Trains a model, going on from the last checkpoint in `directory` if there is one.

    Writes checkpoints and `log.jsonl` (a line per 20 steps, and held-out bits per byte at
    every save).

    Returns:
        The trained params.
    """
    model = hybrid.language_model(recipe.config)
    params = jax.jit(model.init)(sampling.key(recipe.seed))
    state = TrainState(jnp.int32(0), params, optimizer(recipe).init(params))
    if checkpointing.steps(directory / "checkpoints"):
        state = checkpointing.restore(directory / "checkpoints", state)
    _forget_after(directory / "log.jsonl", int(state.step))
    batches = _batches(recipe, data, int(state.step))
    columns = [
        *progress.Progress.get_default_columns(),
        progress.TextColumn("{task.fields[note]}"),
    ]
    with (
        progress.Progress(*columns, disable=quiet) as bar,
        (directory / "log.jsonl").open("a") as log,
    ):
        task = bar.add_task(
            recipe.name, total=recipe.steps, completed=int(state.step), note=""
        )
        losses, started = [], time.perf_counter()
        for step in range(int(state.step) + 1, recipe.steps + 1):
            state, loss = _update(
                model, recipe, state, next(batches), *(teacher or (None, None))
            )
            losses.append(loss)
            record = {"step": step}
            if step % 20 == 0:
                record["loss"] = float(jnp.mean(jnp.stack(losses)))
                record["seconds_per_step"] = (time.perf_counter() - started) / len(
                    losses
                )
                losses, started = [], time.perf_counter()
                note = f"{record['loss']:.3f} nats {record['seconds_per_step']:.2f} s"
                bar.update(task, completed=step, note=note)
            saving = step % save_every == 0 or step == recipe.steps
            if saving:
                record["held_out_bits_per_byte"] = evaluate.bits_per_byte(
                    model, state.params, data.held_out, data.held_out_bytes
                )
            if len(record) > 1:
                log.write(json.dumps(record) + "\n")
                log.flush()
            if saving:  # last: what is saved has been evaluated and logged
                checkpointing.save(directory / "checkpoints", step, state)
    return state.params


def _forget_after(path: pathlib.Path, step: int) -> None:
    """Drops from a log what a run that was killed wrote after its last checkpoint."""
    if path.exists():
        kept = [record for record in read_log(path) if record["step"] <= step]
        files.write_text(path, "".join(json.dumps(record) + "\n" for record in kept))


def read_log(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the records of a run's log, but for half a line, which a kill leaves.

    Raises:
        ValueError: naming a line that is none.
    """
    records = []
    for number, line in enumerate(files.read_text(path).split("\n")[:-1], 1):
        record = files.parse_json(line, f"{path} line {number}")
        if (
            not isinstance(record, dict)
            or not all(isinstance(value, float | int) for value in record.values())
            or "step" not in record
        ):
            raise ValueError(f"{path} line {number} is no record of a step.")
        records.append(record)
    return records


def _batches(recipe: Recipe, data: Data, step: int):
    """Yields batches `[B, T + 1]` from the one after `step` on."""
    epoch, skip = 0, step
    while True:
        sequences = corpus.epoch(data.train, recipe.length, recipe.seed, epoch)
        count = len(sequences) // recipe.batch_size
        if count == 0:
            raise ValueError(
                f"The corpus gives {len(sequences)} sequences of {recipe.length} tokens, "
                f"fewer than the batch of {recipe.batch_size}."
            )
        for i in range(min(skip, count), count):
            yield sequences[i * recipe.batch_size : (i + 1) * recipe.batch_size]
        skip, epoch = max(skip - count, 0), epoch + 1
