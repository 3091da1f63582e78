"""A session that outlives its servers: when its chain breaks it goes on over another, from what it has sent so far.

It keeps the hidden states that it was given. After a loss they are sent once more, as one prefill over the new chain,
and the step that was under way ends as if nothing had happened. So whatever drives the session, sampling, beam search
or transformers' own `generate()`, sees a pause, and the same numbers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from chainserve.errors import ChainserveError, SessionLostError
from chainserve.protocol.messages import FailureCode
from chainserve.types import Chain, PeerId
from chainserve_client.chain_session import CLOSED_HERE, ChainSession

if TYPE_CHECKING:
    import torch  # clients that send no activations do without

logger = logging.getLogger(__name__)

MAX_RECOVERIES = 10
"""Chains that one session may wear out."""


class Why(Enum):
    """Why a session has to do without a server."""

    LOST = auto()
    FAILED = auto()  # it is there, but ended the session
    LEAVING = auto()  # it still serves


Reopen = Callable[[PeerId, Why], Awaitable[ChainSession]]
"""Opens a session again without this server; ChainserveError if there is no chain."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """How a session went on elsewhere."""

    peer: PeerId
    """The server that was lost, or left."""
    reason: str
    num_tokens: int
    """Sent again, of all lanes."""
    stall_s: float
    """From the loss to the outputs of the step that it interrupted."""


class Session:
    """Lanes of tokens over a chain of servers, and over another one if that breaks. Use one caller at a time."""

    def __init__(self, current: ChainSession, *, num_lanes: int, reopen: Reopen | None) -> None:
        """Without `reopen` the session is lost with its chain."""
        self._current = current
        self._reopen = reopen
        self._known: list[list[torch.Tensor]] = [[] for _ in range(num_lanes)]  # inputs so far, per lane
        self.num_recoveries = 0
        self.recoveries: list[Recovery] = []
        """Those that ended the step that was interrupted."""

    @property
    def chain(self) -> Chain:
        """The chain it runs on now."""
        return self._current.chain

    async def step(
        self, hidden: torch.Tensor, num_tokens: Sequence[int], num_outputs: Sequence[int]
    ) -> list[torch.Tensor]:
        """Continue every lane and return its outputs.

        `hidden` (sum of num_tokens, hidden size) holds the lanes' tokens one lane after another; the result has
        for each lane a tensor (num_outputs[lane], hidden size). SessionLostError if no chain could end the step.
        """
        for known, rows in zip(self._known, hidden.split(list(num_tokens)), strict=True):
            if len(rows):
                known.append(rows)
        if self._current.leaving is not None and await self._move(self._current.leaving):
            return await self._replay(num_outputs)
        try:
            return await self._current.step(hidden, num_tokens, num_outputs)
        except SessionLostError as error:
            return await self._recover(error, num_outputs)

    async def reorder(self, sources: Sequence[int]) -> None:
        """Let lane i continue from what lane sources[i] has cached."""
        self._known = [list(self._known[source]) for source in sources]
        await self._current.reorder(sources)

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget lane i's positions at or after lengths[i]."""
        self._known = [
            [_joined(known)[:length]] if known and length else []
            for known, length in zip(self._known, lengths, strict=True)
        ]
        self._current.state.truncate(lengths)

    async def close(self) -> None:
        """Free the session's cache along the chain."""
        self._reopen = None
        await self._current.close()

    async def _recover(self, error: SessionLostError, num_outputs: Sequence[int]) -> list[torch.Tensor]:
        """End the step that was interrupted on another chain, or on one after that."""
        lost_s = time.monotonic()
        while self._reopen and self.num_recoveries < MAX_RECOVERIES and error.code != CLOSED_HERE:
            logger.info("lost %s, going on elsewhere: %s", error.peer, error.reason)
            await self._current.close()
            why = Why.LOST if error.code == FailureCode.PEER_LOST else Why.FAILED
            try:
                self._current = await self._reopen(PeerId(error.peer), why)
            except ChainserveError as none:
                reason = f"{error.reason}; no other chain took over: {none}"
                raise SessionLostError(error.peer, reason, code=error.code) from error
            self.num_recoveries += 1
            try:
                outputs = await self._replay(num_outputs)
            except SessionLostError as again:
                error = again
                continue
            stall_s = time.monotonic() - lost_s
            self.recoveries.append(Recovery(PeerId(error.peer), error.reason, sum(self._num_known()), stall_s))
            return outputs
        raise error

    async def _move(self, leaving: PeerId) -> bool:
        """Change to a chain without a server that is about to go; False if there is none now."""
        if self._reopen is None:
            return False
        old = self._current
        old.leaving = None  # asked once
        try:
            self._current = await self._reopen(leaving, Why.LEAVING)
        except ChainserveError as error:
            logger.info("%s is leaving, and no other chain takes over: %s", leaving, error)
            return False
        await old.close()
        return True

    async def _replay(self, num_outputs: Sequence[int]) -> list[torch.Tensor]:
        """Send all that is known over a chain that has cached nothing."""
        rows = [row for known in self._known for row in known]
        return await self._current.step(_joined(rows), self._num_known(), num_outputs)

    def _num_known(self) -> list[int]:
        return [sum(map(len, known)) for known in self._known]


def _joined(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    import torch

    return torch.cat(list(rows))
