"""Every error that users or peers can cause, with the fact and the way out.

ChainserveError
├── UsageError              what was asked for cannot be done: commands print one line and exit with 2
│   ├── ModelNotFoundError      no such model, or not installed
│   ├── WeightsError            a checkpoint that is damaged, or lacks tensors the blocks need
│   ├── UnsupportedModelError   a family whose blocks this runner cannot run
│   ├── SpanError               blocks outside the model, empty or reversed
│   ├── OutOfMemoryError        the blocks do not fit into the memory given
│   ├── DeviceError             no such device
│   ├── TokenError              a join token that is malformed, foreign or expired
│   ├── IdentityError           an identity file that is unreadable or in use
│   ├── AddressError            a port in use or a host that is not ours
│   └── RequestError            parameters of a request
│       ├── GrammarError            a grammar that is malformed, or cannot be enforced
│       └── PromptTooLongError      more tokens than any chain's cache holds
├── SwarmError              the swarm as a whole cannot do it now
│   ├── JoinError               no bootstrap peer answers, or none knows this swarm
│   ├── NoChainError            blocks that no server holds
│   ├── NoGrammarsError         answers cannot be held to a grammar there
│   ├── NoPlaceError            all chains are full, for longer than the request would wait
│   └── NoPlanError             the servers together have no room for all blocks
├── PeerError               one peer failed, another may do
│   ├── LinkLostError           the link to a peer is gone
│   ├── SessionRefusedError     a server does not take this session
│   └── SessionLostError        a session ended before its request did
│       └── RequestLostError        a generation broke off; what it gave until then comes with the error
├── CacheFullError          a session needs more cache than is free; the server answers by refusing it
└── ProtocolError           bytes or messages that a peer should not have sent
    ├── FrameError              a frame the codec refuses
    ├── RecordError             a record of the swarm that is malformed, forged or expired
    ├── TextModelError          what a server hands out to turn text into tokens makes no sense
    └── StepError               a step that does not fit what its session has reserved and cached
"""

from collections.abc import Sequence


class ChainserveError(Exception):
    """Base of all errors of this package."""


class UsageError(ChainserveError):
    """What was asked for cannot be done; the message says why and what to do instead."""


class ModelNotFoundError(UsageError):
    """The model's name leads nowhere."""


class WeightsError(UsageError):
    """A checkpoint is damaged, cannot be fetched, or lacks tensors that the blocks need."""


class UnsupportedModelError(UsageError):
    """The model's family does something the runner does not support; the message names it."""


class SpanError(UsageError):
    """Blocks outside the model, an empty or a reversed span."""


class OutOfMemoryError(UsageError):
    """The blocks asked for do not fit into the memory given."""


class DeviceError(UsageError):
    """The device does not exist on this machine."""


class TokenError(UsageError):
    """A join token that is malformed, of something else, or expired."""


class IdentityError(UsageError):
    """An identity file that cannot be read or is used by another process."""


class AddressError(UsageError):
    """A port that is in use or a host this machine does not have."""


class RequestError(UsageError):
    """A request whose parameters make no sense."""


class GrammarError(RequestError):
    """A grammar that is malformed, asks for what cannot be enforced, or takes too much to follow."""


class PromptTooLongError(RequestError):
    """Prompt and new tokens exceed what the chain's caches hold."""

    def __init__(self, num_tokens: int, *, limit: int) -> None:
        super().__init__(
            f"prompt and new tokens need {num_tokens} tokens of cache, the servers hold at most {limit}: "
            f"shorten the prompt or lower max_new_tokens"
        )
        self.num_tokens = num_tokens
        self.limit = limit


class SwarmError(ChainserveError):
    """The swarm as a whole cannot do this now."""


class JoinError(SwarmError):
    """No bootstrap peer answers, or none of them belongs to this swarm."""


class NoChainError(SwarmError):
    """Some blocks are held by no server."""

    def __init__(self, missing: Sequence[int], *, num_blocks: int) -> None:
        super().__init__(f"no server holds {describe_blocks(missing)} of {num_blocks}")
        self.missing = tuple(missing)
        self.num_blocks = num_blocks


class NoGrammarsError(SwarmError):
    """A server, or all that could be asked, cannot hold answers to a grammar; the message says what it takes."""


