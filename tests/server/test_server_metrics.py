"""What a server counts of its forwards and shows of itself, as Prometheus's own parser reads it."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families as parse

from chainserve.errors import AddressError
from chainserve.models.wire import to_wire
from chainserve.protocol.messages import Step
from chainserve.swarm.records import Announcement, ServerState
from chainserve.transport.exposition import metrics_page, serving_metrics
from chainserve.transport.links import LinkCounters, Traffic
from chainserve.types import PeerId, SessionId, Span
from chainserve_server.iteration import run_batch
from chainserve_server.metrics import ForwardCounts, server_families
from chainserve_server.work import Batch, Forward, Work

SPAN = Span(2, 5)


def forward(num_decode: int = 0, num_prefill_tokens: int = 0, num_drafts: int = 0, seconds: float = 0.003) -> Forward:
    return Forward(SPAN, num_decode, num_prefill_tokens, seconds, num_drafts=num_drafts)


def samples(families: Any) -> dict[tuple[str, ...], float]:
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def test_tokens_are_counted_by_what_they_were_computed_for() -> None:
    counts = ForwardCounts()
    for one in (
        forward(num_decode=3),
        forward(num_prefill_tokens=100),
        forward(num_decode=1, num_prefill_tokens=50),
        forward(num_prefill_tokens=5, num_drafts=5, seconds=70.0),
    ):
        counts.add(one)
    seen = samples(counts.families())
    tokens = {
        phase: seen["chainserve_server_computed_tokens_total", phase] for phase in ("prefill", "decode", "drafts")
    }
    assert tokens == {"prefill": 150, "decode": 4, "drafts": 5}
    steps = {phase: seen["chainserve_server_step_seconds_count", phase] for phase in ("prefill", "decode", "mixed")}
    assert steps == {"prefill": 1, "decode": 2, "mixed": 1}
    assert seen["chainserve_server_step_seconds_bucket", "decode", "0.005"] == 1
    assert seen["chainserve_server_step_seconds_bucket", "decode", "+Inf"] == 2
    assert seen["chainserve_server_step_rows_sum",] == 3 + 100 + 51 + 5


def test_steps_that_check_drafts_are_told_from_prompts() -> None:
    def work(session: bytes, start: int, num_tokens: int, num_outputs: int) -> Work:
        step = Step(SessionId(session * 16), 0, start, num_tokens, num_outputs)
        return Work(step, SPAN, to_wire(torch.zeros(num_tokens, 2)), PeerId("next"), is_tail=False)

    runner: Any = SimpleNamespace(dtype=torch.float32, device=torch.device("cpu"), cache=None)
    runner.forward = lambda hidden, _steps, _span: hidden
    works = [work(b"a", 9, 1, 1), work(b"b", 9, 4, 4), work(b"c", 8, 8, 1), work(b"d", 0, 2, 2)]
    [ran] = run_batch(runner, Batch([], works)).forwards
    assert (ran.num_decode, ran.num_prefill_tokens, ran.num_drafts) == (1, 14, 4)


def a_server(span: Span | None = SPAN) -> Any:
    """What the page asks a server for."""
    counts = ForwardCounts()
    counts.add(forward(num_decode=2))
    record = Announcement(
        peer=PeerId("1" * 46),
        state=ServerState.ONLINE if span else ServerState.JOINING,
        model='org/"model"\\',
        model_digest="d" * 64,
        num_blocks=8,
        span=span,
        dtype="float32",
        cache_tokens=1000 if span else 0,
        free_tokens=900 if span else 0,
        addresses=(),
        version="1",
        started_at=1.0,
        num_sessions=1,
        num_waiting=2,
        epoch=7,
    )
    seen = LinkCounters(links_made=3, traffic={("client", "direct"): Traffic(bytes_sent=5, bytes_received=6)})
    seen.refused["too-large"] += 1
    return SimpleNamespace(
        member=SimpleNamespace(plan=SimpleNamespace(epoch=7)),
        announcement=lambda *, epoch: record,
        device=torch.device("cpu"),
        num_servers_seen=2,
        sessions=SimpleNamespace(counts=Counter({"opened": 4, "cache-full": 1})),
        forwards=counts,
        links=SimpleNamespace(counters=seen, standing=lambda: {("client", "direct"): 1}, num_strangers=9),
    )


@pytest.mark.parametrize("span", [SPAN, None])
async def test_the_page_shows_what_the_server_knows_now_and_is_read_by_the_parser(span: Span | None) -> None:
    server = a_server(span)
    page = metrics_page(lambda: server_families(server))
    async with serving_metrics(page, host="127.0.0.1", port=0) as url, aiohttp.ClientSession() as http:
        async with http.get(url) as response:
            assert (response.status, response.content_type) == (200, "text/plain")
            families = list(parse(await response.text()))
        async with http.get(url.removesuffix("/metrics")) as elsewhere:
            assert elsewhere.status == 404
    seen = samples(families)
    assert seen["chainserve_server_blocks",] == (3 if span else 0)
    assert seen["chainserve_server_first_block",] == (2 if span else -1)
    assert seen["chainserve_server_online",] == bool(span)
    assert seen["chainserve_server_plan_epoch",] == 7
    assert seen["chainserve_server_waiting",] == 2
    assert seen["chainserve_server_sessions_failed_total", "cache-full"] == 1
    assert seen["chainserve_server_links", "direct", "client"] == 1
    assert seen["chainserve_server_received_bytes_total", "direct", "client"] == 6
    assert seen["chainserve_server_refused_frames_total", "too-large"] == 1
    assert seen["chainserve_server_refused_strangers_total",] == 9
    [info] = [family for family in families if family.name == "chainserve_server_info"]
    assert info.samples[0].labels["model"] == 'org/"model"\\'
    names = [family.name for family in families]
    assert len(names) == len(set(names))


async def test_a_port_that_is_taken_is_said() -> None:
    page = metrics_page(lambda: iter(()))
    async with serving_metrics(page, host="127.0.0.1", port=0) as url:
        port = int(url.split(":")[2].split("/")[0])
        with pytest.raises(AddressError, match="cannot show metrics at"):
            async with serving_metrics(page, host="127.0.0.1", port=port):
                pass
