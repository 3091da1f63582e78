"""The gateway over a real swarm of three servers, asked by OpenAI's own package."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
import torch
from bundled import MODEL, MakeSwarm, Reference
from commands import serving
from llguidance import LLMatcher, LLTokenizer
from openai import OpenAI
from pydantic import BaseModel, Field
from transformers import LogitsProcessorList

from chainserve.swarm.view import View
from chainserve_client.join import join
from chainserve_server.local import LocalSwarm

pytestmark = [pytest.mark.process, pytest.mark.timeout(600)]

QUESTION: Any = [{"role": "user", "content": "Why is the sky blue?"}]
CHARACTERS: Any = [{"role": "user", "content": "Write three emoji: 😀 🦊 🌍"}]


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSwarm]:
    with LocalSwarm(MODEL, tmp_path_factory.mktemp("swarm"), is_warm=True) as swarm:
        swarm.launch("0:10", ("--gateway", "0"))
        swarm.start("10:20", "20:30")
        swarm.servers[0].wait_for("is online")
        yield swarm


@pytest.fixture(scope="module")
def api(swarm: LocalSwarm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    with (
        serving("gateway", swarm.token, tmp_path_factory.mktemp("gateway"), "--port", "0") as url,
        client_of(url) as client,
    ):
        yield client


def client_of(url: str, key: str = "none") -> OpenAI:
    return OpenAI(base_url=url, api_key=key, max_retries=0)


@pytest.fixture(scope="module")
def expected(reference: Reference) -> str:
    """What transformers answers."""
    tokens = reference.greedy(reference.prompt(QUESTION[0]["content"]), 24)
    return str(reference.tokenizer.decode(tokens, skip_special_tokens=True))


def test_greedy_text_is_that_of_transformers_whole_and_in_pieces(api: OpenAI, swarm: LocalSwarm, expected: str) -> None:
    whole = api.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_completion_tokens=24)
    assert whole.choices[0].message.content == expected
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 24
    options: Any = {"stream_options": {"include_usage": True}, "extra_body": {"chainserve": True}}
    raw = api.chat.completions.with_raw_response.create(
        model=MODEL, messages=QUESTION, temperature=0, max_tokens=24, stream=True, **options
    )
    *chunks, usage = raw.parse()
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    assert chunks[-1].choices[0].finish_reason == "length"
    assert usage.usage == whole.usage
    hops = [tuple(hop.split()) for hop in raw.headers["x-chainserve-route"].split(", ")]
    assert hops == [(server.peer, server.blocks) for server in swarm.servers]
    report = chunks[-1].choices[0].model_extra["chainserve"]
    assert all(hop["compute_s"] > 0 for hop in report["hops"])
    assert sum(hop["queue_s"] + hop["compute_s"] for hop in report["hops"]) < report["total_s"]
    assert [hop["peer"] for hop in report["route"]] == [server.peer for server in swarm.servers]


def test_a_completion_is_that_of_transformers_and_parts_of_characters_are_bytes(
    api: OpenAI, reference: Reference
) -> None:
    prompt = reference.tokenizer("The capital of France is")["input_ids"]
    text = reference.tokenizer.decode(reference.greedy(prompt, 8), skip_special_tokens=True)
    for given in ("The capital of France is", prompt):
        found = api.completions.create(model=MODEL, prompt=given, temperature=0, max_tokens=8, logprobs=2)
        assert found.choices[0].text == text
        logprobs = found.choices[0].logprobs
        assert logprobs is not None
        assert "".join(logprobs.tokens or ()) == text
        assert (logprobs.text_offset or [])[:2] == [0, len((logprobs.tokens or [""])[0])]
    answer = api.chat.completions.create(
        model=MODEL, messages=CHARACTERS, temperature=0, max_tokens=16, logprobs=True, top_logprobs=2
    )
    scored = answer.choices[0].logprobs
    assert scored is not None
    entries = scored.content or []
    said = b"".join(bytes(entry.bytes or ()) for entry in entries)
    assert said.decode(errors="ignore") == (answer.choices[0].message.content or "").rstrip("\ufffd")
    assert any("\ufffd" in entry.token for entry in entries)  # parts of characters
    assert all(entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob for entry in entries)


def test_stop_seed_choices_and_penalties(api: OpenAI, expected: str) -> None:
    stop = expected.split()[3]
    stopped = api.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=24, stop=[stop])
    assert stopped.choices[0].message.content == expected[: expected.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"

    def texts(**options: Any) -> list[str]:
        found = api.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=8, **options)
        return [choice.message.content or "" for choice in found.choices]

    two = texts(seed=7, n=2)
    assert two == texts(seed=7, n=2)
    assert two[0] != two[1]
    assert texts(seed=8) == two[1:]
    assert texts(temperature=0, logit_bias={"260": 100}) == [" the" * 8]
    assert texts(seed=7, extra_body={"top_k": 1}) == texts(temperature=0) == [expected[: len(texts(temperature=0)[0])]]

    def continued(**options: Any) -> str:
        prompt = "one two one two one two one two"
        return (
            api.completions.create(model=MODEL, prompt=prompt, temperature=0, max_tokens=12, **options).choices[0].text
        )

    plain = continued()
    assert continued(extra_body={"repetition_penalty": 1.5}) != plain
    assert continued(frequency_penalty=2, presence_penalty=2) != plain


def test_what_cannot_be_is_an_error_of_the_right_class(api: OpenAI) -> None:
    usual: Any = {"model": MODEL, "messages": QUESTION, "max_tokens": 8}
    for error, code, change in (
        (openai.NotFoundError, "model_not_found", {"model": "gpt-4"}),
        (openai.BadRequestError, "context_length_exceeded", {"messages": [{"role": "user", "content": "hi " * 9000}]}),
        (openai.BadRequestError, "invalid_value", {"temperature": -1}),
        (openai.BadRequestError, "unsupported_parameter", {"tools": [{"type": "function", "function": {"name": "f"}}]}),
        (openai.APIStatusError, "body_too_large", {"messages": [{"role": "user", "content": "x" * 2**24}]}),
    ):
        with pytest.raises(error) as caught:
            api.chat.completions.create(**(usual | change))
        assert isinstance(caught.value, openai.APIStatusError)
        assert caught.value.code == code
        assert caught.value.request_id


class Person(BaseModel):
    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=150)
    likes: list[Literal["tea", "coffee"]] = Field(max_length=2)


WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["celsius", "fahrenheit"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
IN_PARIS: Any = [{"role": "user", "content": "What is the weather in Paris?"}]


def masked(reference: Reference, prompt: list[int], schema: dict[str, Any], num_tokens: int) -> str:
    """What transformers answers where the likeliest of the tokens is taken that the schema allows."""
    grammar = LLMatcher.grammar_from_json_schema(
        schema, overrides={"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    )
    end = reference.tokenizer.eos_token_id
    matcher = LLMatcher(LLTokenizer(reference.tokenizer.backend_tokenizer.to_str(), eos_token=end), grammar)
    taken = len(prompt)

    def mask(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        nonlocal taken
        assert all(matcher.consume_token(token) for token in ids[0, taken:].tolist())
        taken = ids.shape[1]
        allowed = torch.frombuffer(bytearray(matcher.compute_logit_bias()), dtype=torch.uint8) != 0
        return scores.masked_fill(~allowed, -torch.inf)

    ids = torch.tensor([prompt])
    output = reference.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=num_tokens,
        do_sample=False,
        logits_processor=LogitsProcessorList([mask]),  # type: ignore[list-item]
    )
    return str(reference.tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True))


def test_json_of_a_schema_is_what_transformers_gives_masked(api: OpenAI, reference: Reference) -> None:
    schema = Person.model_json_schema()
    question = "Describe Ada, who is 36 and likes tea, in JSON."
    asked: Any = {
        "model": MODEL,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 80,
        "response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}},
    }
    answer = api.chat.completions.create(**asked).choices[0]
    assert answer.finish_reason == "stop"
    Person.model_validate_json(answer.message.content or "")
    assert answer.message.content == masked(reference, reference.prompt(question), schema, 80)
    chunks = api.chat.completions.create(**asked, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer.message.content
    parsed = api.chat.completions.parse(
        model=MODEL, messages=IN_PARIS, response_format=Person, max_tokens=120, seed=4, temperature=1.2
    )
    assert isinstance(parsed.choices[0].message.parsed, Person)
    anything = api.chat.completions.create(
        model=MODEL, messages=IN_PARIS, response_format={"type": "json_object"}, max_tokens=60, temperature=0
    )
    assert (anything.choices[0].message.content or "").startswith("{")


def test_tools_are_called_and_what_they_gave_is_read(api: OpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "get_weather"}}
    usual: Any = {"model": MODEL, "messages": IN_PARIS, "tools": [WEATHER], "max_tokens": 100, "temperature": 0}
    answers = [
        api.chat.completions.create(**usual, tool_choice=choice, parallel_tool_calls=False)
        for choice in (named, "required")
    ]
    for answer in answers:
        assert answer.choices[0].finish_reason == "tool_calls"
        [call] = answer.choices[0].message.tool_calls or []
        assert call.type == "function"
        assert call.function.name == "get_weather"
        arguments = json.loads(call.function.arguments)
        assert set(arguments) == {"city", "unit"}
    with api.chat.completions.stream(**usual, tool_choice=named) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.done" in kinds
    [streamed] = final.choices[0].message.tool_calls or []
    assert streamed.function.arguments == call.function.arguments
    result = {"role": "tool", "tool_call_id": call.id, "content": "18 degrees and sunny"}
    messages = [*IN_PARIS, answers[0].choices[0].message.model_dump(), result]
    told = api.chat.completions.create(**usual | {"messages": messages, "tool_choice": "none"})
    assert told.choices[0].message.content
    assert told.usage is not None
    assert answers[0].usage is not None
    assert told.usage.prompt_tokens > 40


def test_schemas_that_cannot_be_enforced_are_bad_requests_and_others_go_on(api: OpenAI, expected: str) -> None:
    stream = api.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=24, stream=True)
    texts = [next(iter(stream)).choices[0].delta.content or ""]
    for schema in ({"type": "objectt"}, {"type": "array", "uniqueItems": True}, {"enum": ["x" * 70_000]}):
        form: Any = {"type": "json_schema", "json_schema": {"name": "bad", "schema": schema}}
        with pytest.raises(openai.BadRequestError) as caught:
            api.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=8, response_format=form)
        assert caught.value.param == "response_format"
    texts += [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(texts) == expected


async def test_a_client_that_goes_away_frees_its_cache_at_once(swarm: LocalSwarm, api: OpenAI) -> None:
    network = await join(swarm.token)
    try:
        for is_stream in (True, False):
            client = openai.AsyncOpenAI(base_url=api.base_url, api_key="none", max_retries=0)
            call = client.chat.completions.create(
                model=MODEL, messages=QUESTION, max_tokens=2000, stream=is_stream, extra_body={"ignore_eos": True}
            )
            asking = asyncio.create_task(call)
            await network.swarm.wait_for(lambda view: not all_free(view), timeout_s=20)
            if is_stream:
                await (await asking).close()
            else:
                asking.cancel()
            await client.close()
            await network.swarm.wait_for(all_free, timeout_s=10)
    finally:
        await network.close()


def all_free(view: View) -> bool:
    return all((each.free_tokens, each.num_sessions) == (each.cache_tokens, 0) for each in view.servers.values())


def test_keys_are_asked_for_and_limited(swarm: LocalSwarm, tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "chainserve_client.cli", "api-key", "alice"], capture_output=True, text=True, check=True
    )
    key = made.stderr.split()[-1]
    keys = tmp_path / "keys.toml"
    keys.write_text(made.stdout + "requests_per_minute = 2\n")
    with serving("gateway", swarm.token, tmp_path, "--port", "0", "--host", "0.0.0.0", "--api-keys", str(keys)) as url:
        url = url.replace("0.0.0.0", "127.0.0.1")
        for wrong in ("wrong", key[:-1]):
            with client_of(url, wrong) as client, pytest.raises(openai.AuthenticationError):
                client.models.list()
        with client_of(url, key) as client:
            assert [model.id for model in client.models.list()] == [MODEL]
            client.models.retrieve(MODEL)
            with pytest.raises(openai.RateLimitError) as caught:
                client.models.list()
            assert 0 < int(caught.value.response.headers["retry-after"]) <= 30


def test_a_server_may_have_a_gateway_beside_it(swarm: LocalSwarm, expected: str) -> None:
    output = swarm.servers[0].wait_for("/v1\n")
    found = re.search(r"serving at (\S+)\n", output)
    assert found is not None
    with client_of(found[1]) as client:
        answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=24)
    assert answer.choices[0].message.content == expected


def test_strangers_are_let_in_only_if_that_is_said() -> None:
    command = [sys.executable, "-m", "chainserve_client.cli", "gateway", "token", "--host", "0.0.0.0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--api-keys FILE" in done.stderr


def test_missing_blocks_are_named(make_swarm: MakeSwarm, tmp_path: Path) -> None:
    swarm = make_swarm("0:15")
    with serving("gateway", swarm.token, tmp_path, "--port", "0") as url, client_of(url) as client:
        with pytest.raises(openai.InternalServerError, match="no server holds blocks 15:30") as caught:
            client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=8)
        assert caught.value.status_code == 503
