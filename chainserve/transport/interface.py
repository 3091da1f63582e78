"""What a link is, whatever carries it.

A transport makes links; a link moves whole frames (bytes) in order between two peers that have proved who they
are. What is in a frame is the codec's business.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from chainserve.types import PeerId

HARD_FRAME_BYTES = 128 * 2**20
"""A link closes on frames larger than this: twice what the codec takes."""


class Link(Protocol):
    """An ordered, reliable stream of frames to one peer. Any task may send, one receives."""

    @property
    def peer(self) -> PeerId:
        """The peer at the other end; it has proved that it holds this id's key and the swarm's secret."""

    @property
    def kind(self) -> str:
        """What carries it: 'direct', 'relayed' or 'memory'."""

    @property
    def num_arrivals(self) -> int:
        """Grows when anything arrives, parts of large frames too: a slow link is not a dead one."""

    async def send(self, frame: bytes) -> None:
        """Hand over one frame, waiting while the link's buffer is full; LinkLostError if the link is gone."""

    async def receive(self) -> bytes:
        """Wait for the next frame; LinkLostError once the link is gone. Cancelling it loses nothing."""

    async def close(self) -> None:
        """Close; both ends' `receive` then raise LinkLostError. Closing twice does nothing."""


AcceptLink = Callable[[Link], Awaitable[None]]
"""Called for each link another peer makes to us. The link lives until the callable returns, and the callable must
return soon after the link is lost."""


class Transport(Protocol):
    """One way to make links."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where others can reach us this way, as strings for our record; empty if they cannot."""

    @property
    def num_strangers(self) -> int:
        """How many have called and not proved that they belong here."""

    async def listen(self, accept: AcceptLink) -> None:
        """Start to accept links; AddressError if that cannot be done where we were told to."""

    def can_reach(self, addresses: Sequence[str]) -> bool:
        """Whether one of a peer's published addresses is of this transport's kind."""

    async def connect(self, peer: PeerId, addresses: Sequence[str]) -> Link:
        """Make a link to `peer` at one of its published addresses; LinkLostError if none works.

        The caller sets the deadline.
        """

    async def close(self) -> None:
        """Stop accepting and close every link made or accepted."""
