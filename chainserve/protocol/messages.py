"""What peers say to each other once a link stands.

A session runs over a chain of servers: the client sends to the head, every server to the next one, the tail
back to the client. First the client asks heads for a place: `Admit`, answered by `Admitted`, `Queued` (and `Admitted`
later) or `Failed`. `Open`, `Activations`, `Reorder`, `Stalled` and `Close` travel down the chain in order of sending;
`Opened` and outputs go from the tail to the client; `Failed` travels both ways from where the fault was seen, `Leaving`
and the answer to `Stalled` up to the client. `Ask` and `Answer` belong to no session.

In activation mode the client sends hidden states and gets hidden states. In token mode `Open` says how to sample and
takes the prompt to the head. From then on the tail chooses tokens and tells the client and the head, `Sampled`, and
the head goes on with them: the client is not in the loop, unless it drafts tokens itself, `Drafts`.
"""

from dataclasses import dataclass
from enum import StrEnum

from chainserve.protocol.sampling import Sampling
from chainserve.types import Hop, PeerId, SessionId

DTYPES: dict[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Element types that activations may have on the wire, with bytes per element."""

INT8 = "int8"
"""Activations may travel as integers too: each row as the scales of its groups (float32), then a byte per element."""
INT8_GROUP = 64
"""Neighbours in a row that share a scale; a row's last group may be smaller."""
WIRE_TYPES = (*DTYPES, INT8)


def row_bytes(dtype: str, width: int) -> int:
    """Bytes that a row of `width` elements takes on the wire."""
    return width + 4 * -(-width // INT8_GROUP) if dtype == INT8 else width * DTYPES[dtype]


@dataclass(frozen=True, slots=True)
class WireTensor:
    """A dense row-major tensor: element type, shape, raw little-endian bytes; matrices also as `INT8`."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Admit:
    """Ask the head of a chain for a place: cache for `num_tokens` tokens, for the session to be opened there.

    `hops` names the chain as the plan of `epoch` has it. To ask again changes nothing and is answered as things are
    then; `Close` withdraws. Who had begun, and lost its chain, comes before those that have not.
    """

    session: SessionId
    hops: tuple[Hop, ...]
    epoch: int
    num_tokens: int
    has_begun: bool = False


@dataclass(frozen=True, slots=True)
class Admitted:
    """The session may be opened, within `lease_ms` milliseconds."""

    session: SessionId
    lease_ms: int


@dataclass(frozen=True, slots=True)
class Queued:
    """The chain is full. So many wait before this session, for about `wait_ms` milliseconds."""

    session: SessionId
    position: int
    wait_ms: int


@dataclass(frozen=True, slots=True)
class Open:
    """Reserve cache for a session at every hop of its chain.

    `position` is the index in `hops` of the server this message is for. Each of `num_lanes` sequences may grow
    to `max_tokens` tokens. `model` is the digest of the model the session is for. With `sampling` it runs in token
    mode, with one lane, and ends at token `max_tokens` at the latest. `prefix` are the hashes of the prompt's pages
    (`protocol.pages`), of which every hop so far had the first `num_cached` tokens cached. `ids` are all tokens of the
    prompt, which only the head gets.
    """

    session: SessionId
    model: str
    hops: tuple[Hop, ...]
    position: int
    client: PeerId
    num_lanes: int
    max_tokens: int
    sampling: Sampling | None = None
    prefix: tuple[bytes, ...] = ()
    num_cached: int = 0
    ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Opened:
    """Every hop has reserved its cache; sent by the tail to the client, and in token mode to the head.

    The first `num_cached` tokens of the prompt are cached everywhere: nobody has to compute them.
    """

    session: SessionId
    num_cached: int = 0


@dataclass(frozen=True, slots=True)
class Spent:
    """Microseconds that a session has taken of one server so far: in its queue, and in forwards that ran it."""

    waited_us: int
    computed_us: int


@dataclass(frozen=True, slots=True)
class Step:
    """Consecutive tokens of one lane: positions [start, start + num_tokens).

    Cached positions at or after `start` are forgotten first, so a step can rewind its lane. Of its outputs the
    last `num_outputs` leave the tail. `sequence` counts the steps and reorderings of a session: what comes twice or
    late is dropped, what comes after a gap ends the session. In token mode `ids` are the tokens; where several
    outputs are asked for, the tokens but the first of these are drafts, which the tail verifies. `spent` is what the
    session has taken so far of each server before the receiver, also in token mode only.
    """

    session: SessionId
    lane: int
    start: int
    num_tokens: int
    num_outputs: int
    sequence: int = 0
    ids: tuple[int, ...] = ()
    spent: tuple[Spent, ...] = ()


@dataclass(frozen=True, slots=True)
class Activations:
    """Hidden states (sum of num_tokens, hidden) of one or more steps, packed without padding.

    From the tail to the client: outputs, with `start` and `num_tokens` saying which positions they belong to.
    """

    steps: tuple[Step, ...]
    tensor: WireTensor


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probability of a token that was chosen, and of the likeliest tokens there, likeliest first.

    As the model gives them, before temperature, penalties and filters.
    """

    chosen: float
    likeliest: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """The next tokens of a session: positions [start, start + len(ids)). After the last ones nothing comes.

    To the client `spent` says what the session has taken so far of each server of its chain.
    """

    session: SessionId
    start: int
    ids: tuple[int, ...]
    is_last: bool
    logprobs: tuple[Logprobs, ...] = ()  # one per token, if asked for
    spent: tuple[Spent, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampled:
    """What the tail has chosen, for one or more sessions; to their clients and to their heads."""

    choices: tuple[Choice, ...]


@dataclass(frozen=True, slots=True)
class Drafts:
    """What the client takes for the tokens at positions [start, start + len(ids)), maybe none: go on with these.

    To the head, once for everything that the tail has chosen, where `Sampling.drafts_by_client` says that it waits.
    """

    session: SessionId
    start: int
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reorder:
    """Lane i continues from what lane sources[i] has cached (beam search). `sequence` as for steps."""

    session: SessionId
    sources: tuple[int, ...]
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Close:
    """The client is done, or wants the place no more; every hop frees the session's cache."""

    session: SessionId


class FailureCode(StrEnum):
    """Why a session was refused or ended."""

    CACHE_FULL = "cache-full"
    NOT_SERVING = "not-serving"  # loading still, or leaving
    NOT_HELD = "not-held"  # other model or blocks than asked for
    PEER_LOST = "peer-lost"
    BAD_MESSAGE = "bad-message"
    INTERNAL = "internal"
    STALE_PLAN = "stale-plan"  # the head knows no such chain: one of the two follows an older plan
    TOO_LONG = "too-long"  # for any place on the chain
    QUEUE_FULL = "queue-full"  # too many wait, or too many of this client
    STALLED = "stalled"  # a step takes far longer than was predicted
    ABANDONED = "abandoned"  # the client did not go on
    NO_PLACE = "no-place"  # opened without having been admitted, or too late
    BAD_GRAMMAR = "bad-grammar"  # no server could follow it: there is no use in asking another
    NO_GRAMMARS = "no-grammars"  # the tail lacks what it takes to follow one


@dataclass(frozen=True, slots=True)
class Failed:
    """The session is over. `peer` is the server at fault or that refused, as seen by the sender."""

    session: SessionId
    peer: PeerId
    code: FailureCode
    detail: str


@dataclass(frozen=True, slots=True)
class Stalled:
    """The outputs of the step with this sequence number are late: who has it?

    Down the chain it comes to the server that has the step still. That sends it back up to the client if the step has
    to wait for others that are run, and says `Failed` if nothing is. In token mode the head puts in the number of its
    last step, which the client does not know.
    """

    session: SessionId
    sequence: int


@dataclass(frozen=True, slots=True)
class Leaving:
    """`peer` is about to give up the session's blocks: go on elsewhere from the next step on."""

    session: SessionId
    peer: PeerId


class Topic(StrEnum):
    """What one peer can ask another for, and by which name."""

    PLAN = "plan"  # by its digest
    VIEW = "view"  # all records of the swarm; the name is the asker's, so that no answer is taken for another
    REACH = "reach"  # a call at a port of the asker's, as `calling_back.Door` names it, to see whether it gets through
    TEXT = "text"  # what turns text into tokens and back, by the digest of the model


@dataclass(frozen=True, slots=True)
class Ask:
    """Send me this."""

    topic: Topic
    name: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What was asked for, as bytes that the receiver has to check; empty: the sender does not have it."""

    topic: Topic
    name: str
    body: bytes | bytearray | memoryview


Message = (
    Admit
    | Admitted
    | Queued
    | Open
    | Opened
    | Activations
    | Sampled
    | Drafts
    | Reorder
    | Close
    | Failed
    | Stalled
    | Leaving
    | Ask
    | Answer
)


@dataclass(frozen=True, slots=True)
class Beat:
    """The link lives. Sent and taken by the links themselves, in microseconds of each end's own clock.

    `echo_us` is the `sent_us` of the last beat from the other end and `held_us` how long ago it came, so that the
    other end learns the round trip without an answer of its own to each beat. Both are 0 before the first.
    """

    sent_us: int
    echo_us: int
    held_us: int


@dataclass(frozen=True, slots=True)
class Probe:
    """Zeros, so that the rate of a link is known before anything large has to go over it. Links' own, as beats are."""

    num_bytes: int
