"""Any pytree of arrays to disk and back with Orbax: a training run, a half-spoken sentence.

A checkpoint is written under a temporary name and renamed when it is whole, so that a
kill in the middle of a save leaves the previous one usable. Carries and typed keys are
plain leaves; nothing needs to know what it saves.
"""

import os
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp


def save(
    directory: str | os.PathLike, step: int, state: Any, *, keep: int | None = 2
) -> None:
    """Writes `state` as checkpoint `step` of `directory`, and waits until it is whole.

    Args:
        directory: made if needed; holds a folder per step.
        step: not yet in the directory.
        state: a pytree of arrays.
        keep: how many checkpoints to keep, the newest first; None for all.
    """
    with _manager(directory, keep) as manager:
        manager.save(step, args=ocp.args.StandardSave(state))


def steps(directory: str | os.PathLike) -> list[int]:
    """The steps with a whole checkpoint, in order; none if there is no directory."""
    if not pathlib.Path(directory).is_dir():
        return []
    with _manager(directory, None) as manager:
        return sorted(manager.all_steps())


def restore(directory: str | os.PathLike, like: Any, step: int | None = None) -> Any:
    """Reads a checkpoint into the structure, dtypes and shardings of `like`.

    Args:
        directory: as given to `save`.
        like: the state that was saved, or its shapes (`jax.eval_shape`).
        step: which one; the newest by default.

    Raises:
        ValueError: if there is no such checkpoint, or it is damaged or of another shape.
    """
    found = steps(directory)
    step = step if step is not None else (found[-1] if found else None)
    if step not in found:
        raise ValueError(
            f"{directory} has no whole checkpoint{'' if step is None else f' {step}'}; "
            f"found {found or 'none'}."
        )
    like = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    with _manager(directory, None) as manager:
        try:
            return manager.restore(step, args=ocp.args.StandardRestore(like))
        except (ValueError, KeyError, TypeError, OSError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"Checkpoint {step} of {directory} is damaged or of another shape: "
                f"{reason}"
            ) from error


def _manager(directory: str | os.PathLike, keep: int | None) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, enable_async_checkpointing=False
    )
    return ocp.CheckpointManager(pathlib.Path(directory).absolute(), options=options)
