"""What the gateway answers when all goes well: whole and as streams, in the shape that OpenAI's clients know."""

import math
from typing import Any

import pytest
from gateway_in_memory import asking, continuing, events_of, gateway_over, posted, text_of
from served_in_memory import ALPHABET, MODEL, generated, served

from chainserve.protocol.sampling import Sampling
from chainserve.types import Span

SPANS = {"a": Span(0, 4), "b": Span(4, 8)}
PROMPT = [ALPHABET.index(letter) for letter in "hello"]


def answer(num_tokens: int = 8, **sampling: Any) -> str:
    """What one server alone would give."""
    tokens = generated(PROMPT, Sampling(num_prompt_tokens=5, **sampling), num_tokens=num_tokens)
    return "".join(ALPHABET[token] for token in tokens)


async def test_a_chat_is_answered_whole() -> None:
    async with served(SPANS) as swarm, gateway_over(swarm) as http:
        async with http.post("/v1/chat/completions", json=asking()) as response:
            body = await response.json()
        assert response.status == 200
        hops = ", ".join(f"{hop.peer} {hop.span}" for hop in swarm.chain("a", "b").hops)
        assert response.headers["x-chainserve-route"] == hops
        assert float(response.headers["x-chainserve-first-token-ms"]) >= 0
        assert response.headers["x-request-id"].startswith("req-")
    [choice] = body.pop("choices")
    assert choice["message"] == {"role": "assistant", "content": answer(), "refusal": None}
    assert (choice["finish_reason"], choice["logprobs"], choice["index"]) == ("length", None, 0)
    assert body.pop("id").startswith("chatcmpl-")
    assert body.pop("created") > 0
    assert body == {
        "object": "chat.completion",
        "model": MODEL.name,
        "usage": {"prompt_tokens": 5, "completion_tokens": 8, "total_tokens": 13},
    }


async def test_a_stream_gives_the_same_in_pieces() -> None:
    async with served(SPANS) as swarm, gateway_over(swarm) as http:
        asked = asking(stream=True, stream_options={"include_usage": True}, chainserve=True)
        async with http.post("/v1/chat/completions", json=asked) as response:
            *events, usage = await events_of(response)
            assert response.content_type == "text/event-stream"
            assert len(response.headers["x-chainserve-route"].split(", ")) == 2
    assert text_of(events) == answer()
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert len({event["id"] for event in events}) == 1
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert [event["choices"][0]["finish_reason"] for event in events] == [None] * 9 + ["length"]
    report = events[-1]["choices"][0]["chainserve"]
    assert [hop["blocks"] for hop in report["route"]] == [[0, 4], [4, 8]]
    assert 0 <= report["queue_s"] <= report["first_token_s"] <= report["total_s"]
    assert report["tokens_per_s"] > 0
    assert all(event["usage"] is None for event in events)
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 5, "completion_tokens": 8, "total_tokens": 13}


