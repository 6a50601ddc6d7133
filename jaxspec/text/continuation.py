"""One row's text as its tokens come: decoded, cut at its stops, and why it ended."""

from collections.abc import Iterable, Sequence
from typing import Literal

import tokenizers

from jaxspec.text.detokenizer import Detokenizer
from jaxspec.text.stop_strings import StopStrings

FinishReason = Literal["stop", "length", "error"]


class Continuation:
    """The text that a model adds to a prompt.

    Stop strings are no concern of the device's: the loop decodes a few steps, tokens are
    read here, and a row that has ended is marked as done.

    Attributes:
        tokens: those read, until the text ended. A stop is one of them.
        text: without the stop, and without what came after it.
        finish_reason: `"stop"` at a stop token or string, `"length"` at the budget,
            `"error"` where the logits were not finite; None while it goes on.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        prompt: Sequence[int],
        *,
        stop_tokens: Iterable[int] = (),
        stop_strings: Sequence[str] = (),
    ):
        """Begins an empty text.

        Args:
            tokenizer: of the model.
            prompt: tokens before the text.
            stop_tokens: tokens that end it, whether or not they are special.
            stop_strings: strings that end it, wherever they lie in its tokens.

        Raises:
            ValueError: on an empty stop string.
        """
        self._decoded = Detokenizer(tokenizer, prompt)
        self._stop_tokens = frozenset(stop_tokens)
        self._stops = StopStrings(stop_strings)
        self.tokens: list[int] = []
        self.text = ""
        self.finish_reason: FinishReason | None = None

    def extend(self, token: int) -> str:
        """Takes a token, and returns what it adds to `text`; nothing after the end."""
        if self.finish_reason is not None:
            return ""
        self.tokens.append(token)
        if token in self._stop_tokens:
            return self.finish("stop")
        piece = self._stops.extend(self._decoded.extend([token]))
        self.text += piece
        if self._stops.found is not None:
            self.finish_reason = "stop"
        return piece

    def finish(self, reason: FinishReason) -> str:
        """Ends the text, and returns what had been held back.

        That may complete a stop string, which is then the reason.
        """
        if self.finish_reason is not None:
            return ""
        piece = self._stops.extend(self._decoded.finish()) + self._stops.finish()
        self.text += piece
        self.finish_reason = "stop" if self._stops.found is not None else reason
        return piece
