"""Sessions that are not open yet: they wait for pages that another one computes, or for their grammar."""

from collections.abc import Callable
from dataclasses import dataclass

from chainserve.protocol.messages import Open
from chainserve.types import PeerId, SessionId


@dataclass(frozen=True, slots=True)
class HeldBack:
    """An opening that waits, and since when; without `first` for its grammar, else for the pages of that session."""

    peer: PeerId
    message: Open
    since_s: float
    first: SessionId | None = None


class HeldBacks:
    """Openings that wait, each once, in the order in which they came."""

    def __init__(self) -> None:
        self._all: dict[SessionId, HeldBack] = {}

    def __contains__(self, session: SessionId) -> bool:
        return session in self._all

    def __len__(self) -> int:
        return len(self._all)

    def add(self, held: HeldBack) -> None:
        """Let it wait."""
        self._all[held.message.session] = held

    def take(self, message: Open) -> HeldBack | None:
        """It waits no more; None if this opening was not waited for any longer."""
        held = self._all.get(message.session)
        return self._all.pop(message.session) if held is not None and held.message is message else None

    def take_behind(self, first: SessionId) -> list[HeldBack]:
        """Those that waited for the pages of `first` wait no more."""
        return self._take(lambda held: held.first == first)

    def drop(self, peer: PeerId, session: SessionId | None = None) -> None:
        """Forget what this peer wanted opened: this session, or all."""
        self._take(lambda held: held.peer == peer and session in (None, held.message.session))

    def late(self, before_s: float) -> set[SessionId]:
        """For whose pages somebody has waited since before this time."""
        return {held.first for held in self._all.values() if held.first is not None and held.since_s < before_s}

    def _take(self, wanted: Callable[[HeldBack], bool]) -> list[HeldBack]:
        taken = [held for held in self._all.values() if wanted(held)]
        for held in taken:
            del self._all[held.message.session]
        return taken
