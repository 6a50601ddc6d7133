"""Cuts a text at the first of some strings, while it is still being written."""

from collections.abc import Sequence


class StopStrings:
    """A text, in pieces, up to the first stop string.

    The first is the one that is complete first; of several that end at the same character,
    the longest. Neither depends on where the pieces were cut.

    Attributes:
        found: the stop string that ended the text, or None.
    """

    def __init__(self, stops: Sequence[str]):
        """Waits for some strings.

        Args:
            stops: perhaps none.

        Raises:
            ValueError: on an empty string.
        """
        if "" in stops:
            raise ValueError("A stop string must not be empty.")
        self._stops = sorted({*stops}, key=len, reverse=True)
        self._held = ""
        self.found: str | None = None

    def extend(self, piece: str) -> str:
        """Takes a piece, and returns the text that is certain to lie before any stop."""
        if self.found is not None:
            return ""
        text = self._held + piece
        ends = [
            text.find(stop) + len(stop) if stop in text else None
            for stop in self._stops
        ]
        if complete := [end for end in ends if end is not None]:
            end = min(complete)
            self.found, self._held = self._stops[ends.index(end)], ""
            return text[: end - len(self.found)]
        held = self._possible(text)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """Returns what was held back: the text ends here."""
        held, self._held = self._held, ""
        return held

    def _possible(self, text: str) -> int:
        """Characters at the end of a text that may be the beginning of a stop."""
        longest = len(self._stops[0]) - 1 if self._stops else 0
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                return size
        return 0
