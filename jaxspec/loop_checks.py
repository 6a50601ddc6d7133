"""Checks at the entrance of a loop: does the state belong to the model and the drafter?"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec import checks, padding, sampling
from jaxspec.core import Draft, Drafter, LanguageModel, Params, Verifier
from jaxspec.decode_state import DecodeState

Array = jax.Array

_SETTINGS = {"temperature": jnp.float32, "top_k": jnp.int32, "top_p": jnp.float32}
_SETTINGS["draft_budgets"] = jnp.int32
_ROWS = {"limits": jnp.int32, "done": jnp.bool_}
_RECORDS = {"target": LanguageModel, "drafter": Drafter, "verifier": Verifier}
_ENDLESS = 2**31 - 1


def records(**found: Any) -> None:
    """Refuses a `target`, `drafter` or `verifier` that is no such record.

    Raises:
        TypeError: naming it.
    """
    for name, value in found.items():
        checks.record(name, value, _RECORDS[name])


def one_per_row(state: DecodeState, target: LanguageModel) -> DecodeState:
    """Makes all settings of a state `[B]`, also where `replace` has put in one for all.

    Values are looked at where they are not JAX's: those may still be computed.

    Raises:
        TypeError: if it is no `DecodeState`.
        ValueError: on a setting of another shape or out of range.
    """
    checks.record("state", state, DecodeState)
    batch, width = state.tokens.shape
    each = {}
    for name, dtype in (_SETTINGS | _ROWS).items():
        value = getattr(state, name)
        is_new = name in _SETTINGS and not isinstance(value, jax.Array)
        normal = checks.setting if is_new else checks.per_row
        each[name] = normal(name, value, batch, dtype)
    if not isinstance(state.limits, jax.Array):
        most, room = int(np.max(state.limits)), width - target.max_path
        checks.require(
            most <= room,
            f"limits of {most} tokens are beyond the state's room of {room}; give "
            "init_state a larger max_length.",
        )
    if not isinstance(state.stops, jax.Array):
        found = checks.stops(state.stops, batch, target.vocab_size)
        each["stops"] = padding.pad_stops(found, batch)
    sampling.check_keys(checks.array("keys", state.keys))
    for name in ("keys", "lengths", "prompt_lengths"):
        shape = np.shape(getattr(state, name))
        checks.require(
            shape == (batch,), f"Expected {name} of shape [{batch}], got {list(shape)}."
        )
    return state.replace(**each)


def steps(max_steps: int | Array | None) -> Array:
    """`max_steps` as an int32, very many for None, so that all share one program.

    Raises:
        ValueError: if it is negative, or no integer.
    """
    if isinstance(max_steps, jax.core.Tracer):
        is_one = max_steps.shape == () and jnp.issubdtype(max_steps.dtype, jnp.integer)
        checks.require(is_one, f"Expected one integer as max_steps, got {max_steps}.")
        return max_steps.astype(jnp.int32)
    if max_steps is None:
        return jnp.int32(_ENDLESS)
    return jnp.int32(min(checks.integer("max_steps", max_steps, least=0), _ENDLESS))


def drafts(state: DecodeState) -> None:
    """Refuses a state that was made without a drafter."""
    checks.require(
        state.drafter is not None,
        "The state was made without a drafter; give it to init_state.",
    )


def fits(
    params: Params,
    state: DecodeState,
    target: LanguageModel,
    drafter: Drafter | None,
    speculative: bool = False,
) -> None:
    """Refuses a state that `init_state` does not make of this target and this drafter.

    It compares shapes and dtypes, so that a state of equal ones passes. To be called while
    tracing.

    Args:
        params: of the target and the drafter.
        state: from `init_state`, between steps.
        target: the model.
        drafter: what proposes; None where its state does not matter.
        speculative: whether paths are committed; they are where there is a drafter.

    Raises:
        TypeError: on params that are not in `Params`, or a target or a drafter that is
            not a record.
        ValueError: if the state has other shapes.
    """
    checks.machinery(params, target, drafter)
    if drafter is not None:
        paths(drafter.max_path, target)
        drafts(state)
    forms = [True] if speculative or drafter is not None else [False, True]
    others = [
        checks.difference(state.carry, _carry(params, state, target, form))
        for form in forms
    ]
    if speculative and others[0] is not None:
        without = _carry(params, state, target, False)
        checks.require(
            checks.difference(state.carry, without) is not None,
            "The state was made without a drafter; give it to init_state, or make room "
            "for drafts with speculative=True.",
        )
    checks.require(
        None in others,
        f"The state was made with another target: in its carry {others[0]}. Give "
        "init_state and the loop the same target.",
    )
    if drafter is None:
        return
    other = checks.difference(state.drafter, _drafting(params, state, target, drafter))
    checks.require(
        other is None,
        f"The state was made with another drafter, or other params of it: in its state "
        f"{other}. Give init_state and the loop the same.",
    )


def paths(max_path: int, target: LanguageModel) -> None:
    """Refuses paths that are longer than a target keeps."""
    checks.require(
        max_path <= target.max_path,
        f"The drafter proposes paths of {max_path} nodes and the target keeps paths of "
        f"{target.max_path}; raise the target's max_path.",
    )


def draft(draft: Draft, batch: int, max_path: int | None) -> None:
    """Refuses a draft whose shapes are not one, or whose paths are not as announced."""
    checks.record("draft", draft, Draft)
    shapes = {
        "tree.tokens": draft.tree.tokens.shape,
        "tree.parents": draft.tree.parents.shape,
        "kind": draft.kind.shape,
        "score": draft.score.shape,
    }
    expected = (batch, draft.tree.parents.shape[-1])
    for name, shape in shapes.items():
        checks.require(
            shape == expected,
            f"Expected a draft's {name} to be [B, N], got {shape} for {batch} rows.",
        )
    checks.require(
        max_path in (None, draft.max_path),
        f"The drafter proposed paths of {draft.max_path} nodes, and its max_path is "
        f"{max_path}.",
    )


def _carry(
    params: Params, state: DecodeState, target: LanguageModel, speculative: bool
) -> Any:
    """The shapes of the target's past, as `init_state` makes it."""
    batch, width = state.tokens.shape

    def begin(params):
        room = width - target.max_path
        return target.init_carry(params, batch, room, speculative)

    return jax.eval_shape(begin, params.target)


def _drafting(
    params: Params, state: DecodeState, target: LanguageModel, drafter: Drafter
) -> Any:
    """The shapes of the drafter's state, as `init_state` makes it."""
    batch, width = state.tokens.shape

    def begin(params):
        with checks.drafter_errors(params):
            return drafter.init(params, batch, width - target.max_path)

    return jax.eval_shape(begin, params.drafter)
