"""One session as its client sees it: phases, what each lane has cached, what is awaited. No I/O.

    OPENING --Opened--> IDLE --steps--> STEPPING --all outputs--> IDLE ... --Close or Failed--> OVER

In token mode there is one step, which begins with the session: `Open` holds the prompt, and the outputs are all tokens
up to the last one. The methods that act return the messages to send to the head; `receive` takes what comes back.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from chainserve.errors import ProtocolError
from chainserve.protocol.messages import (
    Activations,
    Choice,
    Close,
    Drafts,
    Failed,
    Message,
    Open,
    Opened,
    Reorder,
    Sampled,
    Stalled,
    Step,
    WireTensor,
    row_bytes,
)
from chainserve.protocol.sampling import Sampling
from chainserve.types import Chain, PeerId, SessionId


class Phase(Enum):
    """Where a session stands."""

    OPENING = auto()  # cache is being reserved along the chain
    IDLE = auto()  # nothing under way
    STEPPING = auto()  # outputs are awaited
    OVER = auto()  # closed or failed; nothing more may be sent


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows [first, first + step.num_tokens) of the caller's packed input make up one step."""

    step: Step
    first: int


@dataclass(frozen=True, slots=True)
class Output:
    """Hidden states (rows, hidden) of the next positions of one lane: part of what a step asked for."""

    lane: int
    tensor: WireTensor


class ClientSession:
    """The client's end of one session."""

    def __init__(
        self,
        session: SessionId,
        chain: Chain,
        *,
        model: str,
        client: PeerId,
        num_lanes: int,
        max_tokens: int,
        sampling: Sampling | None = None,
        prefix: tuple[bytes, ...] = (),
        ids: tuple[int, ...] = (),
    ) -> None:
        """With `sampling` in token mode: `ids` is the prompt, and `prefix` are the hashes of its pages."""
        self.id = session
        self.chain = chain
        self.phase = Phase.OPENING
        self.lengths = [len(ids)] if ids else [0] * num_lanes
        self.failure: Failed | None = None
        self._model = model
        self._client = client
        self._max_tokens = max_tokens
        self._sampling = sampling
        self._prefix = prefix
        self._ids = ids
        self._sequence = 0  # of the next step or reordering
        self._awaited: dict[int, tuple[int, int]] = {}  # lane -> positions [next, end) still to come

    def open(self) -> Open:
        """The message that opens the session along its chain."""
        return Open(
            session=self.id,
            model=self._model,
            hops=self.chain.hops,
            position=0,
            client=self._client,
            num_lanes=len(self.lengths),
            max_tokens=self._max_tokens,
            sampling=self._sampling,
            prefix=self._prefix,
            ids=self._ids,
        )

    def step(self, num_tokens: Sequence[int], num_outputs: Sequence[int], *, chunk_tokens: int) -> list[list[Chunk]]:
        """Continue lane i by num_tokens[i] tokens and ask for its last num_outputs[i] outputs.

        Returns chunks of at most `chunk_tokens` tokens, one list per message, for input rows packed lane by lane.
        Servers work on one chunk while the next is on its way.
        """
        self._expect(Phase.IDLE)
        chunks: list[Chunk] = []
        first = 0
        for lane, (num, outputs) in enumerate(zip(num_tokens, num_outputs, strict=True)):
            if not 0 <= outputs <= num:
                raise ValueError(f"{outputs} outputs of {num} tokens")
            start = self.lengths[lane]
            if start + num > self._max_tokens:
                raise ValueError(f"lane {lane} would grow to {start + num} of {self._max_tokens} tokens")
            lane_chunks = _split(
                self.id, self._sequence, lane, start, num, outputs=outputs, first=first, chunk_tokens=chunk_tokens
            )
            chunks += lane_chunks
            self._sequence += len(lane_chunks)
            if outputs:
                self._awaited[lane] = (start + num - outputs, start + num)
            self.lengths[lane] = start + num
            first += num
        if self._awaited:
            self.phase = Phase.STEPPING
        return list(_pack(chunks, chunk_tokens))

    def stalled(self) -> Stalled:
        """The message that asks who holds up the last step, whose number only the head knows in token mode."""
        return Stalled(self.id, max(0, self._sequence - 1))

    def drafts(self, ids: Sequence[int]) -> Drafts:
        """In token mode, what may come next."""
        self._expect(Phase.STEPPING)
        return Drafts(self.id, self.lengths[0], tuple(ids))

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget lane i's positions at or after lengths[i]; the next step tells the servers."""
        self._expect(Phase.IDLE)
        self.lengths = [min(pair) for pair in zip(lengths, self.lengths, strict=True)]

    def reorder(self, sources: Sequence[int]) -> Reorder:
        """Lane i continues from lane sources[i]."""
        self._expect(Phase.IDLE)
        self.lengths = [self.lengths[source] for source in sources]
        sequence, self._sequence = self._sequence, self._sequence + 1
        return Reorder(self.id, tuple(sources), sequence)

    def close(self) -> Close | None:
        """End the session; None if it is over already."""
        if self.phase is Phase.OVER:
            return None
        self.phase = Phase.OVER
        return Close(self.id)

    def receive(self, message: Message) -> Sequence[Output | Choice]:
        """Take what came from the chain; ProtocolError if it is not what was awaited."""
        match message:
            case Failed():
                if self.phase is not Phase.OVER:
                    self.phase = Phase.OVER
                    self.failure = message
                return []
            case _ if self.phase is Phase.OVER:
                return []  # still under way when we closed
            case Opened():
                self._expect(Phase.OPENING)
                self.phase = Phase.IDLE if self._sampling is None else Phase.STEPPING
                return []
            case Activations():
                self._expect(Phase.STEPPING)
                return list(self._outputs(message))
            case Sampled():
                self._expect(Phase.STEPPING)
                return list(self._choices(message))
            case _:
                raise ProtocolError(f"a client does not take {type(message).__name__}")

    def _outputs(self, message: Activations) -> Iterator[Output]:
        first = 0
        for step in message.steps:
            rows = rows_of(message.tensor, first, step.num_tokens)
            first += step.num_tokens
            if step.session != self.id:
                continue
            position, end = self._awaited.get(step.lane, (-1, -1))
            if step.start != position or step.start + step.num_tokens > end:
                raise ProtocolError(f"lane {step.lane}: output for positions {step.start}.. was not asked for")
            if step.start + step.num_tokens == end:
                del self._awaited[step.lane]
            else:
                self._awaited[step.lane] = (step.start + step.num_tokens, end)
            yield Output(step.lane, rows)
        if not self._awaited:
            self.phase = Phase.IDLE

    def _choices(self, message: Sampled) -> Iterator[Choice]:
        for choice in message.choices:
            if choice.session != self.id:
                continue
            end = choice.start + len(choice.ids)
            if self._sampling is None or choice.start != self.lengths[0] or end > self._max_tokens + 1:
                raise ProtocolError(f"tokens for positions {choice.start} to {end} were not asked for")
            if choice.is_last or end > self._max_tokens:
                self.phase = Phase.IDLE
            self.lengths = [end]
            yield choice

    def _expect(self, phase: Phase) -> None:
        if self.phase is not phase:
            raise ProtocolError(f"session is {self.phase.name.lower()}, not {phase.name.lower()}")