class NoPlanError(SwarmError):
    """The servers together have no room for all blocks with cache for one session."""

    def __init__(self, missing: Sequence[int], *, num_blocks: int, missing_bytes: float) -> None:
        super().__init__(
            f"no room for {describe_blocks(missing)} of {num_blocks}: servers with {missing_bytes / 1e9:.3g} GB more "
            f"are needed"
        )
        self.missing = tuple(missing)
        self.num_blocks = num_blocks
        self.missing_bytes = missing_bytes


class NoPlaceError(SwarmError):
    """Every chain that could take a request is full, and it would not wait longer."""

    def __init__(self, waited_s: float, *, wait_s: float | None, reason: str = "") -> None:
        ahead = "" if wait_s is None else f", and about {wait_s:.0f} s more would have to be waited"
        super().__init__(f"no place on any chain after {waited_s:.1f} s{ahead}{f' ({reason})' if reason else ''}")
        self.waited_s = waited_s
        self.wait_s = wait_s


class PeerError(ChainserveError):
    """One peer failed; another may do."""

    def __init__(self, peer: str, reason: str) -> None:
        super().__init__(f"{peer}: {reason}")
        self.peer = peer
        self.reason = reason


class LinkLostError(PeerError):
    """The link to a peer is gone or could not be made."""


class SessionRefusedError(PeerError):
    """A server does not take this session: its cache is full, it drains, it does not hold the blocks.

    `code` is the reason as one word of a small fixed set.
    """

    def __init__(self, peer: str, reason: str, *, code: str = "") -> None:
        super().__init__(peer, reason)
        self.code = code


class SessionLostError(PeerError):
    """A session ended before its request did, because a server on its chain went away or failed.

    `code` is the reason as one word of a small fixed set.
    """

    def __init__(self, peer: str, reason: str, *, code: str = "") -> None:
        super().__init__(peer, reason)
        self.code = code


class RequestLostError(SessionLostError):
    """A generation broke off, and could not be taken up on other servers.

    `tokens` and `text` are what it gave until then, for which all went well.
    """

    def __init__(self, peer: str, reason: str, *, tokens: tuple[int, ...], text: str) -> None:
        super().__init__(peer, f"{reason}; {len(tokens)} tokens had come")
        self.tokens = tokens
        self.text = text


class CacheFullError(ChainserveError):
    """A session asks for more cache than is free here."""

    def __init__(self, needed_tokens: int, *, free_tokens: int) -> None:
        super().__init__(f"cache for {needed_tokens} tokens is needed, {free_tokens} are free")
        self.needed_tokens = needed_tokens
        self.free_tokens = free_tokens


class ProtocolError(ChainserveError):
    """A peer sent what it should not have sent."""


class FrameError(ProtocolError):
    """A frame that is too large, truncated, of unknown version, or whose shape or dtype does not fit.

    `reason` is one word of a small fixed set, to count by. `sessions` are the ids the frame named, as far as they
    could be made out: each of them has lost a message.
    """

    def __init__(self, fact: str, *, reason: str = "malformed", sessions: tuple[bytes, ...] = ()) -> None:
        super().__init__(fact)
        self.reason = reason
        self.sessions = sessions


class HandshakeError(ProtocolError):
    """The other end of a new link did not prove who it is, or that it belongs to this swarm."""


class StepError(ProtocolError):
    """A step or lane that does not fit what its session has reserved and cached."""

    def __init__(self, session: bytes, reason: str) -> None:
        super().__init__(f"session {session.hex()[:8]} {reason}")
        self.session = session
        self.reason = reason


class RecordError(ProtocolError):
    """A record that is malformed, forged, expired, or of a newer schema."""


class TextModelError(ProtocolError):
    """What a server hands out to turn text into tokens and back is too large, malformed, or does not work."""


def describe_blocks(blocks: Sequence[int]) -> str:
    """Name blocks as half-open spans: (0, 1, 2, 7) becomes 'blocks 0:3, 7:8'."""
    spans: list[list[int]] = []
    for block in sorted(blocks):
        if spans and spans[-1][1] == block:
            spans[-1][1] = block + 1
        else:
            spans.append([block, block + 1])
    return "blocks " + ", ".join(f"{start}:{end}" for start, end in spans)
