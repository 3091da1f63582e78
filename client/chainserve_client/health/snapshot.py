"""What is known of a swarm at one moment: the view, who answers from here, the plans and what follows from them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from chainserve.swarm.records import Announcement, ServerState
from chainserve.swarm.view import View
from chainserve.types import PeerId, Span
from chainserve_client.live_plan import LivePlan
from chainserve_client.status import Unreadable, Way

UNREACHABLE = "unreachable"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One moment of one swarm, as seen from here."""

    swarm: str
    view: View
    is_current: bool = True  # False: the view is older than a lease
    ways: Mapping[PeerId, Way] = field(default_factory=dict)  # links that stand
    silent: frozenset[PeerId] = frozenset()  # servers that announce themselves and do not answer
    plans: Mapping[str, LivePlan | Unreadable] = field(default_factory=dict)  # by model digest, as far as they are read
    can_plan: bool = True  # whether plans without a server can be worked out here

    def state(self, server: Announcement) -> str:
        """What a server does: what it announces, unless it does not answer."""
        return UNREACHABLE if server.peer in self.silent else str(server.state)

    def is_serving(self, server: Announcement) -> bool:
        """Whether its blocks count as online."""
        return server.state is ServerState.ONLINE and server.peer not in self.silent

    def serving(self, digest: str) -> list[tuple[PeerId, Span]]:
        """Who holds which blocks of a model now."""
        servers = self.view.models().get(digest, ())
        return [(server.peer, server.span) for server in servers if server.span and self.is_serving(server)]
