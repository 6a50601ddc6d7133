"""Builds a `LanguageModel` from a config."""

import functools

from jaxspec.core import LanguageModel
from jaxspec.models import rollback as rollbacks
from jaxspec.models.config import ModelConfig
from jaxspec.models.joint import joint
from jaxspec.models.network import Network
from jaxspec.models.stack import Stack


def language_model(
    config: ModelConfig,
    *,
    rollback: rollbacks.Rollback = "auto",
    max_path: int = 8,
    ring_size: int | None = None,
    scan_layers: bool = False,
) -> LanguageModel:
    """Makes the functions of a model. Equal arguments return the same record.

    Args:
        config: the shape of the model.
        rollback: how rejected drafts leave no trace; see `rollback.py`.
        max_path: the longest path that can be committed, in nodes, the root included.
        ring_size: slots of the rings under `"lazy"`; `2 * max_path` by default.
        scan_layers: whether repeated blocks run under `lax.scan`, with params stacked by
            kind (`forms.stack`): for deep models on accelerators. A CPU wants `False`.

    Raises:
        ValueError: on an unknown rollback, or a ring that holds no path.
    """
    ring_size = 2 * max_path if ring_size is None else ring_size
    if max_path < 1:
        raise ValueError(f"max_path must be positive, got {max_path}.")
    if ring_size < max_path:
        raise ValueError(
            f"The ring must hold a path of {max_path} nodes, got ring_size {ring_size}."
        )
    kind = rollbacks.resolve(rollback)
    if kind == "joint":  # its trees hang from a path that is run again
        room = 2 * max_path
        inner = _language_model(config, "replay", room, room, scan_layers)
        return joint(inner, max_path)
    return _language_model(config, kind, max_path, ring_size, scan_layers)


@functools.cache
def _language_model(config, kind, max_path, ring_size, scan_layers) -> LanguageModel:
    stack = Stack(config.layers, scan_layers)
    model = Network(config, kind, max_path, ring_size, stack)
    return LanguageModel(
        init=model.init,
        init_carry=model.init_carry,
        step=model.step,
        scan=model.scan,
        prepare=model.prepare,
        init_tape=model.init_tape,
        extend_tree=model.extend_tree,
        scan_tree=model.scan_tree,
        keep=model.keep,
        commit=model.commit,
        logits=model.logits,
        vocab_size=config.vocab_size,
        max_path=max_path,
    )
