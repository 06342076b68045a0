"""Token ids to text as they come, never half a character."""

from __future__ import annotations

from rebus.data.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"  # what an incomplete UTF-8 sequence decodes to


class Detokenizer:
    """Turns a growing list of token ids into pieces of text that join to ``tokenizer.decode`` of all of them.

    Each step decodes a window that starts at the tokens of the last piece, so the cost a token does not grow with the
    length. A piece whose last character may be incomplete is held back until more tokens complete it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._told = 0  # tokens of the window whose text was returned

    def push(self, token_id: int) -> str:
        """The text that ``token_id`` completes; often empty for a token that holds part of a character."""
        self._window.append(token_id)
        return self._take(final=False)

    def finish(self) -> str:
        """What was held back; bytes that never became a character read as U+FFFD."""
        return self._take(final=True)

    def _take(self, *, final: bool) -> str:
        before = self._tokenizer.decode(self._window[: self._told])
        text = self._tokenizer.decode(self._window)
        if text.endswith(_REPLACEMENT) and not final:
            return ""
        self._window, self._told = self._window[self._told :], len(self._window) - self._told
        return text[len(before) :]
