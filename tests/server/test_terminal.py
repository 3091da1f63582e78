"""What the terminal shows, and when what is shown elsewhere is news."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from chainserve.types import PeerId, Span
from chainserve_server.announcing import Announcer
from chainserve_server.terminal import introduction, news_of

ME = PeerId("me")


def prepared(pinned: Span | None) -> Any:
    source = SimpleNamespace(name="a-model", num_blocks=8)
    return SimpleNamespace(source=source, pinned=pinned, memory_bytes=5e9, device="cpu")


def introduced(**changes: Any) -> str:
    facts: dict[str, Any] = {
        "peer": ME,
        "swarm": "home",
        "addresses": ["ws://10.0.0.7:1"],
        "host": "10.0.0.7",
        "has_joined": False,
        "token": "chainserve1.secret",
        "metrics": None,
    }
    return introduction(prepared(None), **facts | changes)


def test_who_starts_a_swarm_is_told_how_others_join_and_ask() -> None:
    text = introduced()
    assert "started swarm home" in text
    assert "\nchainserve1.secret\n" in text
    assert "chainserve-server --model a-model --host ADDRESS --join TOKEN" in text
    assert "Only this machine" not in text
    assert introduced(host="127.0.0.1").endswith("start with --host ADDRESS for others to join.")


def test_a_token_in_a_file_or_of_others_is_not_shown() -> None:
    assert "kept in the file" in introduced(token=None)
    joined = introduced(has_joined=True)
    assert "joined swarm home" in joined
    assert "secret" not in joined


@pytest.mark.parametrize(
    ("pinned", "spans", "shortage", "news"),
    [
        (None, {ME: Span(0, 4)}, None, "plan 3: blocks 0:4"),
        (None, {}, None, "plan 3: no blocks for this server"),
        (Span(0, 4), {ME: Span(0, 4)}, None, None),
        (
            Span(0, 4),
            {},
            SimpleNamespace(missing=(6, 7), missing_bytes=2.5e9),
            "waiting for more servers: no room for blocks 6:8 of 8, 2.5 GB more are needed",
        ),
    ],
)
def test_of_a_plan_what_concerns_this_server_is_said(
    pinned: Span | None, spans: dict[PeerId, Span], shortage: Any, news: str | None
) -> None:
    plan = SimpleNamespace(epoch=3, placement=SimpleNamespace(spans=spans), shortage=shortage)
    assert news_of(cast(Any, plan), prepared(pinned), peer=ME) == news


def test_rates_that_change_by_half_and_loading_that_goes_on_are_news_once() -> None:
    stand_in = cast(Any, SimpleNamespace(peer_id=ME, now=lambda: 0.0, device=torch.device("cpu"), loaded_share=None))
    observed = SimpleNamespace(tokens=SimpleNamespace(per_s=0.0))
    announcer = Announcer(
        stand_in,
        stand_in,
        name=None,
        links=stand_in,
        sessions=stand_in,
        blocks=stand_in,
        sampler=stand_in,
        observed=cast(Any, observed),
    )

    def is_news(*, per_s: float, loaded_share: float | None) -> bool:
        observed.tokens.per_s, stand_in.loaded_share = per_s, loaded_share
        return announcer.has_news()

    assert not is_news(per_s=0.0, loaded_share=None)
    assert not is_news(per_s=0.0, loaded_share=0.04)
    assert is_news(per_s=0.0, loaded_share=0.06)
    assert not is_news(per_s=0.0, loaded_share=0.1)
    assert is_news(per_s=10.0, loaded_share=None)
    assert not is_news(per_s=14.0, loaded_share=None)
    assert is_news(per_s=16.0, loaded_share=None)
    assert is_news(per_s=0.0, loaded_share=None)
