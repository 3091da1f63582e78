"""What a server tells the swarm of itself, and when that is news."""

from chainserve import __version__
from chainserve.models.profiles import device_name
from chainserve.swarm.interface import Swarm
from chainserve.swarm.offers import Offer
from chainserve.swarm.plans import SwarmPlan
from chainserve.swarm.records import Announcement
from chainserve.swarm.reports import Report, fit_name
from chainserve.transport.links import Links
from chainserve_server.admission import chain_uses
from chainserve_server.blocks import Blocks
from chainserve_server.observation import Observed
from chainserve_server.prepare import Prepared
from chainserve_server.sampling import LinkSampler
from chainserve_server.sessions import Sessions

NEWS_SHARE = 0.5
"""By which share the rate of tokens has to change before that is announced by itself."""
LOADED_NEWS = 0.05
"""And how much more has to be loaded."""


class Announcer:
    """Puts together what is said of a server, which is only read here."""

    def __init__(
        self,
        prepared: Prepared,
        swarm: Swarm,
        *,
        name: str | None,
        links: Links,
        sessions: Sessions,
        blocks: Blocks,
        sampler: LinkSampler,
        observed: Observed,
    ) -> None:
        """`name` is what people call the server."""
        self._prepared = prepared
        self._peer = swarm.peer_id
        self._started_at = swarm.now()
        self._device = fit_name(device_name(prepared.device))
        self._name = name
        self._links = links
        self._sessions = sessions
        self._blocks = blocks
        self._sampler = sampler
        self._observed = observed
        self._told = (0.0, 0.0)  # tokens per second and share loaded, as they were announced last

    def announcement(self, plan: SwarmPlan | None, *, epoch: int) -> Announcement:
        """What the swarm has to know now; `plan` is the one that is followed."""
        prepared, blocks, sessions, checks = self._prepared, self._blocks, self._sessions, self._observed.checks
        return Announcement(
            peer=self._peer,
            state=blocks.state,
            model=prepared.source.name,
            model_digest=prepared.source.digest,
            num_blocks=prepared.source.num_blocks,
            span=blocks.span,
            dtype=prepared.dtype_name,
            quant=prepared.quant,
            cache_tokens=blocks.cache_tokens,
            free_tokens=blocks.free_tokens,
            addresses=self._links.addresses,
            version=__version__,
            started_at=self._started_at,
            pinned=prepared.pinned is not None,
            weight_bytes=blocks.weight_bytes,
            num_sessions=len(sessions),
            num_waiting=sessions.places.num_waiting,
            epoch=epoch,
            offer=Offer(
                memory_bytes=prepared.memory_bytes,
                profile=prepared.profile,
                prefill=checks.prefill,
                decode=checks.decode,
                reach=self._sampler.reach,
                demand=self._observed.demand.seen(),
            ),
            report=Report(  # what people may want to know
                device=self._device,
                name=self._name,
                tokens_per_s=self._observed.tokens.per_s,
                loaded_share=blocks.loaded_share,
                chains=chain_uses(plan, sessions.places) if plan is not None else (),
            ),
        )

    def has_news(self) -> bool:
        """Whether what people watch has changed since this last said so: loading goes on, answers come faster or have
        ended."""
        before_per_s, before_loaded = self._told
        per_s, loaded_share = self._observed.tokens.per_s, self._blocks.loaded_share or 0.0
        is_news = abs(per_s - before_per_s) > NEWS_SHARE * before_per_s
        is_news = is_news or abs(loaded_share - before_loaded) > LOADED_NEWS
        if is_news:
            self._told = per_s, loaded_share
        return is_news