@pytest.mark.parametrize(
    ("fields", "sampling"),
    [
        ({"temperature": 1.5, "seed": 7}, {"temperature": 1.5, "seed": 7}),
        ({"temperature": None, "seed": -1}, {"temperature": 1.0, "seed": 2**63 - 1}),
        (
            {"temperature": 2, "seed": 7, "top_p": 0.9, "top_k": 5, "min_p": 0.01},
            {"temperature": 2.0, "seed": 7, "top_p": 0.9, "top_k": 5, "min_p": 0.01},
        ),
        ({"temperature": 2, "seed": 7, "top_k": -1}, {"temperature": 2.0, "seed": 7}),
        (
            {"presence_penalty": 1.5, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
            {"presence_penalty": 1.5, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
        ),
        ({"logit_bias": {"7": 100, "8": -100}}, {"logit_bias": ((7, 100.0), (8, -100.0))}),
    ],
    ids=["seed", "usual temperature", "filters", "no top_k", "penalties", "bias"],
)
async def test_what_is_asked_of_the_sampler_arrives_there(fields: dict[str, Any], sampling: dict[str, Any]) -> None:
    async with served(SPANS) as swarm, gateway_over(swarm) as http:
        body = await posted(http, "/v1/chat/completions", asking(**fields))
    assert body["choices"][0]["message"]["content"] == answer(**sampling)


async def test_choices_differ_by_seed_and_come_in_order() -> None:
    async with served(SPANS) as swarm, gateway_over(swarm) as http:
        fields = {"prompt": ["hello", "hel"], "n": 2, "seed": 5, "temperature": 2}
        body = await posted(http, "/v1/completions", continuing(**fields))
        async with http.post("/v1/completions", json=continuing(stream=True, **fields)) as response:
            events = await events_of(response)
    choices = body["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    assert [choice["text"] for choice in choices[:2]] == [answer(temperature=2.0, seed=seed) for seed in (5, 6)]
    assert body["usage"] == {"prompt_tokens": 8, "completion_tokens": 32, "total_tokens": 40}
    for index in range(4):
        pieces = [choice for event in events for choice in event["choices"] if choice["index"] == index]
        assert "".join(piece["text"] for piece in pieces) == choices[index]["text"]
        assert [piece["finish_reason"] for piece in pieces][-2:] == [None, "length"]


@pytest.mark.parametrize("prompt", ["hello", ["hello"], PROMPT, [PROMPT]], ids=["text", "texts", "ids", "lists of ids"])
async def test_a_prompt_is_text_or_tokens_one_or_several(prompt: Any) -> None:
    async with served(SPANS) as swarm, gateway_over(swarm) as http:
        body = await posted(http, "/v1/completions", continuing(prompt=prompt))
    assert [choice["text"] for choice in body["choices"]] == [answer()]
    assert body["object"] == "text_completion"


async def test_messages_may_come_in_parts_and_from_a_developer() -> None:
    parts = [{"type": "text", "text": "he"}, {"type": "text", "text": "llo"}]
    messages = [{"role": "developer", "content": parts}]
    async with served(SPANS) as swarm, gateway_over(swarm) as http:
        body = await posted(http, "/v1/chat/completions", asking(messages=messages))
    assert body["choices"][0]["message"]["content"] == answer()


async def test_a_stop_text_ends_the_answer_and_is_not_shown() -> None:
    whole = answer(20)
    stop = whole[4:6]
    expected = whole[: whole.index(stop)]
    async with served(SPANS) as swarm, gateway_over(swarm) as http:
        for stops in (stop, ["zzz", stop]):
            async with http.post("/v1/chat/completions", json=asking(max_tokens=20, stop=stops)) as response:
                [choice] = (await response.json())["choices"]
                assert (choice["message"]["content"], choice["finish_reason"]) == (expected, "stop")
            asked = asking(max_tokens=20, stop=stops, stream=True)
            async with http.post("/v1/chat/completions", json=asked) as response:
                assert text_of(await events_of(response)) == expected


async def test_the_end_token_is_counted_and_not_shown() -> None:
    end = ALPHABET.index(answer(20)[4])
    shown = answer(20)[: answer(20).index(ALPHABET[end])]
    async with served(SPANS) as swarm, gateway_over(swarm, end_tokens=(end,)) as http:
        body = await posted(http, "/v1/chat/completions", asking(max_tokens=20, logprobs=True))
        ignored = await posted(http, "/v1/chat/completions", asking(ignore_eos=True))
    [choice] = body["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (shown, "stop")
    assert [entry["token"] for entry in choice["logprobs"]["content"]] == list(shown)
    assert body["usage"]["completion_tokens"] == len(shown) + 1
    assert ignored["usage"]["completion_tokens"] == 8


async def test_logprobs_of_a_chat_name_tokens_and_bytes() -> None:
    async with served(SPANS) as swarm, gateway_over(swarm) as http:
        asked = asking(logprobs=True, top_logprobs=3)
        async with http.post("/v1/chat/completions", json=asked) as response:
            content = (await response.json())["choices"][0]["logprobs"]["content"]
        async with http.post("/v1/chat/completions", json={**asked, "stream": True}) as response:
            events = await events_of(response)
    assert "".join(entry["token"] for entry in content) == answer()
    for entry in content:
        assert entry["bytes"] == list(entry["token"].encode())
        assert len(entry["top_logprobs"]) == 3
        assert entry["top_logprobs"][0] == {key: entry[key] for key in ("token", "logprob", "bytes")}  # greedy
        assert math.exp(entry["logprob"]) > 0.2
    streamed = [choice["logprobs"] for event in events for choice in event["choices"] if choice["logprobs"]]
    assert [entry for logprobs in streamed for entry in logprobs["content"]] == content


async def test_logprobs_of_a_completion_say_where_tokens_begin() -> None:
    async with served(SPANS) as swarm, gateway_over(swarm) as http:
        async with http.post("/v1/completions", json=continuing(logprobs=2)) as response:
            logprobs = (await response.json())["choices"][0]["logprobs"]
        async with http.post("/v1/completions", json=continuing(logprobs=0, temperature=2, seed=1)) as response:
            least = (await response.json())["choices"][0]["logprobs"]
        async with http.post("/v1/completions", json=continuing(logprobs=2, stream=True)) as response:
            events = await events_of(response)
    assert "".join(logprobs["tokens"]) == answer()
    assert logprobs["text_offset"] == list(range(8))
    for token, logprob, likeliest in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        assert len(likeliest) == 2
        assert likeliest[token] == logprob == max(likeliest.values())
    assert [set(likeliest) for likeliest in least["top_logprobs"]] == [{token} for token in least["tokens"]]
    streamed = [event["choices"][0]["logprobs"] for event in events if event["choices"][0]["logprobs"]]
    assert [offset for part in streamed for offset in part["text_offset"]] == list(range(8))


async def test_an_answer_of_no_set_length_stays_in_the_context() -> None:
    async with served(SPANS) as swarm, gateway_over(swarm) as http:
        body = await posted(http, "/v1/chat/completions", asking(max_tokens=None))
    assert body["usage"]["total_tokens"] == 500


async def test_models_are_listed_and_found_by_name() -> None:
    async with served(SPANS) as swarm, gateway_over(swarm) as http:
        async with http.get("/v1/models") as response:
            [model] = (await response.json())["data"]
        assert (model["id"], model["object"]) == (MODEL.name, "model")
        async with http.get(f"/v1/models/{MODEL.name}") as response:
            assert await response.json() == model


async def test_it_is_ready_when_all_blocks_are_served() -> None:
    for spans, status in ((SPANS, 200), ({"a": Span(0, 4)}, 503)):
        async with served(spans) as swarm, gateway_over(swarm) as http:
            async with http.get("/readyz") as response:
                assert response.status == status
            async with http.get("/healthz") as response:
                assert response.status == 200
