"""A server at work: every iteration takes what is ready of all its sessions and runs it in one packed forward.

Sessions that take their decode steps in the same iteration of one server stay together until something parts them, so
work moves in lists of sessions; what an iteration costs us hardly depends on how many they are.
"""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from chainserve.planning.chunks import along_chain, beside_decoding
from chainserve.planning.profile import StepTimes
from chainserve.simulator.engine import InvariantError
from chainserve.simulator.tokens.values import TokenServer
from chainserve.types import PeerId, Span

DECODING_S = 1.0
"""So long after its last step a session counts as decoding, as on live servers."""


class Session:
    """A request on its way, through as many chains as it takes; sorts by arrival."""

    __slots__ = (
        "chain",
        "finish_s",
        "first_token_s",
        "is_done",
        "num_input",
        "num_output",
        "num_produced",
        "num_received",
        "num_replays",
        "placed_s",
        "request",
        "start_s",
        "tail",
    )

    def __init__(self, request: int, *, num_input: int, num_output: int) -> None:
        self.request = request
        self.num_input = num_input
        self.num_output = num_output
        self.num_produced = 0  # tokens that a tail has sampled
        self.num_received = 0  # tokens that the client has
        self.num_replays = 0
        self.is_done = False  # finished, or refused
        self.tail: Leg | None = None  # of the chain it runs on
        self.start_s = self.placed_s = self.first_token_s = self.finish_s = math.nan
        self.chain = -1

    def __lt__(self, other: "Session") -> bool:
        return self.request < other.request

    @property
    def max_tokens(self) -> int:
        """Tokens to keep room for in each block."""
        return self.num_input + self.num_output


class Leg:
    """One server of a chain, for all sessions on that chain."""

    __slots__ = ("head", "next", "num_hops", "server", "span")

    def __init__(self, server: "Server", span: Span, *, head: "Leg | None") -> None:
        self.server = server
        self.span = span
        self.head = head or self
        self.next: Leg | None = None  # none at the tail
        self.num_hops = 1  # of the chain


class Chunk(NamedTuple):
    """Consecutive tokens of a prompt; the last chunk yields a new token."""

    leg: Leg
    session: Session
    num_tokens: int
    is_last: bool
    cut_from: int = 0
    """Tokens of the prompt that this is the rest of; 0: it is whole."""


class Work:
    """Steps for one server, or outputs of its sessions: on their way, waiting or being computed."""

    __slots__ = ("chunks", "decodes", "server")

    def __init__(
        self, server: "Server", decodes: dict[Leg, list[Session]] | None = None, chunks: list[Chunk] | None = None
    ) -> None:
        self.server = server
        self.decodes = {} if decodes is None else decodes  # one token for each session
        self.chunks = [] if chunks is None else chunks

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.decodes.values())) + sum(chunk.num_tokens for chunk in self.chunks)

    def drop(self, lost: set[Session]) -> None:
        """Forget these sessions."""
        self.decodes = without(self.decodes, lost)
        self.chunks = [chunk for chunk in self.chunks if chunk.session not in lost]


@dataclass(frozen=True, slots=True)
class ServerUse:
    """What a server did while it was there."""

    up_s: float
    busy_s: float
    num_iterations: int
    num_decoded: int  # tokens of decode steps
    num_prefilled: int  # tokens of prompts

    @property
    def utilization(self) -> float:
        """Share of its time that it computed; 0 if it was never there."""
        return self.busy_s / self.up_s if self.up_s else 0.0


