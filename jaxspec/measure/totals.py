"""What `bench decode` sums over prompts: tokens, seconds, and texts that agree."""

from typing import Any

import numpy as np

from jaxspec import metrics
from jaxspec.measure import peer as peers


class Agreement:
    """How many texts are a baseline's, token for token or up to a near tie."""

    def __init__(self):
        self.texts, self.identical, self.near_ties = 0, 0, 0

    def compare(self, target, baseline, state) -> None:
        """Adds the texts of some rows; `target` is what wrote both."""
        for row in range(len(state.lengths)):
            found = metrics.compare(target.model, target.params, baseline, state, row)
            self.texts += 1
            self.identical += found.identical
            self.near_ties += found.near_tie

    def record(self) -> dict[str, int]:
        """The counts, and how many differ."""
        return {
            "texts": self.texts,
            "identical": self.identical,
            "near_ties": self.near_ties,
            "different": self.texts - self.identical - self.near_ties,
        }


class Total:
    """What a drafter did, or the autoregressive loop."""

    def __init__(self):
        self.tokens, self.seconds, self.calls = 0, 0.0, 0
        self.by_depth, self.drafted = 0, 0
        self.agreement = Agreement()

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds

    def add(self, state, info, seconds: float) -> None:
        """Adds some rows; `info` is None of the autoregressive loop."""
        self.tokens += int((state.lengths - state.prompt_lengths).sum())
        self.seconds += seconds
        if info is not None:
            kept = np.asarray(info.kept.sum(0), np.int64)
            self.by_depth = self.by_depth + kept
            self.calls += int(info.target_calls.sum())
            self.drafted += int(info.drafted.sum())

    def record(self, baseline: "Total") -> dict[str, Any]:
        """What it did, beside the autoregressive loop."""
        return {
            "tokens": self.tokens,
            "target_calls": self.calls,
            "block_efficiency": self.tokens / self.calls,
            "drafted": self.drafted,
            "acceptance_by_depth": (self.by_depth[1:] / self.calls).tolist(),
            "tokens_per_second": self.speed,
            "autoregressive_tokens_per_second": baseline.speed,
            "speedup": self.speed / baseline.speed,
            **self.agreement.record(),
        }


class PeerTotal:
    """What a peer did."""

    def __init__(self, peer: peers.Transformers):
        peer.reset()
        self.peer, self.agreement = peer, Agreement()

    def decode(
        self,
        target,
        prompt: list[int],
        repeats: int,
        settings: dict[str, Any],
        baseline,
    ) -> None:
        """Continues a prompt, and compares with the one row of `baseline`."""
        text = self.peer.decode(prompt, repeats, settings)
        if settings["temperature"] > 0.0:  # the noise is not ours
            return
        tokens = np.asarray(baseline.tokens).copy()
        tokens[0, : len(text)] = text
        other = baseline.replace(tokens=tokens, lengths=np.array([len(text)]))
        self.agreement.compare(target, baseline, other)

    def record(self, baseline: Total) -> dict[str, Any]:
        """What it did, beside our autoregressive loop."""
        speed = self.peer.tokens / self.peer.seconds if self.peer.tokens else 0.0
        return {
            "tokens_per_second": speed,
            "autoregressive_over_peer": baseline.speed / speed if speed else None,
            **self.agreement.record(),
        }
