"""What the gateway counts of its requests, as Prometheus's own parser reads it."""

import asyncio
from collections.abc import Mapping

import aiohttp
import pytest
from aiohttp import web
from gateway_in_memory import asking, continuing, events_of, gateway_over, posted
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from served_in_memory import MODEL, served

from chainserve.transport.exposition import PATH
from chainserve.types import Span
from chainserve_client.gateway import answering
from chainserve_client.gateway.keys import ApiKey, Keys, new_key
from chainserve_client.gateway.metrics import MAX_MODELS, OTHER, GatewayMetrics

SPANS = {"a": Span(0, 4), "b": Span(4, 8)}
CHAT = {"gen_ai_operation_name": "chat", "gen_ai_request_model": MODEL.name}
OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def read(http: aiohttp.ClientSession) -> Samples:
    async with http.get(PATH) as response:
        assert response.status == 200
        assert response.content_type == "text/plain"
        families = list(parse_text(await response.text()))
    return {(sample.name, frozenset(sample.labels.items())): sample.value for one in families for sample in one.samples}


def of(samples: Samples, name: str, labels: Mapping[str, str]) -> float:
    return samples[name, frozenset(labels.items())]


async def test_requests_tokens_and_times_are_counted() -> None:
    async with served(SPANS) as swarm, gateway_over(swarm) as http:
        await posted(http, "/v1/chat/completions", asking())
        async with http.post("/v1/chat/completions", json=asking(stream=True, n=2)) as response:
            await events_of(response)
        await posted(http, "/v1/completions", continuing())
        async with http.post("/v1/chat/completions", json=asking(model="other")) as response:
            assert response.status == 404
        seen = await read(http)
    assert of(seen, "chainserve_gateway_requests_total", {**CHAT, "status": "200"}) == 2
    unknown = {**CHAT, "gen_ai_request_model": "", "status": "404"}
    assert of(seen, "chainserve_gateway_requests_total", unknown) == 1
    assert of(seen, "chainserve_gateway_generated_tokens_total", CHAT) == 24
    assert of(seen, "chainserve_gateway_active_streams", CHAT) == 0
    assert of(seen, "gen_ai_client_token_usage_sum", {**CHAT, "gen_ai_token_type": "input"}) == 15
    assert of(seen, "gen_ai_client_token_usage_sum", {**CHAT, "gen_ai_token_type": "output"}) == 24
    assert of(seen, "gen_ai_server_time_to_first_token_seconds_count", CHAT) == 3
    assert of(seen, "gen_ai_server_time_per_output_token_seconds_count", CHAT) == 3
    assert of(seen, "chainserve_gateway_inter_token_seconds_count", CHAT) == 3 * 7
    assert of(seen, "chainserve_gateway_queue_seconds_count", CHAT) == 3
    assert of(seen, "gen_ai_server_request_duration_seconds_count", {**CHAT, "error_type": ""}) == 2
    texts = {"gen_ai_operation_name": "text_completion", "gen_ai_request_model": MODEL.name}
    assert of(seen, "chainserve_gateway_generated_tokens_total", texts) == 8
    assert of(seen, "chainserve_gateway_recoveries_total", {}) == 0


async def test_openmetrics_is_spoken_to_who_asks_for_it() -> None:
    async with served(SPANS) as swarm, gateway_over(swarm) as http:
        await posted(http, "/v1/chat/completions", asking())
        async with http.get(PATH, headers=OPENMETRICS) as response:
            assert response.content_type == "application/openmetrics-text"
            families = {family.name: family.type for family in parse_openmetrics(await response.text())}
    assert families["chainserve_gateway_requests"] == "counter"
    assert families["gen_ai_client_token_usage"] == "histogram"
    assert families["process_resident_memory_bytes"] == "gauge"


async def test_running_streams_show_and_who_hangs_up_is_counted() -> None:
    async with served(SPANS) as swarm, gateway_over(swarm) as http:
        swarm.servers["b"].engine.is_held = True
        asked = asyncio.create_task(posted(http, "/v1/chat/completions", asking()))
        while ("chainserve_gateway_active_streams", frozenset(CHAT.items())) not in (seen := await read(http)):
            await asyncio.sleep(0.01)
        assert of(seen, "chainserve_gateway_active_streams", CHAT) == 1
        asked.cancel()
        while of(seen, "chainserve_gateway_active_streams", CHAT):
            await asyncio.sleep(0.01)
            seen = await read(http)
        assert of(seen, "chainserve_gateway_requests_total", {**CHAT, "status": "499"}) == 1


async def test_who_hangs_up_while_an_answer_is_written_is_no_fault_of_the_gateway(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It had a traceback in its log then: the connection is closing, and who has asked is not told off yet."""
    send = answering._send

    async def closing(request: web.Request, response: web.StreamResponse, data: bytes) -> None:
        assert request.transport is not None
        request.transport.close()
        await send(request, response, data)

    monkeypatch.setattr(answering, "_send", closing)
    async with served(SPANS) as swarm, gateway_over(swarm) as http:
        with pytest.raises(aiohttp.ClientError):
            async with http.post("/v1/chat/completions", json=asking(stream=True)) as response:
                await response.read()
        assert of(await read(http), "chainserve_gateway_requests_total", {**CHAT, "status": "499"}) == 1
    assert not caplog.records


async def test_where_keys_are_asked_for_metrics_ask_for_one_too() -> None:
    key, table = new_key("prometheus")
    keys = Keys([ApiKey("prometheus", table.split('"')[1])])
    async with served(SPANS) as swarm, gateway_over(swarm, keys=keys) as http:
        async with http.get(PATH) as response:
            assert response.status == 401
        async with http.get(PATH, headers={"Authorization": f"Bearer {key}"}) as response:
            assert response.status == 200


@pytest.mark.parametrize("num_models", [MAX_MODELS, MAX_MODELS + 1, 3 * MAX_MODELS])
def test_labels_stay_few_however_many_models_a_swarm_has_had(num_models: int) -> None:
    metrics = GatewayMetrics()
    names = {metrics.label(f"model-{number}") for number in range(num_models)}
    assert len(names) <= MAX_MODELS + 1
    assert (OTHER in names) == (num_models > MAX_MODELS)
    assert metrics.label("model-0") == "model-0"
