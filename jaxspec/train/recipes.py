"""The two models that ship, and how they are trained."""

import dataclasses

from jaxspec.models.config import AttentionConfig, Mamba2Config, MLPConfig, ModelConfig

VOCAB_SIZE = 2048

TARGET = ModelConfig(
    vocab_size=VOCAB_SIZE,
    d_model=384,
    layers="MM-M*M-M",
    mamba2=Mamba2Config(nheads=12, headdim=64, d_state=64),
    attention=AttentionConfig(num_heads=6, num_kv_heads=2, head_dim=64, window=256),
    mlp=MLPConfig(d_ff=768),
)

DRAFT = ModelConfig(
    vocab_size=VOCAB_SIZE,
    d_model=160,
    layers="MM",
    mamba2=Mamba2Config(nheads=5, headdim=64, d_state=64),
)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train one model.

    Attributes:
        name: of the shipped model.
        config: its shape.
        steps: optimiser steps.
        batch_size: sequences in a step.
        length: tokens in a sequence.
        learning_rate: peak, reached after `warmup` steps, then let down as a cosine to a
            tenth at `horizon`, and on top of it in a line to zero over the last half of
            `steps`: the first half of a run is the same however long it is.
        horizon: steps of the cosine.
        warmup: steps.
        weight_decay: AdamW's.
        seed: of the weights and of the data's order.
    """

    name: str
    config: ModelConfig
    steps: int
    batch_size: int
    length: int
    learning_rate: float
    horizon: int = 12_000
    warmup: int = 200
    weight_decay: float = 0.1
    seed: int = 0


RECIPES = {
    "target": Recipe("stdlib-8m", TARGET, 7_000, 4, 512, 2e-3),
    "draft": Recipe("stdlib-draft", DRAFT, 3_000, 4, 512, 3e-3),
}
