"""How a request comes to its chain: it looks for a place, opens its session there, and looks again where that fails."""

import asyncio
import logging
import math
import random
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from chainserve.errors import (
    GrammarError,
    LinkLostError,
    NoChainError,
    NoPlaceError,
    PromptTooLongError,
    RequestError,
    SessionRefusedError,
)
from chainserve.planning.values import PlannedChain
from chainserve.protocol.messages import Failed, FailureCode
from chainserve.protocol.pages import page_hashes
from chainserve.protocol.sampling import Sampling
from chainserve.protocol.search import Candidate, Sending
from chainserve.swarm.plans import SwarmPlan
from chainserve.swarm.records import Announcement
from chainserve.types import Chain, PeerId, SessionId
from chainserve_client.chain_session import ChainSession
from chainserve_client.dispatch import choose_chain, planned_chains, step_predictor
from chainserve_client.lifeline import Lifeline, Why
from chainserve_client.network import ModelInSwarm, Network
from chainserve_client.parameters import TIMEOUT_S
from chainserve_client.policies.rules import Dispatch, JoinFastestFree, Router, check_fits

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 6
"""Servers that may refuse or be gone before the last refusal is reported; full ones do not count."""
ASK_AGAIN_S = 2.0
MAX_STALE = 3
"""Times that heads follow another plan than we know before a chain is composed without it."""
PAUSE_S = 0.3
"""Before what has just failed is tried again."""

PATIENCE_S = 3.0
"""So long a session that lost its chain looks for another, if there is none at once."""
LEAVING_S = 1.0
"""So long a session looks for a place elsewhere when a server is about to leave, and stays with it if there is none."""

