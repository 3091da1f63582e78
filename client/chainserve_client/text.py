"""Tokens to text as they come: whole characters only, and nothing beyond a stop text."""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

CONTEXT_TOKENS = 6
"""Tokens decoded again before new ones, as tokenizers join neighbours; also the most tokens of one character."""


class TextStream:
    """Turns token ids into pieces of text that can be shown at once."""

    def __init__(self, decode: Decode, stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._num_read = 0  # tokens whose text is out or held
        self._held = ""  # text that might be the beginning of a stop text
        self.stopped = False

    def push(self, token: int) -> str:
        """Add a token; returns the text that is certain now (maybe none)."""
        self._ids.append(token)
        text = self._unread()
        if text.endswith("\ufffd") and len(self._ids) - self._num_read < CONTEXT_TOKENS:
            return ""  # the middle of a character
        self._num_read = len(self._ids)
        return self._release(text)

    def finish(self) -> str:
        """The text still held back, when no more tokens come."""
        text = self._release(self._unread())
        self._num_read = len(self._ids)
        rest, self._held = self._held, ""
        return text if self.stopped else text + rest

    def _unread(self) -> str:
        first = max(0, self._num_read - CONTEXT_TOKENS)
        read = self._decode(self._ids[first : self._num_read])
        return self._decode(self._ids[first:])[len(read) :]

    def _release(self, text: str) -> str:
        """Pass on what cannot be part of a stop text."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-size:])), 0)
