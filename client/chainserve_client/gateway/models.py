"""The models of a swarm, by name, and a client for each that is asked for."""

import asyncio
import logging
from typing import TYPE_CHECKING

from chainserve.errors import ModelNotFoundError, SwarmError
from chainserve_client.client import AsyncClient
from chainserve_client.gateway.errors import model_not_found
from chainserve_client.network import ModelInSwarm, Network, models_in
from chainserve_client.text_model import TextModel, fetch_text_model

if TYPE_CHECKING:
    from chainserve_client.draft_model import DraftModel

logger = logging.getLogger(__name__)


class Models:
    """What the swarm serves now, over one network."""

    def __init__(self, network: Network, *clients: AsyncClient, draft: "DraftModel | None" = None) -> None:
        """`clients` are of models whose text side is known already; `draft` drafts for those that it fits."""
        self._network = network
        self._draft = draft
        self._clients = {client.model.digest: client for client in clients}
        self._fetching = asyncio.Lock()

    def names(self) -> list[str]:
        return sorted({model.name for model in self._in_view()})

    def missing(self) -> dict[str, tuple[int, ...]]:
        """By the name of each model: its blocks that no server holds."""
        view = self._network.swarm.view
        return {model.name: view.missing(model.digest) for model in self._in_view()}

    async def client(self, name: str) -> AsyncClient:
        """The client for a model; ApiError if nobody has heard of it, PeerError if nobody hands out its text side."""
        named = [model for model in self._in_view() if model.name == name]
        known = [client for client in self._clients.values() if client.model.name == name]
        if not named and not known:
            raise model_not_found(name)
        if not named:
            return known[-1]  # whose servers have left: it says which blocks are missing
        return await self._client_of(named[0])

    async def _client_of(self, model: ModelInSwarm) -> AsyncClient:
        async with self._fetching:
            if model.digest not in self._clients:
                text = await fetch_text_model(self._network, model)
                self._clients[model.digest] = AsyncClient(self._network, model, text, draft=self._draft_for(text))
        return self._clients[model.digest]

    def _draft_for(self, text: TextModel) -> "DraftModel | None":
        if self._draft is not None:
            try:
                self._draft.check_fits(text)
            except ModelNotFoundError as error:
                logger.warning("answers of %s come without a draft model: %s", text.name, error)
                return None
        return self._draft

    def check(self) -> None:
        """SwarmError unless some model has all its blocks, by a view that is not old."""
        swarm = self._network.swarm
        age_s = swarm.now() - swarm.view.taken_at
        if age_s > swarm.lease_s:
            raise SwarmError(f"no server has been heard of for {age_s:.0f} s")
        missing = self.missing()
        if not missing:
            raise SwarmError("no server is in the swarm")
        if all(missing.values()):
            raise SwarmError("no model has all its blocks served")

    def _in_view(self) -> list[ModelInSwarm]:
        return models_in(self._network.swarm.view)
