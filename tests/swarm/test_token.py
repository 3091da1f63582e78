"""A token is copied by people: what can go wrong has a message that says what to do."""

import base64
from dataclasses import replace

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainserve.errors import TokenError
from chainserve.swarm.identity import Identity
from chainserve.swarm.token import (
    MAX_BOOTSTRAP,
    MAX_DIRECT,
    MAX_TOKEN_CHARS,
    PREFIX,
    DirectAddress,
    JoinToken,
    _checksum,
    swarm_secret,
)
from chainserve.types import PeerId

PEER = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"
ADDRESS = f"/ip4/192.0.2.7/tcp/31337/p2p/{PEER}"
SECRET = bytes(range(32))
TOKEN = JoinToken("home", SECRET, (ADDRESS,), expires_at=2_000_000_000.0)
DIRECT = DirectAddress(PeerId(PEER), "ws://127.0.0.1:8300/link")
SECURE = DirectAddress(PeerId(PEER), "wss://[2001:db8::7]:31337/link#sha256=" + "0123456789abcdef" * 4)


@given(
    swarm=st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=64),
    secret=st.binary(min_size=32, max_size=32),
    ports=st.lists(st.integers(1, 65535), min_size=1, max_size=16),
    expires_at=st.none() | st.floats(1.0, 1e12),
)
def test_a_token_says_the_same_after_its_way_through_text(
    swarm: str, secret: bytes, ports: list[int], expires_at: float | None
) -> None:
    token = JoinToken(swarm, secret, tuple(f"/ip4/10.0.0.1/tcp/{port}/p2p/{PEER}" for port in ports), expires_at)
    text = token.encode()
    assert text.startswith(PREFIX)
    assert text.isascii()
    assert len(text) <= MAX_TOKEN_CHARS
    assert JoinToken.decode(text, now=0.0) == token


def test_a_token_names_the_machines_that_it_leads_to() -> None:
    bootstrap = (ADDRESS, f"/dns/home.example.org/tcp/1/p2p/{PEER}", f"/unix/somewhere/p2p/{PEER}")
    token = JoinToken("home", SECRET, bootstrap, direct=(DIRECT, SECURE))
    assert token.hosts == ("192.0.2.7", "home.example.org", "127.0.0.1", "2001:db8::7")


def test_the_secret_does_not_show_in_the_repr() -> None:
    assert "home" in repr(TOKEN)
    assert repr(SECRET) not in repr(TOKEN)


def test_white_space_around_and_within_is_tolerated() -> None:
    text = TOKEN.encode()
    assert JoinToken.decode(f"  {text[:50]}\n{text[50:]}\r\n", now=0.0) == TOKEN


def test_every_token_cut_off_is_refused() -> None:
    text = TOKEN.encode()
    for length in range(len(text)):
        with pytest.raises(TokenError):
            JoinToken.decode(text[:length], now=0.0)
    with pytest.raises(TokenError, match="incomplete or mistyped: copy the whole of it again"):
        JoinToken.decode(text[:-1], now=0.0)


@given(st.data())
def test_a_mistyped_character_is_noticed(data: st.DataObject) -> None:
    text = TOKEN.encode()
    position = data.draw(st.integers(len(PREFIX), len(text) - 2))  # the last character has bits to spare
    character = data.draw(st.sampled_from("ABCxyz019-_!é").filter(lambda new: new != text[position]))
    with pytest.raises(TokenError, match="incomplete or mistyped"):
        JoinToken.decode(text[:position] + character + text[position + 1 :], now=0.0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("chainserve2.AAAA", "another version of chainserve .*upgrade"),
        (ADDRESS, "a peer's address, not a join token"),
        ("https://example.org/swarm", "a URL"),
        ("hf_" + "x" * 34, "a Hugging Face access token"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", "a JSON web token"),
        ("chainser", "incomplete or mistyped"),
        ("Chainserve1.AAAA", "incomplete or mistyped"),
        ("hunter2", "this is not a join token"),
        (PREFIX + "A" * MAX_TOKEN_CHARS, "at most 4096"),
    ],
)
def test_what_is_no_token_of_ours_is_named(text: str, says: str) -> None:
    with pytest.raises(TokenError, match=says):
        JoinToken.decode(text, now=0.0)


def test_an_expired_token_says_when_and_what_to_do() -> None:
    assert JoinToken.decode(TOKEN.encode(), now=1_999_999_999.0) == TOKEN
    with pytest.raises(TokenError, match=r"'home' expired on 2033-05-18 03:33 UTC: ask .* for a new token"):
        JoinToken.decode(TOKEN.encode(), now=2_000_000_000.0)


