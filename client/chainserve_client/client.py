"""The client: connect to a swarm with its token, then generate."""

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, aclosing
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

from chainserve.errors import RequestError, SwarmError
from chainserve.runtime.background import in_background
from chainserve.swarm.plans import SwarmPlan
from chainserve.swarm.view import View
from chainserve.types import Chain
from chainserve_client.generation import Generation, Piece, Stream, generate
from chainserve_client.join import join
from chainserve_client.network import ModelInSwarm, Network, models_in
from chainserve_client.opening import Request, open_line
from chainserve_client.parameters import TIMEOUT_S, GenerationOptions, Parameters
from chainserve_client.policies.rules import JFFC, Dispatch, JoinFastestFree, check_name, make_dispatch
from chainserve_client.text_model import TextModel, fetch_text_model
from chainserve_client.token_session import TokenSession

if TYPE_CHECKING:
    from chainserve_client.draft_model import DraftModel
    from chainserve_client.session import Session


class AsyncClient:
    """A peer that drives sessions over the servers of one swarm.

    async with await AsyncClient.connect(token) as client:
        async for piece in client.stream("Once upon a time", max_new_tokens=64):
            print(piece.text, end="", flush=True)
    """

    def __init__(
        self,
        network: Network,
        model: ModelInSwarm,
        text: TextModel,
        *,
        dispatch: Dispatch | None = None,
        draft: "DraftModel | None" = None,
    ) -> None:
        self.network = network
        self.model = model
        self.text = text
        self.dispatch = dispatch or JoinFastestFree()
        self.draft = draft

    @classmethod
    async def connect(
        cls, token: str, *, model: str | None = None, dispatch: str = JFFC, draft_model: str | None = None
    ) -> Self:
        """Join the swarm of `token`, and learn from a server how its model writes text.

        `model` names one of several models of the swarm. `draft_model` names a smaller one of the same family on this
        machine, which drafts answers: that takes torch. `dispatch` is how requests come to servers: for benchmarks one
        of `DISPATCHES`. TokenError, JoinError and SwarmError say what to do, RequestError names what is unknown,
        ModelNotFoundError a draft model that does not fit.
        """
        check_name(dispatch)
        async with AsyncExitStack() as undo:
            network = await join(token)
            undo.push_async_callback(network.close)
            chosen = choose_model(network.swarm.view, model)
            text = await fetch_text_model(network, chosen)
            rule = make_dispatch(dispatch, network, chosen)
            await rule.prepare()
            draft = None
            if draft_model is not None:
                draft = await load_draft_model(draft_model)
                draft.check_fits(text)
            undo.pop_all()
        return cls(network, chosen, text, dispatch=rule, draft=draft)

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
        ids = self.text.encode(prompt) if isinstance(prompt, str) else [*map(int, prompt)]
        if not ids:
            raise RequestError("the prompt is empty: give at least one token")
        self._check_known(ids)
        return ids

    def _check_known(self, ids: Sequence[int]) -> None:
        if not all(0 <= token < self.text.vocab_size for token in ids):
            raise RequestError(f"token ids must be in [0, {self.text.vocab_size})")

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """Token ids of a conversation ({"role": ..., "content": ...}), up to where the model answers.

        `tools`, as OpenAI's API has them, are for models whose chat template has a place for them.
        """
        return self.text.encode_chat(messages, tools)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        return self.text.decode(tokens)

    async def open_session(
        self,
        *,
        num_lanes: int,
        max_tokens: int,
        input_tokens: int | None = None,
        timeout_s: float = TIMEOUT_S,
        chain: Chain | None = None,
    ) -> "Session":
        """Open a session in activation mode, for those who run embedding and head themselves; close it when done.

        Each of `num_lanes` sequences may grow to `max_tokens` tokens, of which `input_tokens` are known already. Places
        on chains are looked for until `timeout_s` from now, also when the session has to go on elsewhere; `chain` as in
        `generate`. It needs torch.
        """
        from chainserve_client.session import Session

        request = Request(
            model=self.model,
            num_lanes=num_lanes,
            max_tokens=max_tokens,
            input_tokens=input_tokens,
            timeout_s=timeout_s,
            chain=chain,
            dispatch=self.dispatch,
        )
        return Session(await open_line(self.network, request), num_lanes=num_lanes)

    async def open_tokens(
        self, prompt: Sequence[int], parameters: Parameters, *, chain: Chain | None = None
    ) -> TokenSession:
        """Find a place for a prompt of token ids and open its session, which gives tokens; close it when done."""
        self._check_known([*parameters.logit_bias, *parameters.stop_tokens])
        ids = list(prompt)
        sampling = parameters.sampling(num_prompt_tokens=len(prompt), end_tokens=self.text.end_tokens)
        max_tokens = len(prompt) + parameters.max_new_tokens - 1  # the last token never runs through the blocks
        drafting = self.draft.begin(sampling, max_tokens=max_tokens) if self.draft is not None else None
        request = Request(
            model=self.model,
            num_lanes=1,
            max_tokens=max_tokens,
            input_tokens=len(prompt),
            timeout_s=parameters.timeout_s,
            max_wait_s=parameters.max_wait_s,
            chain=chain,
            sampling=replace(sampling, drafts_by_client=drafting is not None),
            ids=ids,
            dispatch=self.dispatch,
        )
        with ExitStack() as undo:
            if drafting is not None:
                undo.callback(drafting.close)
            line = await open_line(self.network, request)
            undo.pop_all()
        return TokenSession(line, ids, drafting=drafting)

    async def plan(self) -> SwarmPlan | None:
        """The plan that the servers of this model follow now, None if there is none yet.

        It takes a fresh look at the swarm, and asks a server if the plan is large. PeerError if none hands it out,
        RecordError if it is not what its planner sealed.
        """
        return await self.network.plan(self.model.digest)

    async def close(self) -> None:
        """End all sessions and leave the swarm."""
        await self.network.close()
        if self.draft is not None:
            self.draft.close()

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
        session = await self.open_tokens(prompt, parameters, chain=chain)
        ends = frozenset() if parameters.ignore_end else self.text.end_tokens
        try:
            pieces = generate(
                session,
                parameters,
                num_prompt_tokens=len(prompt),
                end_tokens=ends | frozenset(parameters.stop_tokens),
                decode=self.decode,
                started=started,
            )
            async with aclosing(pieces):
                async for piece in pieces:
                    yield piece
        finally:
            await session.close()


async def load_draft_model(name: str) -> "DraftModel":
    """The model called `name` on this machine, to draft for a larger one."""
    from chainserve_client.draft_model import DraftModel

    return await in_background(lambda: DraftModel.load(name))  # in a thread that ends: another one computes with it


def choose_model(view: View, name: str | None) -> ModelInSwarm:
    """The swarm's model called `name`, or the only one there is; SwarmError lists them if there are several."""
    models = models_in(view)
    if not models:
        raise SwarmError("no server is in the swarm now: start one, or try again in a moment")
    named = [model for model in models if model.name == name]
    if len(named) == 1:
        return named[0]
    if len(models) == 1:
        return models[0]
    names = ", ".join(sorted(model.name for model in models))
    raise SwarmError(f"the swarm serves {len(models)} models ({names}): name one with model=... or --model")
