"""Turns tokens into text as they come.

A token has no text of its own: decoders drop the first space of a text, characters are
spread over tokens, special tokens are skipped. With `decode` the tokenizer's, skipping
special tokens, the text that tokens `new` add to a prompt is therefore

    continuation(prompt, new) = decode(prompt + new) less decode(prompt),

less their common beginning, to be exact. `Detokenizer` gives the same in pieces, and
decodes only the last few tokens again for each.
"""

import os
import re
from collections.abc import Iterable, Sequence

import tokenizers

CONTEXT = 8
"""Visible tokens that are decoded again: more than one character is spread over."""
LONGEST = 4 * CONTEXT
"""Tokens that are decoded at once before all but the last are forgotten."""
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # where a vocabulary falls back to bytes
_INCOMPLETE = "\ufffd"  # stands for bytes that are no character, or none yet


def continuation(
    tokenizer: tokenizers.Tokenizer, prompt: Sequence[int], new: Sequence[int]
) -> str:
    """Decodes what `new` tokens add to the text of a prompt."""
    before = tokenizer.decode([*prompt])
    whole = tokenizer.decode([*prompt, *new])
    return whole[len(os.path.commonprefix([before, whole])) :]


class Detokenizer:
    """The text after a prompt, in pieces that later tokens cannot change.

    Joined, the pieces of `extend` and `finish` are `continuation` of the same tokens.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, prompt: Iterable[int] = ()):
        """Reads the end of a prompt.

        Args:
            tokenizer: of the model.
            prompt: tokens before the text, which are not part of it.
        """
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special = {i for i, token in added.items() if token.special}
        visible = [token for token in prompt if self._is_visible(token)]
        start = max(0, len(visible) - CONTEXT)
        while start > 0 and self._is_byte(visible[start]):
            start -= 1  # a run of bytes is decoded whole
        self._window = visible[start:]
        self._before: str | None = tokenizer.decode(self._window)
        self._shown = len(self._before)  # characters of the window's text

    def extend(self, tokens: Iterable[int]) -> str:
        """Takes further tokens, and returns the text that is certain by now."""
        self._window += [token for token in tokens if self._is_visible(token)]
        if not self._window or self._is_byte(self._window[-1]):
            return ""  # what its bytes stand for, the run's next byte may change
        text = self._tokenizer.decode(self._window)
        piece = self._show(text, len(text) - text.endswith(_INCOMPLETE))
        self._forget(len(text) - self._shown)
        return piece

    def finish(self) -> str:
        """Returns what was held back: there are no further tokens."""
        text = self._tokenizer.decode(self._window)
        return self._show(text, len(text))

    def _show(self, text: str, end: int) -> str:
        """The window's text up to `end`, less what was shown before."""
        start = self._shown
        if self._before is not None:
            start = len(os.path.commonprefix([self._before, text]))
        if start >= end:
            return ""
        self._before, self._shown = None, end
        return text[start:end]

    def _forget(self, held: int) -> None:
        """Cuts the window to its last tokens, the last `held` characters not yet shown."""
        if self._before is None and len(self._window) > LONGEST:
            self._window = self._window[-CONTEXT:]
            self._shown = len(self._tokenizer.decode(self._window)) - held

    def _is_visible(self, token: int) -> bool:
        """Tells whether decoding shows the token."""
        is_known = self._tokenizer.id_to_token(token) is not None
        return is_known and token not in self._special

    def _is_byte(self, token: int) -> bool:
        return _BYTE.fullmatch(self._tokenizer.id_to_token(token)) is not None