@pytest.mark.parametrize(
    "fields",
    [
        [],
        {},
        {"swarm": "home", "secret": SECRET},
        {"swarm": "home", "secret": SECRET, "bootstrap": [1]},
        {"swarm": "home", "secret": "text", "bootstrap": [ADDRESS]},
        {"swarm": "home", "secret": SECRET[:-1], "bootstrap": [ADDRESS]},
        {"swarm": "", "secret": SECRET, "bootstrap": [ADDRESS]},
        {"swarm": "ho\nme", "secret": SECRET, "bootstrap": [ADDRESS]},
        {"swarm": "home", "secret": SECRET, "bootstrap": []},
        {"swarm": "home", "secret": SECRET, "bootstrap": [ADDRESS] * 17},
        {"swarm": "home", "secret": SECRET, "bootstrap": ["/ip4/192.0.2.7/tcp/31337"]},
        {"swarm": "home", "secret": SECRET, "bootstrap": [ADDRESS + ",/ip4/1.2.3.4/tcp/1/p2p/" + PEER]},
        {"swarm": "home", "secret": SECRET, "bootstrap": [ADDRESS], "expires_at": "soon"},
        {"swarm": "home", "secret": SECRET, "bootstrap": [ADDRESS], "expires_at": float("nan")},
    ],
)
def test_a_token_with_a_right_checksum_and_wrong_fields_is_refused(fields: object) -> None:
    with pytest.raises(TokenError):
        JoinToken.decode(_forge(fields), now=0.0)


def test_fields_of_later_versions_are_ignored() -> None:
    fields = {"swarm": "home", "secret": SECRET, "bootstrap": [ADDRESS], "expires_at": 2e9, "colour": "blue"}
    assert JoinToken.decode(_forge(fields), now=0.0) == TOKEN


def test_the_secret_of_a_swarm_depends_on_its_founder_and_name_alone(identities: list[Identity]) -> None:
    founder, other = identities[:2]
    assert swarm_secret(founder, "home") == swarm_secret(founder, "home")
    assert len({swarm_secret(founder, "home"), swarm_secret(founder, "work"), swarm_secret(other, "home")}) == 3
    assert len(swarm_secret(founder, "home")) == 32


@given(st.lists(st.sampled_from([DIRECT, SECURE]), max_size=MAX_DIRECT).map(tuple))
def test_a_token_names_servers_for_clients_that_are_no_part_of_the_dht(direct: tuple[DirectAddress, ...]) -> None:
    token = replace(TOKEN, direct=direct)
    assert JoinToken.decode(token.encode(), now=0.0) == token


def test_a_token_that_is_full_can_still_be_read() -> None:
    longest = "/ip6/2001:0db8:0000:0000:0000:0000:0000:0007/tcp/31337/p2p/" + PEER
    token = replace(TOKEN, bootstrap=(longest,) * MAX_BOOTSTRAP, direct=(SECURE,) * MAX_DIRECT)
    assert len(token.encode()) <= MAX_TOKEN_CHARS


def test_tokens_of_earlier_versions_name_no_servers() -> None:
    fields = {"swarm": "home", "secret": SECRET, "bootstrap": [ADDRESS], "expires_at": 2e9}
    assert JoinToken.decode(_forge(fields), now=0.0) == TOKEN


@pytest.mark.parametrize(
    "direct",
    [
        None,
        [1],
        [[PEER]],
        [[PEER, DIRECT.url, "more"]],
        [[PEER, 7]],
        [["me", DIRECT.url]],
        [[PEER, "http://127.0.0.1:8300/link"]],
        [[PEER, "ws://127.0.0.1/link"]],
        [[PEER, "ws://user@127.0.0.1:8300/link"]],
        [[PEER, "wss://127.0.0.1:8300/link#sha256=0123"]],
        [[PEER, "ws://127.0.0.1:8300/two\nlines"]],
        [[PEER, "ws://" + "x" * 256 + ":1/link"]],
        [[PEER, DIRECT.url]] * (MAX_DIRECT + 1),
    ],
)
def test_servers_that_cannot_be_are_refused(direct: object) -> None:
    fields = {"swarm": "home", "secret": SECRET, "bootstrap": [ADDRESS], "expires_at": 2e9, "direct": direct}
    with pytest.raises(TokenError):
        JoinToken.decode(_forge(fields), now=0.0)


def _forge(fields: object) -> str:
    """Text with the right checksum, whatever its fields."""
    payload = msgpack.packb(fields)
    return PREFIX + base64.urlsafe_b64encode(payload + _checksum(payload)).decode()
