"""What a token-level simulation gives: times of every request, and what each server did."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chainserve.simulator.engine import Outcome
from chainserve.simulator.tokens.servers import Server, ServerUse, Session
from chainserve.simulator.workloads import Requests
from chainserve.types import PeerId


@dataclass(frozen=True, slots=True, eq=False)
class TokenOutcome(Outcome):
    """Times are those of the client, nan where a request was refused.

    `start_s` is when a request first got a chain, `chain` the index of its last one in the plan then in force.
    """

    placed_s: NDArray[np.float64]  # when it had its (last) place, as clients count their waiting
    first_token_s: NDArray[np.float64]
    num_replays: NDArray[np.int64]  # chains lost on the way
    servers: Mapping[PeerId, tuple[ServerUse, ...]]  # one for each time the server joined
    end_s: float  # when the last request was done

    @classmethod
    def of(
        cls, requests: Requests, sessions: Sequence[Session], servers: Iterable[Server], *, end_s: float
    ) -> "TokenOutcome":
        """What became of sessions, in the order of their requests, and servers, in the order in which they joined."""
        uses: dict[PeerId, list[ServerUse]] = {}
        for server in servers:
            uses.setdefault(server.peer, []).append(server.use(end_s))
        return cls(
            requests=requests,
            start_s=np.array([session.start_s for session in sessions]),
            finish_s=np.array([session.finish_s for session in sessions]),
            chain=np.array([session.chain for session in sessions], dtype=np.int64),
            placed_s=np.array([session.placed_s for session in sessions]),
            first_token_s=np.array([session.first_token_s for session in sessions]),
            num_replays=np.array([session.num_replays for session in sessions], dtype=np.int64),
            servers={peer: tuple(of_peer) for peer, of_peer in sorted(uses.items())},
            end_s=end_s,
        )

    @property
    def time_to_first_token_s(self) -> NDArray[np.float64]:
        """From arrival, waiting included."""
        return self.first_token_s - self.requests.arrival_s

    @property
    def inter_token_s(self) -> NDArray[np.float64]:
        """Mean time between tokens, replays included; nan for requests of one token."""
        gaps = self.requests.output_tokens - 1
        return (self.finish_s - self.first_token_s) / np.where(gaps > 0, gaps, np.nan)

    @property
    def num_iterations(self) -> int:
        """Packed forwards of all servers, those over several spans counted once."""
        return sum(use.num_iterations for uses in self.servers.values() for use in uses)
