"""What the gateway shows at /metrics, by OpenTelemetry's names for generative AI where it has one.

Labels have few values: the endpoint, the status, and models that the swarm has had, up to MAX_MODELS.
"""

import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from contextvars import ContextVar

from aiohttp import web
from prometheus_client.core import InfoMetricFamily, Metric

from chainserve import __version__
from chainserve.errors import ChainserveError
from chainserve.runtime.metrics import Distributions
from chainserve.transport.exposition import Handler, Labels, counter, counters, gauges, histograms
from chainserve_client.gateway.errors import api_error
from chainserve_client.generation import Generation, Piece, Stream

MAX_MODELS = 50
OTHER = "other"
OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion"}
HUNG_UP = "499"
"""The status of a request whose client went away before it was answered; a custom of web servers."""

# Bounds of buckets as OpenTelemetry's conventions have them.
DURATION_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0)
TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
NUM_TOKENS = tuple(float(4**power) for power in range(11))
MODEL = ("gen_ai_operation_name", "gen_ai_request_model")
asked_model: ContextVar[str] = ContextVar("asked_model", default="")
"""Of the request that this task answers, once that is known to be a model of the swarm."""


class GatewayMetrics:
    """Counts requests and their tokens as they come."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._models: set[str] = set()
        self._requests: Counter[Labels] = Counter()
        self._broken: Counter[Labels] = Counter()
        self._active: Counter[Labels] = Counter()
        self._tokens: Counter[Labels] = Counter()
        self._num_recoveries = 0
        self._duration_s: Distributions[Labels] = Distributions(DURATION_S)
        self._queue_s: Distributions[Labels] = Distributions(FIRST_S)
        self._first_s: Distributions[Labels] = Distributions(FIRST_S)
        self._mean_s: Distributions[Labels] = Distributions(TOKEN_S)
        self._between_s: Distributions[Labels] = Distributions(TOKEN_S)
        self._usage: Distributions[Labels] = Distributions(NUM_TOKENS)

    @web.middleware
    async def count(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Count each request of the endpoints that generate, by how it was answered."""
        operation = OPERATIONS.get(request.path)
        if operation is None or request.method != "POST":
            return await handler(request)
        began_s, status = self._clock(), HUNG_UP
        asked_model.set("")  # of the request before on this connection
        try:
            response = await handler(request)
            status = str(response.status)
        finally:
            labels = (operation, asked_model.get())
            self._requests[(*labels, status)] += 1
            self._duration_s[(*labels, "" if status == "200" else status)].add(self._clock() - began_s)
        return response

    def watched(self, request: web.Request, model: str, streams: Sequence[Stream]) -> list[Stream]:
        """The same streams, of a model that the swarm has had, and what they give is counted."""
        labels = (OPERATIONS[request.path], self.label(model))
        asked_model.set(labels[1])
        return [Stream(self._watch(stream, labels)) for stream in streams]

    def label(self, model: str) -> str:
        """What the model is counted under: its name, unless there have been too many."""
        if len(self._models) < MAX_MODELS:
            self._models.add(model)
        return model if model in self._models else OTHER

    async def _watch(self, stream: Stream, labels: Labels) -> AsyncGenerator[Piece | Generation, None]:
        clock, between = self._clock, self._between_s[labels]
        last_s: float | None = None
        self._active[labels] += 1
        try:
            async with aclosing(stream):
                async for piece in stream:
                    now_s = clock()
                    if last_s is not None:
                        between.add(now_s - last_s)
                    last_s = now_s
                    self._tokens[labels] += 1
                    yield piece
            self._ended(stream.result, labels)
            yield stream.result
        except ChainserveError as error:
            self._broken[(*labels, api_error(error).code or "other")] += 1
            raise
        finally:
            self._active[labels] -= 1

    def _ended(self, generation: Generation, labels: Labels) -> None:
        num_tokens = len(generation.tokens)
        self._queue_s[labels].add(generation.waited_s)
        self._first_s[labels].add(generation.first_token_s)
        if num_tokens > 1:
            self._mean_s[labels].add((generation.total_s - generation.first_token_s) / (num_tokens - 1))
        self._usage[(*labels, "input")].add(generation.num_prompt_tokens)
        self._usage[(*labels, "output")].add(num_tokens)
        self._num_recoveries += len(generation.recoveries)

    def families(self) -> Iterator[Metric]:
        """All there is to tell now."""
        info = InfoMetricFamily("chainserve_gateway", "What this gateway is")
        info.add_metric((), {"version": __version__})
        yield info
        yield counters(
            "chainserve_gateway_requests",
            "Requests by the status they were answered with; 499: the client went away first",
            (*MODEL, "status"),
            self._requests,
        )
        yield gauges("chainserve_gateway_active_streams", "Choices that are being generated", MODEL, self._active)
        yield counters("chainserve_gateway_generated_tokens", "Tokens, counted as they come", MODEL, self._tokens)
        yield counters(
            "chainserve_gateway_failed_choices",
            "Choices that ended in an error, before or after their first token, by its code",
            (*MODEL, "error_type"),
            self._broken,
        )
        yield counter(
            "chainserve_gateway_recoveries",
            "Servers that were lost under answers which then came to their end over others",
            self._num_recoveries,
        )
        for name, what, more, values in (
            ("gen_ai_server_request_duration_seconds", "Time of whole requests", ("error_type",), self._duration_s),
            ("gen_ai_server_time_to_first_token_seconds", "From a request to its first token", (), self._first_s),
            ("gen_ai_server_time_per_output_token_seconds", "Mean of an answer, after its first", (), self._mean_s),
            ("chainserve_gateway_inter_token_seconds", "From each token to the next", (), self._between_s),
            ("chainserve_gateway_queue_seconds", "From a request to its place on a chain", (), self._queue_s),
            (
                "gen_ai_client_token_usage",
                "Tokens of choices that came to their end",
                ("gen_ai_token_type",),
                self._usage,
            ),
        ):
            yield histograms(name, what, (*MODEL, *more), values.by_key)
