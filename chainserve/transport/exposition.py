"""Metrics over HTTP, in the formats that Prometheus reads. What is shown is computed when somebody looks."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from math import inf
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from chainserve.runtime.metrics import Distribution
from chainserve.transport.http import listening

PATH = "/metrics"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Labels = tuple[str, ...]


def gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(name, what, value=value)


def gauges(name: str, what: str, labels: Sequence[str], values: Mapping[Any, float]) -> Metric:
    family = GaugeMetricFamily(name, what, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def counter(name: str, what: str, value: float) -> Metric:
    return CounterMetricFamily(name, what, value=value)


def counters(name: str, what: str, labels: Sequence[str], values: Mapping[Any, float]) -> Metric:
    family = CounterMetricFamily(name, what, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def histograms(name: str, what: str, labels: Sequence[str], values: Mapping[Labels, Distribution]) -> Metric:
    family = HistogramMetricFamily(name, what, labels=labels)
    for key, values_of in values.items():
        buckets = [("+Inf" if bound == inf else str(bound), float(count)) for bound, count in values_of.cumulative()]
        family.add_metric(key, buckets, sum_value=values_of.total)
    return family


class _Reading(Collector):
    """Asks for the metrics anew each time."""

    def __init__(self, read: Callable[[], Iterable[Metric]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        return self._read()

    def describe(self) -> Iterable[Metric]:
        return ()  # or they would be read once before there is anything


def metrics_page(read: Callable[[], Iterable[Metric]]) -> Handler:
    """A handler that shows what `read` gives, and what the process takes of the machine."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(_Reading(read))

    async def show(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(registry), headers={"Content-Type": content_type})

    return show


@asynccontextmanager
async def serving_metrics(page: Handler, *, host: str, port: int) -> AsyncIterator[str]:
    """Show the page at a port of its own, and nothing else; gives its address. AddressError if that cannot be had."""
    app = web.Application()
    app.router.add_get(PATH, page)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    async with listening(runner, host=host, port=port, doing="show metrics") as url:
        yield f"{url}{PATH}"
