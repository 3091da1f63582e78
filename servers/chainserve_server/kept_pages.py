"""Which pages of a session are computed for certain, so that later sessions with the same prefix are spared them.

Hashes are made from the tokens that went through the blocks, whatever the client says of its prompt: a page that is
kept is what its hash says.
"""

from collections.abc import Sequence
from itertools import takewhile

from chainserve.protocol.messages import Step
from chainserve.protocol.pages import PAGE_TOKENS, page_hashes


def num_common(one: Sequence[bytes], other: Sequence[bytes]) -> int:
    """Pages that two prompts begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


class CertainPages:
    """The pages of one session in token mode, as its steps come to one server."""

    def __init__(self, model: str, prefix: Sequence[bytes]) -> None:
        """`prefix` are the hashes that the session was opened with: those up to its first step are cached."""
        self._model = model
        self._prefix = prefix
        self._hashes: list[bytes] | None = None  # None: no step has come yet
        self._ids: list[int] = []  # behind the pages that have hashes
        self._is_over = False  # whether the session has gone back behind a page that was certain: nobody should

    def take(self, step: Step) -> tuple[bytes, ...]:
        """Take the tokens of the next step; hashes of all pages before it, or nothing if no page was added.

        A step forgets what is cached from its start on, so what is before that is certain.
        """
        if self._hashes is None:
            self._hashes = list(self._prefix[: step.start // PAGE_TOKENS])
        certain = len(self._hashes) * PAGE_TOKENS
        self._is_over |= step.start < certain
        if self._is_over:
            return ()
        del self._ids[step.start - certain :]
        new = page_hashes(self._model, self._ids, after=self._hashes[-1] if self._hashes else b"")
        self._hashes += new
        del self._ids[: len(new) * PAGE_TOKENS]
        self._ids += step.ids
        return tuple(self._hashes) if new else ()
