"""One peer's immutable snapshot of the swarm."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from chainserve.swarm.plans import PlanRecord
from chainserve.swarm.records import Announcement, ServerState
from chainserve.types import PeerId


@dataclass(frozen=True, slots=True)
class View:
    """Servers whose records counted at `taken_at` (unix seconds)."""

    servers: Mapping[PeerId, Announcement] = field(default_factory=lambda: MappingProxyType({}))
    taken_at: float = 0.0
    plans: Mapping[PeerId, PlanRecord] = field(default_factory=lambda: MappingProxyType({}))
    """The last plan of every peer that has made one."""
    refused: Mapping[PeerId, str] = field(default_factory=lambda: MappingProxyType({}))
    """Why records of peers were not believed."""

    def plan(self, model_digest: str) -> PlanRecord | None:
        """The plan of this model that is to be followed; None if there is none."""
        best: PlanRecord | None = None
        for record in self.plans.values():
            if record.model_digest == model_digest and record.supersedes(best):
                best = record
        return best

    def online(self, model_digest: str) -> tuple[Announcement, ...]:
        """Servers of this model that take sessions, by peer id."""
        return tuple(
            server
            for server in self.servers.values()
            if server.state is ServerState.ONLINE and server.model_digest == model_digest
        )

    def missing(self, model_digest: str) -> tuple[int, ...]:
        """Blocks of a model of the swarm that no server which takes sessions holds."""
        num_blocks = self.models()[model_digest][0].num_blocks
        held = (server.span for server in self.online(model_digest) if server.span)
        return tuple(sorted(set(range(num_blocks)).difference(*held)))

    def models(self) -> Mapping[str, tuple[Announcement, ...]]:
        """Servers of any state by the digest of their model."""
        models = defaultdict(list)
        for server in self.servers.values():
            models[server.model_digest].append(server)
        return {digest: tuple(servers) for digest, servers in models.items()}


def make_view(
    records: Iterable[Announcement],
    *,
    taken_at: float,
    plans: Iterable[PlanRecord] = (),
    refused: Mapping[PeerId, str] | None = None,
) -> View:
    """The view of valid, unexpired records: the same one whatever their order. Servers that left are not in it."""
    servers = {record.peer: record for record in records if record.state is not ServerState.OFFLINE}
    return View(
        servers=MappingProxyType(dict(sorted(servers.items()))),
        taken_at=taken_at,
        plans=MappingProxyType({plan.planner: plan for plan in sorted(plans, key=lambda plan: plan.planner)}),
        refused=MappingProxyType(dict(sorted((refused or {}).items()))),
    )