class Server:
    """What a server holds and has to do, from one join to its failure or the end."""

    def __init__(
        self, server: TokenServer, *, now_s: float, applies_head: bool = False, cuts_prompts: bool = False
    ) -> None:
        """`applies_head`: whether the tail turns outputs into tokens. `cuts_prompts`: as the live servers do."""
        self.applies_head = applies_head
        self._times = server.speed if cuts_prompts and isinstance(server.speed, StepTimes) else None
        self._decoded_s: dict[Session, float] = {}  # when sessions took their last decode step
        self.peer: PeerId = server.peer
        self.is_up = True
        self.is_busy = False
        self.num_free = server.cache_tokens
        self._server = server
        self._step_s = server.speed.step_s
        self._decodes: dict[Leg, list[Session]] = {}
        self._chunks: dict[Session, deque[Chunk]] = {}  # in order within a session
        self._joined_s = self._began_s = now_s
        self._left_s: float | None = None
        self._busy_s = 0.0
        self._num_iterations = self._num_decoded = self._num_prefilled = 0

    @property
    def cache_tokens(self) -> int:
        return self._server.cache_tokens

    def reserve(self, session: Session, span: Span) -> None:
        """Keep room for all tokens of a session in the blocks of `span`; InvariantError if there is none."""
        num_tokens = session.max_tokens * len(span)
        if num_tokens > self.num_free:
            raise InvariantError(session.request, f"takes {num_tokens} tokens on {self.peer}, {self.num_free} are free")
        self.num_free -= num_tokens

    def release(self, session: Session, span: Span) -> None:
        """Give back what `reserve` took."""
        self.num_free += session.max_tokens * len(span)

    def add(self, work: Work) -> None:
        """Queue what has come."""
        for leg, sessions in work.decodes.items():
            if leg in self._decodes:
                self._decodes[leg] += sessions
            else:
                self._decodes[leg] = sessions
        for chunk in work.chunks:
            self._chunks.setdefault(chunk.session, deque()).append(chunk)

    def begin(self, now_s: float) -> tuple[Work, float] | None:
        """Start an iteration: what it runs and when it is done; None if nothing is ready."""
        if not self._decodes and not self._chunks:
            return None
        if self._times is not None:
            self._cut(now_s, self._times)
        work = self._take()
        self.is_busy = True
        self._began_s = now_s
        return work, now_s + self._forwards_s(work)

    def end(self, now_s: float) -> None:
        """End the iteration."""
        self.is_busy = False
        self._busy_s += now_s - self._began_s

    def fail(self, now_s: float) -> None:
        """Stop for good, in the middle of an iteration or not."""
        if self.is_busy:
            self.end(now_s)
        self.is_up = False
        self._left_s = now_s

    def drop(self, lost: set[Session]) -> None:
        """Forget what waits for these sessions."""
        self._decodes = without(self._decodes, lost)
        self._chunks = {session: queue for session, queue in self._chunks.items() if session not in lost}

    def use(self, now_s: float) -> ServerUse:
        """What it did until now, an iteration that runs left out."""
        return ServerUse(
            up_s=(now_s if self._left_s is None else self._left_s) - self._joined_s,
            busy_s=self._busy_s,
            num_iterations=self._num_iterations,
            num_decoded=self._num_decoded,
            num_prefilled=self._num_prefilled,
        )

    def _take(self) -> Work:
        """Remove what the next iteration runs: decode steps, then one chunk of each prompt, the shortest first.

        At most max_batch_tokens tokens, or one chunk if that alone is longer.
        """
        work, room = Work(self), self._server.max_batch_tokens
        if self._decodes:
            work.decodes, self._decodes = split(self._decodes, room)
            room -= sum(map(len, work.decodes.values()))
        if self._chunks:
            for chunk in sorted((queue[0] for queue in self._chunks.values()), key=lambda chunk: chunk.num_tokens):
                room -= chunk.num_tokens
                if room < 0 and (work.decodes or work.chunks):
                    break
                work.chunks.append(chunk)
                queue = self._chunks[chunk.session]
                queue.popleft()
                if not queue:
                    del self._chunks[chunk.session]
        return work

    def _cut(self, now_s: float, times: StepTimes) -> None:
        """Cut the first chunk of every prompt as the live server does, which then decides again."""
        for sessions in self._decodes.values():
            self._decoded_s |= dict.fromkeys(sessions, now_s)
        self._decoded_s = {
            session: at_s for session, at_s in self._decoded_s.items() if now_s - at_s < DECODING_S and session.tail
        }
        num_decoding = len(self._decoded_s)
        for queue in self._chunks.values():
            first = queue[0]
            num_blocks = len(first.leg.span)
            prompt_tokens = first.cut_from or first.num_tokens
            if num_decoding:
                size = beside_decoding(times, num_blocks=num_blocks, num_decoding=num_decoding)
            else:
                size = along_chain(times, num_blocks=num_blocks, num_tokens=prompt_tokens, num_hops=first.leg.num_hops)
            size = min(size, self._server.max_batch_tokens)
            if first.num_tokens > size:
                queue[0] = first._replace(num_tokens=first.num_tokens - size, cut_from=prompt_tokens)
                queue.appendleft(first._replace(num_tokens=size, is_last=False))

    def _forwards_s(self, work: Work) -> float:
        """Seconds of an iteration: one packed forward for each span its sessions run here."""
        forwards: dict[Span, list[int]] = {}  # tokens of decode steps, those of prompts, and outputs of the model
        for leg, sessions in work.decodes.items():
            counts = forwards.setdefault(leg.span, [0, 0, 0])
            counts[0] += len(sessions)
            counts[2] += len(sessions) if leg.next is None else 0
        for chunk in work.chunks:
            counts = forwards.setdefault(chunk.leg.span, [0, 0, 0])
            counts[1] += chunk.num_tokens
            counts[2] += chunk.is_last and chunk.leg.next is None
        seconds = 0.0
        for span, (num_decode, num_prefill_tokens, num_outputs) in forwards.items():
            seconds += self._step_s(
                num_decode,
                num_prefill_tokens,
                num_blocks=len(span),
                num_outputs=num_outputs if self.applies_head else 0,
            )
            self._num_decoded += num_decode
            self._num_prefilled += num_prefill_tokens
        self._num_iterations += 1
        return seconds


def without(decodes: dict[Leg, list[Session]], lost: set[Session]) -> dict[Leg, list[Session]]:
    """The decode steps of all other sessions."""
    kept = {leg: [session for session in sessions if session not in lost] for leg, sessions in decodes.items()}
    return {leg: sessions for leg, sessions in kept.items() if sessions}


def split(
    decodes: dict[Leg, list[Session]], num_sessions: int
) -> tuple[dict[Leg, list[Session]], dict[Leg, list[Session]]]:
    """The first `num_sessions` decode steps in the order of `decodes`, and the others."""
    if sum(map(len, decodes.values())) <= num_sessions:
        return decodes, {}
    first: dict[Leg, list[Session]] = {}
    rest: dict[Leg, list[Session]] = {}
    for leg, sessions in decodes.items():
        for part, into in ((sessions[:num_sessions], first), (sessions[num_sessions:], rest)):
            if part:
                into[leg] = part
        num_sessions = max(0, num_sessions - len(sessions))
    return first, rest


def chunks_of(session: Session, head: Leg, *, chunk_tokens: int | None) -> Iterable[Chunk]:
    """What the client knows of a session, cut for the way: its prompt, and tokens it got before a replay."""
    num_left = session.num_input + session.num_received
    while num_left:
        num_tokens = min(num_left, chunk_tokens or num_left)
        num_left -= num_tokens
        yield Chunk(head, session, num_tokens, is_last=not num_left)
