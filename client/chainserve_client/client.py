"""The client: connect to a swarm with its token, then generate."""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, Unpack

import torch
from transformers import PreTrainedModel

from chainserve.errors import ModelNotFoundError, RequestError, SwarmError
from chainserve.models.ends import Ends
from chainserve.models.load import load_weights
from chainserve.models.resolve import resolve
from chainserve.models.skeleton import build_skeleton
from chainserve.models.source import ModelSource
from chainserve.models.text import end_tokens
from chainserve.swarm.plans import SwarmPlan
from chainserve.swarm.view import View
from chainserve.types import Chain
from chainserve_client.generation import Generation, Piece, Stream, generate
from chainserve_client.join import join
from chainserve_client.network import ModelInSwarm, Network
from chainserve_client.opening import Request, open_session
from chainserve_client.parameters import TIMEOUT_S, GenerationOptions, Parameters
from chainserve_client.session import Session


@dataclass(frozen=True, slots=True)
class LocalModel:
    """What the client itself holds of a model: tokenizer, embedding and head."""

    source: ModelSource
    tokenizer: Any
    skeleton: PreTrainedModel
    ends: Ends
    end_tokens: frozenset[int]


class AsyncClient:
    """A peer that drives sessions over the servers of one swarm.

    async with await AsyncClient.connect(token) as client:
        async for piece in client.stream("Once upon a time", max_new_tokens=64):
            print(piece.text, end="", flush=True)
    """

    def __init__(self, network: Network, model: ModelInSwarm, local: LocalModel, executor: ThreadPoolExecutor) -> None:
        self.network = network
        self.model = model
        self.local = local
        self._executor = executor

    @classmethod
    async def connect(cls, token: str, *, model: str | None = None, progress: bool = False) -> Self:
        """Join the swarm of `token` and load the embedding and head of its model.

        `model` names one of several models of the swarm, or where this machine finds it if that is elsewhere than
        for the servers. TokenError, JoinError and ModelNotFoundError say what to do.
        """
        async with AsyncExitStack() as undo:
            network = await join(token)
            undo.push_async_callback(network.close)
            executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
            undo.callback(executor.shutdown, wait=False)
            chosen = choose_model(network.swarm.view, model)
            loop = asyncio.get_running_loop()
            local = await loop.run_in_executor(executor, load_local_model, model or chosen.name, chosen, progress)
            undo.pop_all()
        return cls(network, chosen, local, executor)

    async def generate(
        self, prompt: str | Sequence[int], *, chain: Chain | None = None, **options: Unpack[GenerationOptions]
    ) -> Generation:
        """Continue `prompt` (text or token ids) and return when it is complete; see `Parameters` for options.

        If all chains are full it waits for its turn, NoPlaceError if that takes too long. If servers are lost it goes
        on over others; RequestLostError, with what had come until then, if there are none. With a `chain` it runs there
        or not at all: SessionRefusedError and LinkLostError name the server that did not take it.
        """
        stream = self.stream(prompt, chain=chain, **options)
        async with aclosing(stream):
            async for _ in stream:
                pass
        return stream.result

    def stream(
        self, prompt: str | Sequence[int], *, chain: Chain | None = None, **options: Unpack[GenerationOptions]
    ) -> Stream:
        """As `generate`, piece by piece. Leave it early with `aclose()` or contextlib.aclosing."""
        parameters = Parameters.parse(options)
        return Stream(self._generate(self.encode(prompt), parameters, chain))

    def encode(self, prompt: str | Sequence[int]) -> list[int]:
        """Token ids of a prompt; RequestError if there are none or the model does not know them."""
        ids = list(self.local.tokenizer(prompt)["input_ids"]) if isinstance(prompt, str) else [*map(int, prompt)]
        if not ids:
            raise RequestError("the prompt is empty: give at least one token")
        vocabulary = self.local.source.config.vocab_size
        if not all(0 <= token < vocabulary for token in ids):
            raise RequestError(f"token ids must be in [0, {vocabulary})")
        return ids

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation ({"role": ..., "content": ...}), up to where the model answers."""
        if not self.local.tokenizer.chat_template:
            raise RequestError(f"{self.model.name} has no chat template: use generate with a plain prompt")
        encoded = self.local.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        return list(encoded["input_ids"])

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        text: str = self.local.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    async def open_session(
        self,
        *,
        num_lanes: int,
        max_tokens: int,
        input_tokens: int | None = None,
        timeout_s: float = TIMEOUT_S,
        chain: Chain | None = None,
    ) -> Session:
        """Open a session for those who drive the model themselves; `chain` as in `generate`. Close it when done.

        Each of `num_lanes` sequences may grow to `max_tokens` tokens, of which `input_tokens` are known already. Places
        on chains are looked for until `timeout_s` from now, also when the session has to go on elsewhere.
        """
        request = Request(
            model=self.model,
            num_lanes=num_lanes,
            max_tokens=max_tokens,
            input_tokens=input_tokens,
            timeout_s=timeout_s,
            chain=chain,
        )
        return await open_session(self.network, request)

    async def plan(self) -> SwarmPlan | None:
        """The plan that the servers of this model follow now, None if there is none yet.

        It takes a fresh look at the swarm, and asks a server if the plan is large. PeerError if none hands it out,
        RecordError if it is not what its planner sealed.
        """
        return await self.network.plan(self.model.digest)

    async def close(self) -> None:
        """End all sessions and leave the swarm."""
        await self.network.close()
        self._executor.shutdown(wait=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _generate(
        self, prompt: Sequence[int], parameters: Parameters, chain: Chain | None
    ) -> AsyncGenerator[Piece | Generation, None]:
        started = time.monotonic()
        # The last token is never sent back through the chain, so it needs no room there.
        max_tokens = len(prompt) + parameters.max_new_tokens - 1
        session = await self.open_session(
            num_lanes=1,
            max_tokens=max_tokens,
            input_tokens=len(prompt),
            timeout_s=parameters.timeout_s,
            chain=chain,
        )
        try:
            pieces = generate(
                session,
                self.local.ends,
                prompt,
                parameters,
                end_tokens=self.local.end_tokens,
                decode=self.decode,
                executor=self._executor,
                started=started,
            )
            async with aclosing(pieces):
                async for piece in pieces:
                    yield piece
        finally:
            await session.close()


def choose_model(view: View, name: str | None) -> ModelInSwarm:
    """The swarm's model called `name`, or the only one there is; SwarmError lists them if there are several."""
    models = {
        digest: ModelInSwarm(servers[0].model, digest, servers[0].num_blocks, servers[0].dtype)
        for digest, servers in view.models().items()
    }
    if not models:
        raise SwarmError("no server is in the swarm now: start one, or try again in a moment")
    named = [model for model in models.values() if model.name == name]
    if len(named) == 1:
        return named[0]
    if len(models) == 1:
        return next(iter(models.values()))
    names = ", ".join(sorted(model.name for model in models.values()))
    raise SwarmError(f"the swarm serves {len(models)} models ({names}): name one with model=... or --model")


def load_local_model(name: str, model: ModelInSwarm, progress: bool) -> LocalModel:
    """Load what a client needs of `model` from wherever `name` leads on this machine."""
    source = resolve(name)
    if source.digest != model.digest:
        raise ModelNotFoundError(f"{name} on this machine is not the model that the swarm serves as {model.name}")
    skeleton = build_skeleton(source.config, None, embed=True, head=True)
    dtype: torch.dtype = getattr(torch, model.dtype)
    load_weights(skeleton, source, dtype=dtype, device=torch.device("cpu"), progress=progress)
    tokenizer = source.tokenizer()
    return LocalModel(source, tokenizer, skeleton, Ends(skeleton), end_tokens(source, tokenizer))
