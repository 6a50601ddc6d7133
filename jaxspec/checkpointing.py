"""Any pytree of arrays to disk and back with Orbax: a training run, a half-spoken sentence.

A checkpoint is written under a temporary name, with the digests of its files, and renamed
when it is whole, so that a kill in the middle of a save leaves the previous one usable.
Carries and typed keys are plain leaves; nothing needs to know what it saves.
"""

import os
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxspec import checks, digests, files


class _Handler(ocp.StandardCheckpointHandler):
    """Writes pytrees as Orbax does, and the digests of all files beside them."""

    def finalize(self, directory: os.PathLike) -> None:
        """Closes what every process wrote, in one of them, before it is renamed."""
        super().finalize(directory)
        digests.write(pathlib.Path(directory))


@ocp.args.register_with_handler(_Handler, for_save=True)
class _Save(ocp.args.StandardSave):
    pass


@ocp.args.register_with_handler(_Handler, for_restore=True)
class _Restore(ocp.args.StandardRestore):
    pass


def save(
    directory: str | os.PathLike, step: int, state: Any, *, keep: int | None = 2
) -> None:
    """Writes `state` as checkpoint `step` of `directory`, and waits until it is whole.

    Args:
        directory: made if needed; holds a folder per step.
        step: later than all in the directory.
        state: a pytree of arrays.
        keep: how many checkpoints to keep, the newest first; None for all.

    Raises:
        ValueError: if the directory holds this step or a later one; nothing is written.
    """
    step = checks.integer("step", step, least=0)
    keep = None if keep is None else checks.integer("keep", keep, least=1)
    found = steps(directory)
    if found and step <= found[-1]:
        raise ValueError(
            f"{directory} holds step {found[-1]}, and a save must be later, got step "
            f"{step}: go on from it (`restore`), or save in another directory."
        )
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, enable_async_checkpointing=False
    )
    path = pathlib.Path(directory).absolute()
    with ocp.CheckpointManager(path, options=options) as manager:
        if not manager.save(step, args=_Save(state)):
            raise ValueError(f"Orbax did not save step {step} in {directory}.")


def steps(directory: str | os.PathLike) -> list[int]:
    """The steps with a whole checkpoint, in order; none if there is no directory."""
    path = pathlib.Path(directory)
    names = (
        [own.name for own in path.iterdir() if own.is_dir()] if path.is_dir() else []
    )
    return sorted(int(n) for n in names if n.isascii() and n.isdecimal())


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
    path = pathlib.Path(directory).absolute() / str(step) / "default"
    name = f"Checkpoint {step} of {directory}"
    if (reason := _damage(path)) is not None:
        raise ValueError(f"{name}: {reason}")
    try:
        handler = _Handler()
        with ocp.Checkpointer(handler) as checkpointer:
            reason = _difference(handler.metadata(path).tree, like)
            if reason is None:
                return checkpointer.restore(path, args=_Restore(like))
    except Exception as error:  # Orbax and its stores raise all kinds
        raise ValueError(
            f"{name} is damaged or of another shape: {files.one_line(error)}."
        ) from None
    raise ValueError(f"{name} is of another shape: {reason}.")


def _damage(path: pathlib.Path) -> str | None:
    """Compares the files with their digests; every process reads its share of them."""
    share = slice(jax.process_index(), None, jax.process_count())
    own = digests.problem(path, share=share)
    if jax.process_count() == 1:
        return own
    if np.all(multihost_utils.process_allgather(np.array(own is None))):
        return None
    return own or "another process met a damaged file."


def _difference(saved: Any, like: Any) -> str | None:
    """The first leaf that the two trees do not share, or None."""
    saved, like = ocp.tree.to_flat_dict(saved), ocp.tree.to_flat_dict(like)
    for path in sorted({*saved, *like}):
        there, wanted = (_shape(tree.get(path)) for tree in (saved, like))
        if there != wanted:
            name = ".".join(path)
            return f"{name} is {there or 'missing'}, expected {wanted or 'none'}"
    return None


def _shape(leaf: Any) -> str | None:
    if leaf is None:
        return None
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return str(tuple(leaf.shape))
