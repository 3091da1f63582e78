"""The chain that a session runs on, and another one when that breaks."""

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum, auto

from chainserve.errors import ChainserveError, SessionLostError
from chainserve.protocol.messages import FailureCode
from chainserve.types import PeerId
from chainserve_client.chain_session import CLOSED_HERE, ChainSession

logger = logging.getLogger(__name__)

MAX_RECOVERIES = 10
"""Chains that one session may wear out."""


NO_OTHER_HELPS = (CLOSED_HERE, FailureCode.BAD_GRAMMAR)
"""Codes of a session that would end on another chain in the same way."""


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


class Lifeline:
    """Keeps a session on a chain."""

    def __init__(self, current: ChainSession, reopen: Reopen | None) -> None:
        """Without `reopen` the session is lost with its chain."""
        self.current = current
        self.num_recoveries = 0
        self.recoveries: list[Recovery] = []
        """Those that ended the step that was interrupted."""
        self._reopen = reopen
        self._lost_s: float | None = None  # since when outputs are missing
        self._error: SessionLostError | None = None

    async def replace(self, error: SessionLostError) -> None:
        """Open the session on another chain, which has cached nothing yet; raises `error` if there is none."""
        self._lost_s = self._lost_s or time.monotonic()
        self._error = error
        if self._reopen is None or self.num_recoveries >= MAX_RECOVERIES or error.code in NO_OTHER_HELPS:
            raise error
        logger.info("lost %s, going on elsewhere: %s", error.peer, error.reason)
        await self.current.close()
        why = Why.LOST if error.code == FailureCode.PEER_LOST else Why.FAILED
        try:
            self.current = await self._reopen(PeerId(error.peer), why)
        except ChainserveError as none:
            reason = f"{error.reason}; no other chain took over: {none}"
            raise SessionLostError(error.peer, reason, code=error.code) from error
        self.num_recoveries += 1

    def arrived(self, num_tokens: int) -> None:
        """Outputs came; `num_tokens` had been sent again for them if the chain is a new one."""
        if self._lost_s is not None and self._error is not None:
            stall_s = time.monotonic() - self._lost_s
            self.recoveries.append(Recovery(PeerId(self._error.peer), self._error.reason, num_tokens, stall_s))
            self._lost_s = self._error = None

    async def move_if_leaving(self) -> bool:
        """Change to a chain without a server that is about to go, if there is one; whether we did."""
        old, leaving = self.current, self.current.leaving
        if leaving is None or self._reopen is None:
            return False
        old.leaving = None  # asked once
        try:
            self.current = await self._reopen(leaving, Why.LEAVING)
        except ChainserveError as error:
            logger.info("%s is leaving, and no other chain takes over: %s", leaving, error)
            return False
        await old.close()
        return True

    async def close(self) -> None:
        """Free the session's cache along the chain."""
        self._reopen = None
        await self.current.close()
