"""What a server hands to clients: a look at the swarm that is fresh, shared and bounded, and its model's text side."""

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from chainserve.errors import SwarmError
from chainserve.models.source import ModelSource
from chainserve.protocol.messages import Topic
from chainserve.protocol.text import NoText, TextBundle, unpack_text
from chainserve.runtime.virtual import VirtualLoop
from chainserve.swarm.sealed import SealedView
from chainserve.swarm.view import View
from chainserve_server import handouts
from chainserve_server.handouts import GAP_S, READ_S, Handouts

BUNDLE = TextBundle(
    tokenizer="{}", chat_template=None, special_tokens={}, end_tokens=(2,), vocab_size=10, max_position=None
)


class FakeSwarm:
    """Each look at it takes a while, and gives the time at which it began."""

    def __init__(self, *, look_s: float = 0.01) -> None:
        self.sealed = SealedView()
        self.look_s = look_s
        self.began_s: list[float] = []
        self.fails = False

    def now(self) -> float:
        return 7.0

    async def refresh(self) -> View:
        began_s = asyncio.get_running_loop().time()
        self.began_s.append(began_s)
        await asyncio.sleep(self.look_s)
        if self.fails:
            raise SwarmError("no daemon")
        self.sealed = SealedView((b"%.3f" % began_s,))
        return View()


def source_of(tokenizer: Any) -> ModelSource:
    return cast(ModelSource, SimpleNamespace(digest="digest", name="org/m", tokenizer=tokenizer))


def made(swarm: FakeSwarm, source: ModelSource | None = None) -> Handouts:
    clock = asyncio.get_running_loop().time
    return Handouts(swarm, source or source_of(None), clock=clock)


def seen_s(body: bytes) -> float:
    """When the look began that an answer shows."""
    sealed, now = SealedView.from_bytes(body)
    assert now == 7.0
    return float(sealed.servers[0])


def in_no_time(scenario: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(scenario)


def test_every_answer_shows_a_look_that_began_after_the_question() -> None:
    async def scenario() -> None:
        swarm = FakeSwarm()
        handed = made(swarm)
        find = handed.answers[Topic.VIEW]

        async def ask(after_s: float) -> None:
            await asyncio.sleep(after_s)
            asked_s = asyncio.get_running_loop().time()
            assert seen_s(await find("1")) >= round(asked_s, 3)

        await asyncio.gather(*(ask(number * 0.003) for number in range(300)))
        gaps = [later - earlier for earlier, later in zip(swarm.began_s, swarm.began_s[1:], strict=False)]
        assert min(gaps) >= GAP_S - 1e-9
        assert len(swarm.began_s) <= 0.9 / GAP_S + 2

    in_no_time(scenario())


def test_a_look_that_takes_too_long_is_not_waited_for() -> None:
    async def scenario() -> None:
        swarm = FakeSwarm()
        handed = made(swarm)
        first = seen_s(await handed.view("1"))
        swarm.look_s = 10.0
        asked_s = asyncio.get_running_loop().time()
        assert seen_s(await handed.view("2")) == first
        assert asyncio.get_running_loop().time() - asked_s == pytest.approx(READ_S)
        await asyncio.sleep(10.0)
        assert seen_s(await handed.view("3")) > first  # it went on

    in_no_time(scenario())


def test_where_the_swarm_cannot_be_read_the_last_look_is_handed_out() -> None:
    async def scenario() -> None:
        swarm = FakeSwarm()
        handed = made(swarm)
        first = seen_s(await handed.view("1"))
        swarm.fails = True
        assert seen_s(await handed.view("2")) == first
        swarm.fails = False
        assert seen_s(await handed.view("3")) > first

    in_no_time(scenario())


async def test_the_tokenizer_is_read_once_when_it_is_first_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[ModelSource] = []

    def text_of(source: ModelSource) -> TextBundle:
        read.append(source)
        return BUNDLE

    monkeypatch.setattr(handouts, "text_of", text_of)
    source = source_of(None)
    find = made(FakeSwarm(), source).answers[Topic.TEXT]
    assert await find("another model") == b""
    assert read == []
    bodies = await asyncio.gather(*(find("digest") for _ in range(3)))
    assert [unpack_text(body) for body in bodies] == [BUNDLE] * 3
    assert read == [source]


async def test_why_there_is_none_is_said_and_tried_again_if_it_may_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = [OSError("no network"), BUNDLE]

    def text_of(_: ModelSource) -> TextBundle:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return cast(TextBundle, answer)

    monkeypatch.setattr(handouts, "text_of", text_of)
    handed = made(FakeSwarm())
    assert unpack_text(await handed.text("digest")) == NoText("its files cannot be read: no network")
    assert unpack_text(await handed.text("digest")) == BUNDLE


async def test_a_tokenizer_that_nobody_would_take_is_not_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chainserve.protocol.text.MAX_JSON_BYTES", 100)
    monkeypatch.setattr(handouts, "text_of", lambda _: replace(BUNDLE, tokenizer="x" * 100))
    text = unpack_text(await made(FakeSwarm()).text("digest"))
    assert isinstance(text, NoText)
    assert "at most 100" in text.reason
