"""The card of a trained model: what it is, what it read, how good it is."""

from typing import Any

from jaxspec.train.recipes import Recipe

_CARD = """\
# {name}

A language model of Python source, small enough to ship and to run on a CPU, made to try
speculative decoding with. It is no use for anything else.

| | |
|---|---|
| layers | `{layers}` (M Mamba-2, * attention, - feed-forward) |
| parameters | {parameters:,}, bfloat16 in the file, float32 when loaded |
| vocabulary | {vocab_size} byte-level BPE tokens |
| trained for | {steps:,} steps of {batch_size} x {length} tokens |
| optimiser | AdamW, peak learning rate {learning_rate:g}, let down over the last half |
| objective | {objective} |
| held out | {held_out:.3f} bits per byte on {num_held_out} modules never trained on |
| `gzip -9` of the same files, one by one | {gzip:.3f} bits per byte ({ratio:.2f} x) |

![loss and held-out bits per byte](curve.png)

**Data.** The standard library of CPython {python}, without its tests, `idlelib`, `lib2to3`
and installed packages: {num_train} modules, {train_bytes:,} bytes. A module is held out by
a hash of its name (`jaxspec.train.corpus.is_held_out`), {held_out_bytes:,} bytes in all.
`manifest.json` lists every file with its SHA-256. The text is under the PSF-2.0 licence of
Python; none of it is redistributed here. The weights are under jaxspec's licence.

**Again.** `{again}` on the same Python.
"""


def write(
    recipe: Recipe,
    result: dict[str, Any],
    manifest: dict[str, Any],
    distilled: bool,
    again: str,
) -> str:
    """Returns the card in Markdown.

    Args:
        recipe: how the model was trained.
        result: `parameters`, `steps`, `held_out_bits_per_byte`, `gzip_bits_per_byte`.
        manifest: of the corpus.
        distilled: whether a teacher's laws took the place of the text.
        again: the command that trains the same.
    """
    held_out = [entry["held_out"] for entry in manifest["modules"].values()]
    gzip = result["gzip_bits_per_byte"]
    return _CARD.format(
        name=recipe.name,
        layers=recipe.config.layers,
        parameters=result["parameters"],
        vocab_size=recipe.config.vocab_size,
        steps=result["steps"],
        batch_size=recipe.batch_size,
        length=recipe.length,
        learning_rate=recipe.learning_rate,
        objective="cross entropy with the target's laws" if distilled else "next token",
        held_out=result["held_out_bits_per_byte"],
        num_held_out=sum(held_out),
        gzip=gzip,
        ratio=result["held_out_bits_per_byte"] / gzip,
        python=manifest["python"],
        num_train=len(held_out) - sum(held_out),
        train_bytes=manifest["train_bytes"],
        held_out_bytes=manifest["held_out_bytes"],
        again=again,
    )
