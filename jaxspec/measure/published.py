"""Shapes of published models, to compile and to measure without their weights.

From the `config.json` of `state-spaces/mamba2-130m`, `mamba2-1.3b`, `mamba2-2.7b`,
`mamba-2.8b`, `nvidia/Nemotron-H-8B-Base-8K`, `tiiuae/Falcon-H1-7B-Base`,
`ibm-granite/granite-4.0-h-small` and `nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16`, from
the model card of `granite-4.0-h-350m`, and, for `nvidia/mamba2-hybrid-8b-3t-4k`, from
Megatron-LM's `examples/mamba` and "An Empirical Study of Mamba-based Language Models"
(Waleffe et al. 2024). What has no shape is left out: the factors of maximal update
parametrisation stay at one.
"""

from jaxspec.models.config import (
    AttentionConfig,
    DeltaConfig,
    Mamba1Config,
    Mamba2Config,
    MLPConfig,
    ModelConfig,
    MoEConfig,
)

_GRANITE = ("ME" * 5 + "*E" + "ME" * 4) * 4  # one attention layer in ten
_GRANITE_350M = "".join("*-" if i in (10, 13, 17, 27) else "M-" for i in range(32))


def _mamba2(d_model: int, num_layers: int) -> ModelConfig:
    """One of state-spaces' Mamba-2 models."""
    return ModelConfig(
        vocab_size=50288,
        d_model=d_model,
        layers="M" * num_layers,
        mamba2=Mamba2Config(nheads=2 * d_model // 64),
        dtype="bfloat16",
    )


MODELS = {
    "mamba2-130m": _mamba2(768, 24),
    "mamba2-1.3b": _mamba2(2048, 48),
    "mamba2-2.7b": _mamba2(2560, 64),
    "mamba-2.8b": ModelConfig(
        vocab_size=50280,
        d_model=2560,
        layers="m" * 64,
        mamba1=Mamba1Config(),
        dtype="bfloat16",
    ),
    "mamba2-hybrid-8b": ModelConfig(
        vocab_size=256_000,
        d_model=4096,
        layers="M-M-M--M-M*-M-M-M-M--M*-M-M-M-M-M*--M-M-M-M-M*-M--M-M-M-",
        mamba2=Mamba2Config(nheads=128, ngroups=8),
        attention=AttentionConfig(
            num_heads=32, num_kv_heads=8, head_dim=128, rope_fraction=0.0
        ),
        mlp=MLPConfig(d_ff=16384, activation="gelu"),
        tie_embeddings=False,
        dtype="bfloat16",
    ),
    "nemotron-h-8b": ModelConfig(
        vocab_size=131_072,
        d_model=4096,
        layers="M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-",
        mamba2=Mamba2Config(nheads=128, ngroups=8),
        attention=AttentionConfig(
            num_heads=32, num_kv_heads=8, head_dim=128, rope_fraction=0.0
        ),
        mlp=MLPConfig(d_ff=21504, activation="relu2"),
        tie_embeddings=False,
        dtype="bfloat16",
    ),
    "falcon-h1-7b": ModelConfig(
        vocab_size=130_048,
        d_model=3072,
        layers="P-" * 44,
        mamba2=Mamba2Config(nheads=24, headdim=128, d_state=256, norm="none"),
        attention=AttentionConfig(num_heads=12, num_kv_heads=2, head_dim=128),
        mlp=MLPConfig(d_ff=12288),
        tie_embeddings=False,
        dtype="bfloat16",
    ),
    "granite-4-h-350m": ModelConfig(
        vocab_size=100_352,
        d_model=768,
        layers=_GRANITE_350M,
        mamba2=Mamba2Config(nheads=48, headdim=32),
        attention=AttentionConfig(num_heads=12, num_kv_heads=4, rope_fraction=0.0),
        mlp=MLPConfig(d_ff=2048),
        dtype="bfloat16",
    ),
    "granite-4-h-small": ModelConfig(
        vocab_size=100_352,
        d_model=4096,
        layers=_GRANITE,
        mamba2=Mamba2Config(nheads=128),
        attention=AttentionConfig(
            num_heads=32, num_kv_heads=8, head_dim=128, rope_fraction=0.0
        ),
        moe=MoEConfig(num_experts=72, top_k=10, d_ff=768, shared_d_ff=1536),
        dtype="bfloat16",
    ),
    "nemotron-3-nano": ModelConfig(
        vocab_size=131_072,
        d_model=2688,
        layers="MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
        mamba2=Mamba2Config(nheads=64, ngroups=8),
        attention=AttentionConfig(
            num_heads=32, num_kv_heads=2, head_dim=128, rope_fraction=0.0
        ),
        moe=MoEConfig(
            num_experts=128,
            top_k=6,
            d_ff=1856,
            activation="relu2",
            scores="sigmoid",
            routed_multiplier=2.5,
            shared_d_ff=3712,
        ),
        tie_embeddings=False,
        dtype="bfloat16",
    ),
}
"""Model configs by name, activations in bfloat16."""

DELTA = {
    "qwen3.5-0.8b": DeltaConfig(num_value_heads=16, num_key_heads=16),
    "qwen3.5-9b": DeltaConfig(num_value_heads=32, num_key_heads=16),
}
"""Layers of the gated delta rule, those of `Qwen/Qwen3.5-0.8B` and `Qwen3.5-9B`."""