def rows_of(tensor: WireTensor, first: int, num: int) -> WireTensor:
    """Rows [first, first + num) of a matrix, without a copy."""
    width = tensor.shape[1]
    size = row_bytes(tensor.dtype, width)
    return WireTensor(tensor.dtype, (num, width), memoryview(tensor.data)[first * size : (first + num) * size])


def _split(
    session: SessionId, sequence: int, lane: int, start: int, num: int, *, outputs: int, first: int, chunk_tokens: int
) -> list[Chunk]:
    """Cut one lane's step into chunks, numbered from `sequence` on; only the last ones carry outputs."""
    chunks = []
    for index, offset in enumerate(range(0, num, chunk_tokens)):
        size = min(chunk_tokens, num - offset)
        wanted = min(size, max(0, offset + size - (num - outputs)))
        chunks.append(Chunk(Step(session, lane, start + offset, size, wanted, sequence + index), first + offset))
    return chunks


def _pack(chunks: Sequence[Chunk], chunk_tokens: int) -> Iterator[list[Chunk]]:
    """Put neighbouring chunks into messages of at most `chunk_tokens` tokens."""
    message: list[Chunk] = []
    size = 0
    for chunk in chunks:
        if message and size + chunk.step.num_tokens > chunk_tokens:
            yield message
            message, size = [], 0
        message.append(chunk)
        size += chunk.step.num_tokens
    if message:
        yield message