IS_FULL = (FailureCode.CACHE_FULL, FailureCode.NO_PLACE, FailureCode.QUEUE_FULL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be opened."""

    model: ModelInSwarm
    num_lanes: int
    max_tokens: int  # of each lane
    input_tokens: int | None = None  # of these; None: not known
    timeout_s: float = TIMEOUT_S
    max_wait_s: float | None = None  # for the first place, while all are taken; None: as long as there is time
    chain: Chain | None = None  # this one or none
    sampling: Sampling | None = None  # how to sample, in token mode
    dispatch: Dispatch = field(default_factory=JoinFastestFree)
    ids: Sequence[int] = ()  # in token mode the tokens so far: the prompt, and what has come when it is opened again

    @property
    def num_tokens(self) -> int:
        """Cache that it needs."""
        return self.num_lanes * self.max_tokens

    @property
    def tokens(self) -> tuple[float, float]:
        """Tokens in and out, as far as they are known: half each where they are not, and the most there may come."""
        input_tokens = self.input_tokens or self.max_tokens / 2
        return input_tokens, max(1.0, self.max_tokens + 1 - input_tokens)


async def open_line(network: Network, request: Request) -> Lifeline:
    """Open a session on the fastest chain with a place free, or wait for one; it goes on elsewhere if that breaks.

    NoChainError if blocks are missing, PromptTooLongError if no chain's cache can ever hold the session, NoPlaceError
    if all chains are full for too long, otherwise the last server's refusal. With a `chain` that one is tried and no
    other, and a refusal is raised as it is; RequestError if it does not run all blocks of the model.
    """
    model, chain = request.model, request.chain
    opening = Opening(network, request)
    if chain is None:
        return Lifeline(await opening.open(), opening.reopen)
    if chain.num_blocks != model.num_blocks:
        raise RequestError(f"the chain runs {chain.num_blocks} blocks, {model.name} has {model.num_blocks}")
    return Lifeline(await opening.open_at(Candidate(_new_id(), chain.hops)), None)


class Opening:
    """Opens the sessions of one request: the first, and those that take over from it."""

    def __init__(self, network: Network, request: Request) -> None:
        self._network = network
        self._request = request
        self._began_s = time.monotonic()
        self._avoid: set[PeerId] = set()  # servers that refused, or failed: they are asked again if there are no others
        self._leaving: set[PeerId] = set()
        self._rng = random.Random()
        self._wait_s: float | None = None  # as heads said last
        self._had_place = False
        self._router = request.dispatch.router(num_tokens=request.num_tokens)

    async def reopen(self, without: PeerId, why: Why) -> ChainSession:
        """Open again without this server."""
        if why is Why.LEAVING:
            self._leaving.add(without)
            return await self.open(may_trust=False, within_s=LEAVING_S)
        if why is Why.LOST:
            self._network.suspect(without)
        else:
            self._avoid.add(without)
        return await self.open(patience_s=PATIENCE_S, may_trust=False)

    async def open(
        self, *, patience_s: float = 0.0, may_trust: bool = True, within_s: float = math.inf
    ) -> ChainSession:
        """Open on the best chain there is; see `open_session`.

        If there is none it is looked for again for `patience_s`, and over servers that were lost before if `may_trust`.
        NoPlaceError if all are full for longer than `within_s`, or than the request's time, or would be for longer than
        it may wait.
        """
        refusal: LinkLostError | SessionRefusedError | None = None
        num_refusals = num_stale = 0
        patient_until_s = time.monotonic() + patience_s
        try:
            async with asyncio.timeout(min(self.left_s, within_s)):
                while True:
                    try:
                        return await self.open_at(await self._choose(is_planned=num_stale < MAX_STALE))
                    except (LinkLostError, SessionRefusedError) as error:
                        logger.info("no session: %s", error)
                        refusal = error
                        if self._router is not None and (pause_s := self._pause_s(self._router, error)) is not None:
                            await asyncio.sleep(pause_s)
                        elif self._exclude(error):
                            self._check_wait()
                        else:
                            num_refusals += 1
                        is_stale = isinstance(error, SessionRefusedError) and error.code == FailureCode.STALE_PLAN
                        num_stale += is_stale
                        if num_refusals >= MAX_ATTEMPTS and time.monotonic() >= patient_until_s:
                            raise
                        if is_stale or num_refusals >= MAX_ATTEMPTS:
                            await asyncio.sleep(PAUSE_S)
                    except (NoChainError, PromptTooLongError):
                        if self._avoid:
                            self._avoid.clear()
                        elif may_trust and refusal is None and self._network.trust_again():
                            continue
                        elif time.monotonic() >= patient_until_s:
                            self._compose(self._network.swarm.view.online(self._request.model.digest))
                            if refusal is not None:
                                raise refusal from None
                            raise
                        await asyncio.sleep(PAUSE_S)
                    await self._network.swarm.refresh()
        except TimeoutError:
            raise self._no_place(str(refusal or "")) from refusal
        finally:
            if self._router is not None:
                self._router.leave()

    @property
    def left_s(self) -> float:
        """Seconds that the request still has."""
        return max(0.0, self._began_s + self._request.timeout_s - time.monotonic())

    def _check_wait(self) -> None:
        """NoPlaceError if all is full for longer than a request that never had a place may wait."""
        max_wait_s = self._request.max_wait_s
        if max_wait_s is not None and not self._had_place and self._waited_s + (self._wait_s or 0.0) > max_wait_s:
            raise self._no_place("")

    def _no_place(self, reason: str) -> NoPlaceError:
        return NoPlaceError(self._waited_s, wait_s=self._wait_s, reason=reason)

    @property
    def _waited_s(self) -> float:
        return time.monotonic() - self._began_s

    def _exclude(self, error: LinkLostError | SessionRefusedError) -> bool:
        """Leave a server out that did not take the session; whether it may do so as soon as others have ended."""
        peer, code = PeerId(error.peer), error.code if isinstance(error, SessionRefusedError) else FailureCode.PEER_LOST
        if code == FailureCode.PEER_LOST:
            self._network.suspect(peer)
        elif code != FailureCode.STALE_PLAN:
            self._avoid.add(peer)
        return code in IS_FULL

    def _pause_s(self, router: Router, error: LinkLostError | SessionRefusedError) -> float | None:
        """Seconds before the next route is asked for, if a server of the last one was full; None if it was not that."""
        if isinstance(error, SessionRefusedError) and error.code in IS_FULL:
            return router.refused(PeerId(error.peer))
        router.leave()
        return None

    async def _choose(self, *, is_planned: bool) -> Candidate:
        """Where to open: at a place on a chain of the plan, after waiting for one if need be, or on one of our own."""
        servers = self._servers()
        plan = await self._network.plan_in_view(self._request.model.digest) if is_planned else None
        if plan is not None:
            check_fits(self._request.dispatch, plan, is_routed=self._router is not None)
        if self._router is not None:
            return Candidate(_new_id(), (await self._router.route(servers, plan)).hops)
        if plan is not None and (chains := self._planned(plan, servers)):
            return await self._find_place(plan, chains, servers)
        try:
            chain = self._compose(servers)
        except (NoChainError, PromptTooLongError):
            await self._network.swarm.refresh()
            chain = self._compose(self._servers())
        return Candidate(_new_id(), chain.hops)

    def _servers(self) -> list[Announcement]:
        usable = self._network.usable(self._request.model.digest)
        return [server for server in usable if server.peer not in self._avoid | self._leaving]

    def _planned(self, plan: SwarmPlan, servers: Sequence[Announcement]) -> list[PlannedChain]:
        input_tokens, output_tokens = self._request.tokens
        return planned_chains(
            plan,
            servers,
            num_tokens=self._request.num_tokens,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            round_trip_s=self._network.links.round_trip_s,
        )

    def _compose(self, servers: Sequence[Announcement]) -> Chain:
        """A chain that is in no plan."""
        return choose_chain(servers, num_blocks=self._request.model.num_blocks, num_tokens=self._request.num_tokens)

    async def _find_place(
        self, plan: SwarmPlan, chains: Sequence[PlannedChain], servers: Sequence[Announcement]
    ) -> Candidate:
        """Ask the heads of these chains, fastest first, and wait; SessionRefusedError if all of them refuse."""
        turn_s = {peer: times.block.turn_s(*self._request.tokens) for peer, times in plan.inputs.times.items()}
        search = self._request.dispatch.search(
            [Candidate(_new_id(), planned.chain.hops) for planned in chains],
            chains,
            servers=servers,
            plan=plan,
            turn_s=turn_s,
            num_tokens=self._request.num_tokens,
            rng=self._rng,
        )
        search.has_begun = self._had_place
        with self._network.answers_about(search.candidates) as answers:
            try:
                self._post(search.begin())
                while search.found is None and not search.has_failed:
                    try:
                        async with asyncio.timeout(ASK_AGAIN_S):
                            answer = await answers.get()
                    except TimeoutError:
                        self._post(search.ask_again())
                    else:
                        if isinstance(answer, Failed) and answer.code is FailureCode.PEER_LOST:
                            self._post(search.lost(answer.peer, answer.detail))
                        self._post(search.receive(answer))
                    if search.wait_s is not None:
                        self._wait_s = search.wait_s
                    if search.all_full:
                        self._check_wait()
            finally:
                self._post(search.give_up())
        if search.found is not None:
            return search.found
        refusals = [
            SessionRefusedError(failed.peer, failed.detail, code=failed.code) for failed in search.failures.values()
        ]
        for refusal in refusals[:-1]:
            self._exclude(refusal)
        raise refusals[-1]

    def _post(self, sendings: Sequence[Sending]) -> None:
        for head, message in sendings:
            self._network.outbox.post(head, message)

    async def open_at(self, place: Candidate) -> ChainSession:
        """Open on this chain, where the session has a place; GrammarError if its grammar can be followed nowhere."""
        request, chain = self._request, Chain(place.hops)
        plan = await self._network.plan_in_view(request.model.digest)
        request.dispatch.began(chain, num_tokens=request.num_tokens)
        try:
            session = await self._network.open_on(
                chain,
                place.session,
                request.model,
                num_lanes=request.num_lanes,
                max_tokens=request.max_tokens,
                sampling=request.sampling,
                prefix=prefix_of(request),
                ids=tuple(request.ids),
                predict=step_predictor(plan, chain) if plan is not None else None,
                on_end=lambda: request.dispatch.ended(chain, num_tokens=request.num_tokens),
            )
        except SessionRefusedError as error:
            if error.code == FailureCode.BAD_GRAMMAR:
                raise GrammarError(error.reason) from error
            raise
        self._had_place = True
        if self._router is not None:
            self._router.opened()
        return session


def prefix_of(request: Request) -> tuple[bytes, ...]:
    """Hashes of the pages that servers may have computed before; at least the last token is left to compute.

    None where the choice of tokens depends on all tokens before: the tail has to see them.
    """
    sampling = request.sampling
    if sampling is None or sampling.needs_history:
        return ()
    num_tokens = len(request.ids) - 1
    if sampling.grammar is not None:  # the tail has to see the answer so far
        num_tokens = min(num_tokens, sampling.num_prompt_tokens)
    return page_hashes(request.model.digest, request.ids[:num_tokens])


def _new_id() -> SessionId:
    return SessionId(secrets.token_bytes(16))
