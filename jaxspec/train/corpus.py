"""The text that every machine has: the CPython standard library.

Tests, `idlelib`, `lib2to3` and installed packages are left out. A module is held out of
training by a hash of its name, so the choice was made before any model saw a byte.
"""

import gzip
import hashlib
import pathlib
import sys
import sysconfig
from typing import Any, NamedTuple

import numpy as np

EXCLUDED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "__pycache__"}


class Module(NamedTuple):
    """One file of the standard library."""

    name: str  # dotted; that of a package ends in `__init__`
    text: str
    sha256: str  # of the file
    held_out: bool


def is_held_out(name: str) -> bool:
    """One module in twenty, by the SHA-256 of its dotted name."""
    return hashlib.sha256(name.encode()).digest()[0] % 20 == 0


def read_modules(root: str | pathlib.Path | None = None) -> list[Module]:
    """Reads the standard library of this Python, or the one in `root`, sorted by name.

    Raises:
        ValueError: if there are no modules.
    """
    root = pathlib.Path(root or sysconfig.get_paths()["stdlib"])
    modules = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if EXCLUDED.intersection(parts):
            continue
        raw = path.read_bytes()
        text = raw.decode("utf-8", errors="ignore")
        name = ".".join(parts).removesuffix(".py")
        if text.strip():
            digest = hashlib.sha256(raw).hexdigest()
            modules.append(Module(name, text, digest, is_held_out(name)))
    if not modules:
        raise ValueError(f"{root} holds no Python modules.")
    return modules


def manifest(modules: list[Module]) -> dict[str, Any]:
    """Which files a run used: enough to check, nothing to redistribute."""
    return {
        "python": sys.version.split()[0],
        "train_bytes": sum(len(m.text.encode()) for m in modules if not m.held_out),
        "held_out_bytes": sum(len(m.text.encode()) for m in modules if m.held_out),
        "modules": {
            m.name: {
                "sha256": m.sha256,
                "bytes": len(m.text.encode()),
                "held_out": m.held_out,
            }
            for m in modules
        },
    }


def gzip_bits_per_byte(texts: list[str]) -> float:
    """Bits per byte of `gzip -9`, each text on its own."""
    texts_bytes = [text.encode() for text in texts]
    packed = sum(len(gzip.compress(text, 9)) for text in texts_bytes)
    return 8 * packed / sum(map(len, texts_bytes))


def epoch(
    documents: list[np.ndarray], length: int, seed: int, index: int
) -> np.ndarray:
    """The sequences of one epoch, `[n, length + 1]` int32; a function of its arguments.

    Documents (each ends in its end-of-text token) are joined in random order and cut;
    the cuts are visited in random order. Neighbours share one token, the last input of
    none and the first of the next.
    """
    rng = np.random.default_rng((seed, index))
    order = rng.permutation(len(documents))
    stream = np.concatenate([documents[i] for i in order])
    stream = stream[rng.integers(length) :]  # other cuts in every epoch
    count = (len(stream) - 1) // length
    starts = rng.permutation(count) * length
    return stream[starts[:, None] + np.arange(length + 1)[None]].astype(np.int32)
