"""All links of one peer: one standing link to each other peer carries every session between the two.

Frames become messages here, and what makes no sense is refused without ending the link. Beats on every link
measure it, keep the way warm and show within seconds that the other end has died or frozen.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from chainserve.errors import FrameError, LinkLostError
from chainserve.protocol.codec import decode, encode
from chainserve.protocol.fields import Limits
from chainserve.protocol.messages import Activations, Beat, Message, Probe
from chainserve.transport.beats import LOAD_BYTES, Beats, Load
from chainserve.transport.interface import Link, Transport
from chainserve.types import PeerId

logger = logging.getLogger(__name__)

RETRY_S = 300.0  # after this long on the second-best way, the best is tried again
SILENT_TICKS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """When a link beats, and when it counts as lost."""

    heartbeat_s: float = 1.0
    keepalive_s: float = 0.1  # while activations flow: TCP slows down after a quarter of a second of silence
    active_s: float = 1.0  # how long a link stays active after its last activations
    timeout_s: float = 5.0  # without anything received
    connect_s: float = 3.0  # for each way to a peer
    known_s: float = 5.0  # after which the record of who called is known, if it has one


@dataclass(slots=True)
class Traffic:
    """Bytes of frames."""

    bytes_sent: int = 0
    bytes_received: int = 0


@dataclass(slots=True)
class LinkCounters:
    """What went through the links so far."""

    frames_sent: int = 0
    bytes_sent: int = 0
    frames_received: int = 0
    bytes_received: int = 0
    links_made: int = 0
    links_lost: int = 0
    refused: Counter[str] = field(default_factory=Counter)  # frames, by FrameError.reason
    traffic: dict[tuple[str, str], Traffic] = field(default_factory=dict)  # by role of the peer and kind of link


class Links:
    """Connects, sends and receives. Handlers are plain functions, called from the task that reads the link.

    `lookup` tells a peer's published addresses, none if it is not known. `transports` come in order of preference.
    `on_lost` is called when a peer has no link any more, for whatever reason but our own `close`; `on_refused`
    for each frame the codec refuses. `role_of` sorts peers for the counters of traffic, into few roles.
    """

    def __init__(
        self,
        me: PeerId,
        transports: Sequence[Transport],
        *,
        lookup: Callable[[PeerId], Awaitable[Sequence[str]]],
        on_message: Callable[[PeerId, Message], None],
        on_lost: Callable[[PeerId, str], None],
        on_refused: Callable[[PeerId, FrameError], None],
        role_of: Callable[[PeerId], str] = lambda _peer: "peer",
        limits: Limits | None = None,
        timing: Timing | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._me = me
        self._transports = tuple(transports)
        self._lookup = lookup
        self._on_message = on_message
        self._on_lost = on_lost
        self._on_refused = on_refused
        self._role_of = role_of
        self._limits = limits or Limits()
        self._timing = timing or Timing()
        self._clock = clock
        self._standing: dict[PeerId, list[_Standing]] = {}
        self._attempts: dict[PeerId, asyncio.Task[None]] = {}
        self._worked: dict[PeerId, tuple[Transport, float]] = {}  # the way that worked, until when to prefer it
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self.counters = LinkCounters()

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where others can reach us, for our record."""
        return tuple(address for transport in self._transports for address in transport.addresses)

    async def listen(self) -> None:
        """Accept links over every transport; AddressError if one cannot listen where it was told to."""
        for transport in self._transports:
            await transport.listen(self._accepted)

    async def connect(self, peer: PeerId) -> None:
        """Make a link to `peer` if none stands; LinkLostError if there is no way. Calls at once share one try."""
        if peer in self._standing:
            return
        if peer == self._me or self._closed:
            raise LinkLostError(peer, "this peer itself" if peer == self._me else "links are closed")
        attempt = self._attempts.get(peer)
        if attempt is None:
            attempt = self._attempts[peer] = self._start(self._connect(peer))
        await self._shield(peer, attempt)  # whoever gives up leaves the try to the others

    async def send(self, peer: PeerId, message: Message) -> None:
        """Send over the standing link, waiting while it is full.

        LinkLostError if none stands or it breaks; FrameError if the message is larger than peers take.
        """
        standing = self._to(peer)
        frame = encode(message)
        if len(frame) > self._limits.max_frame_bytes:
            raise FrameError(
                f"{type(message).__name__} of {len(frame)} bytes, peers take {self._limits.max_frame_bytes}",
                reason="too-large",
            )
        if isinstance(message, Activations):
            standing.active_at = self._clock()
        if len(frame) < LOAD_BYTES:
            await self._send(standing, frame)
        else:
            await self._send_load(standing, frame)

    async def probe(self, peer: PeerId, num_bytes: int) -> None:
        """Send zeros over the standing link and wait until they have arrived: then its rate is known.

        At least LOAD_BYTES, or nothing is learnt. LinkLostError if no link stands or it breaks; the caller sets the
        deadline.
        """
        assert LOAD_BYTES <= num_bytes <= self._limits.max_probe_bytes
        probing = self._start(self._probe(self._to(peer), encode(Probe(num_bytes))))
        await self._shield(peer, probing)  # a frame that breaks off would break the link

    @property
    def num_strangers(self) -> int:
        """How many have called and not proved that they belong here."""
        return sum(transport.num_strangers for transport in self._transports)

    def standing(self) -> Counter[tuple[str, str]]:
        """How many links stand, by role of the peer and kind of link."""
        links = (standing.link for all_to in self._standing.values() for standing in all_to)
        return Counter((self._role_of(link.peer), link.kind) for link in links)

    def kind(self, peer: PeerId) -> str | None:
        """What carries the link to `peer`: 'direct', 'relayed', 'memory'; None if none stands."""
        return self._standing[peer][0].link.kind if peer in self._standing else None

    def round_trip_s(self, peer: PeerId) -> float | None:
        """Seconds to `peer` and back, as beats with nothing large before them take; None if not known."""
        return self._standing[peer][0].beats.round_trip_s if peer in self._standing else None

    def bytes_per_s(self, peer: PeerId) -> float | None:
        """What goes to `peer` in a second, by the last large frames; None if there were none on this link."""
        return self._standing[peer][0].beats.bytes_per_s if peer in self._standing else None

    async def next_beat(self, peer: PeerId) -> None:
        """Wait for the next beat of `peer`, which may tell the round trip; LinkLostError if no link stands."""
        await self._to(peer).news.wait()

    def is_active(self, peer: PeerId) -> bool:
        """Whether the link to `peer` has just been made, or carried activations."""
        return peer in self._standing and self._is_active(self._standing[peer][0])

    async def close(self) -> None:
        """Close all links and stop listening."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(transport.close() for transport in self._transports))

    def _to(self, peer: PeerId) -> "_Standing":
        """The link to `peer` that is used: always the same one, so that order holds. LinkLostError if none stands."""
        if peer not in self._standing:
            raise LinkLostError(peer, "no link stands")
        return self._standing[peer][0]

    def _is_active(self, standing: "_Standing") -> bool:
        return self._clock() - standing.active_at < self._timing.active_s

    async def _shield(self, peer: PeerId, task: asyncio.Task[None]) -> None:
        """Wait for a task that goes on if the caller gives up; LinkLostError once links are closed."""
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if self._closed:
                raise LinkLostError(peer, "links are closed") from None
            raise

    async def _connect(self, peer: PeerId) -> None:
        try:
            addresses = await self._lookup(peer)
            self._stand(await self._dial(peer, addresses), dialled=True)
        finally:
            del self._attempts[peer]

    async def _dial(self, peer: PeerId, addresses: Sequence[str]) -> Link:
        """Try the ways to `peer`, the one that worked last first."""
        ways = [transport for transport in self._transports if transport.can_reach(addresses)]
        worked, until = self._worked.pop(peer, (None, 0.0))
        if worked in ways and self._clock() < until:
            ways.sort(key=lambda way: way is not worked)
        reasons = []
        for way in ways:
            try:
                async with asyncio.timeout(self._timing.connect_s):
                    link = await way.connect(peer, addresses)
            except LinkLostError as error:
                reasons.append(error.reason)
            except TimeoutError:
                reasons.append(f"no answer within {self._timing.connect_s:g} s")
            else:
                self._worked[peer] = way, until if way is worked else self._clock() + RETRY_S
                return link
        raise LinkLostError(peer, "; ".join(reasons) or "it publishes no address we can use")

    async def _accepted(self, link: Link) -> None:
        if self._closed:
            return
        # A peer dials only when it has no link to us: what it dialled before is dead, though we have not noticed.
        if any(not standing.dialled for standing in self._standing.get(link.peer, ())):
            self._fall(link.peer, "the peer has made a new link")
        await asyncio.wait([self._stand(link, dialled=False)])

    def _stand(self, link: Link, *, dialled: bool) -> asyncio.Task[None]:
        """Use a link from now on; returns the task that lives as long as the link."""
        standing = _Standing(link, dialled, active_at=self._clock(), made_at=self._clock())
        standing.task = self._start(self._keep(standing))
        self._standing.setdefault(link.peer, []).append(standing)
        self.counters.links_made += 1
        logger.info("%s link with %s", link.kind, link.peer)
        return standing.task

    async def _keep(self, standing: "_Standing") -> None:
        peer = standing.link.peer
        reason = "this side failed"
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read(standing))
                tasks.create_task(self._beat(standing))
                tasks.create_task(self._watch(standing))
        except* LinkLostError as lost:
            reason = "; ".join(sorted({error.reason for error in lost.exceptions if isinstance(error, LinkLostError)}))
        finally:
            if standing in self._standing.get(peer, ()):
                self._fall(peer, reason)
            await standing.link.close()

    def _fall(self, peer: PeerId, reason: str) -> None:
        """Give up every link to `peer`: with two of them, what was lost in one must not be missed in the other."""
        for standing in self._standing.pop(peer):
            self.counters.links_lost += 1
            self._sort(standing)
            standing.news.set()
            if standing.task is not asyncio.current_task():
                standing.task.cancel()
        if not self._closed:
            logger.info("lost %s: %s", peer, reason)
            self._on_lost(peer, reason)

    async def _read(self, standing: "_Standing") -> None:
        peer, receive = standing.link.peer, standing.link.receive
        is_load = False
        while True:
            frame = await receive()
            is_load = is_load or len(frame) >= LOAD_BYTES  # until the beat behind it
            self.counters.frames_received += 1
            self.counters.bytes_received += len(frame)
            standing.traffic.bytes_received += len(frame)
            try:
                message = decode(frame, self._limits)
            except FrameError as error:
                self.counters.refused[error.reason] += 1
                logger.warning("refused a frame from %s: %s", peer, error)
                self._on_refused(peer, error)
                continue
            if isinstance(message, Beat):
                standing.take_beat(message, now_us=self._now_us(), behind_load=is_load)
                is_load = False
                continue
            if isinstance(message, Probe):
                continue
            if isinstance(message, Activations):
                standing.active_at = self._clock()
            self._on_message(peer, message)

    async def _beat(self, standing: "_Standing") -> None:
        timing = self._timing
        while True:
            standing.hurry.clear()
            if self._clock() - standing.made_at > self._timing.known_s:
                self._sort(standing)
            await self._send_beat(standing)
            active = self._is_active(standing)
            pause_s = min(timing.keepalive_s, timing.heartbeat_s) if active else timing.heartbeat_s
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await standing.hurry.wait()

    async def _watch(self, standing: "_Standing") -> None:
        # Silence counts in ticks of our own loop, so that a stall of ours is not taken for the other end's.
        link, num_silent = standing.link, 0
        while num_silent < SILENT_TICKS:
            before = link.num_arrivals
            await asyncio.sleep(self._timing.timeout_s / (SILENT_TICKS + 1))
            num_silent = num_silent + 1 if link.num_arrivals == before else 0
        raise LinkLostError(link.peer, f"silent for {self._timing.timeout_s:g} s")

    async def _probe(self, standing: "_Standing", frame: bytes) -> None:
        await self._news(standing, lambda: standing.beats.round_trip_s is not None)  # or the load tells nothing
        load = await self._send_load(standing, frame)
        await self._news(standing, lambda: not load.is_out)

    async def _news(self, standing: "_Standing", condition: Callable[[], bool]) -> None:
        """Wait for a beat that makes `condition` true."""
        while not condition():
            if standing not in self._standing.get(standing.link.peer, ()):
                raise LinkLostError(standing.link.peer, "lost while it was probed")
            await standing.news.wait()

    async def _send_load(self, standing: "_Standing", frame: bytes) -> Load:
        """Send a large frame, with a beat behind it that tells when it has arrived."""
        load = standing.beats.begin(now_us=self._now_us())
        try:
            await self._send(standing, frame)
        except BaseException:
            standing.beats.forget_loads()
            raise
        if not load.is_marked:
            await self._send_beat(standing)
        return load

    async def _send_beat(self, standing: "_Standing") -> None:
        await self._send(standing, encode(standing.beats.next_beat(now_us=self._now_us())))

    async def _send(self, standing: "_Standing", frame: bytes) -> None:
        standing.beats.sent_bytes += len(frame)  # first, so that a beat that waits behind it counts it
        await standing.link.send(frame)
        self.counters.frames_sent += 1
        self.counters.bytes_sent += len(frame)
        standing.traffic.bytes_sent += len(frame)

    def _sort(self, standing: "_Standing") -> None:
        """Count the link's bytes with those of its kind, where its peer belongs by what is known of it now."""
        key = self._role_of(standing.link.peer), standing.link.kind
        sorted_into = self.counters.traffic.setdefault(key, Traffic())
        if not standing.is_sorted:
            standing.is_sorted = True
            sorted_into.bytes_sent += standing.traffic.bytes_sent
            sorted_into.bytes_received += standing.traffic.bytes_received
        standing.traffic = sorted_into

    def _now_us(self) -> int:
        return int(self._clock() * 1e6)

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, LinkLostError):
            logger.error("a link failed on this side", exc_info=error)


@dataclass(slots=True, eq=False)
class _Standing:
    """A link in use, and what is known about it."""

    link: Link
    dialled: bool  # by us
    active_at: float  # when it last carried activations, or was made
    made_at: float
    traffic: Traffic = field(default_factory=Traffic)  # where its bytes are counted: its own, until they are sorted
    is_sorted: bool = False
    beats: Beats = field(default_factory=Beats)
    hurry: asyncio.Event = field(default_factory=asyncio.Event)  # a beat of ours is waited for
    news: asyncio.Event = field(default_factory=asyncio.Event)  # set for a moment at each beat of theirs
    task: asyncio.Task[None] = field(init=False)

    def take_beat(self, beat: Beat, *, now_us: int, behind_load: bool) -> None:
        self.beats.take(beat, now_us=now_us, behind_load=behind_load)
        if behind_load:
            self.hurry.set()
        self.news.set()
        self.news.clear()
