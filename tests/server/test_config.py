"""What a server is told, in the forms people write it."""

import pytest

from chainserve.errors import AddressError, DeviceError, TokenError, UsageError
from chainserve.swarm.token import JoinToken
from chainserve_server.config import MemoryRequest, ServerConfig, parse_memory


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("6GB", 6 * 10**9),
        ("512MiB", 2**29),
        ("1.5g", 1_500_000_000),
        ("2 GiB", 2**31),
        ("1000", 1000),
        ("3kb", 3000),
        ("6000000000", 6 * 10**9),
        ("1GB", 10**9),
        ("7B", 7),
    ],
)
def test_memory_may_be_written_in_many_ways(text: str, num_bytes: int) -> None:
    assert parse_memory(text) == MemoryRequest(num_bytes=num_bytes)


@pytest.mark.parametrize(
    ("text", "share"),
    [("0.5", 0.5), (".5", 0.5), ("50%", 0.5), ("12.5 %", 0.125), ("1%", 0.01), ("100%", 1.0), ("1.0", 1.0)],
)
def test_memory_may_be_a_share_of_what_there_is(text: str, share: float) -> None:
    assert parse_memory(text) == MemoryRequest(share=share)


@pytest.mark.parametrize("text", ["auto", " AUTO "])
def test_memory_may_be_left_to_us(text: str) -> None:
    assert parse_memory(text) == ServerConfig(model="m").memory == MemoryRequest()


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        *((text, "not an amount of memory.*6GB.*50%.*auto") for text in ("", "GB", "6TB", "1e9", "six", "%", "5%B")),
        *((text, "cannot do with .* of memory") for text in ("0", "0GB", "0%", "0.0", "-1GB", "-0.5", "-5%", "0.1b")),
        *((text, "more than all") for text in ("101%", "1.5", "2.0", "100.1%")),
        ("1", "one byte or all.*1.0 or 100% for all"),
    ],
)
def test_what_is_no_memory_is_refused_with_what_is(text: str, fact: str) -> None:
    with pytest.raises(UsageError, match=fact):
        parse_memory(text)


def test_a_request_is_for_bytes_or_for_a_share() -> None:
    with pytest.raises(ValueError, match="not both"):
        MemoryRequest(num_bytes=1, share=0.5)
    for wrong in ({"num_bytes": 0}, {"share": 0.0}, {"share": 1.01}, {"share": float("nan")}):
        with pytest.raises(UsageError, match="a server cannot"):
            MemoryRequest(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("device", ["cpu", "cpu:0", "cuda", "cuda:1", "mps"])
def test_a_device_may_be_one_that_only_torch_can_look_for(device: str) -> None:
    assert ServerConfig(model="m", device=device).device == device


@pytest.mark.parametrize("device", ["", "abacus", "cuda:", "cuda:-1", "cuda:one", "cuda:1:2", "CPU", "xla"])
def test_what_is_no_name_of_a_device_is_refused_with_some_that_are(device: str) -> None:
    with pytest.raises(DeviceError, match="give cpu, cuda, cuda:1 or mps"):
        ServerConfig(model="m", device=device)


@pytest.mark.parametrize("name", ["", "two\nlines", "x" * 65])
def test_the_name_of_a_swarm_is_checked_where_one_is_started(name: str) -> None:
    with pytest.raises(TokenError, match="not a name for a swarm"):
        ServerConfig(model="m", swarm=name)
    ServerConfig(model="m", swarm=name, join="a token, which names the swarm")


@pytest.mark.parametrize("host", ["203.0.113.7", "home.example.org", "2001:db8::1"])
def test_what_others_reach_us_at_needs_a_port_that_is_known(host: str) -> None:
    ServerConfig(model="m", public_host=host, host="0.0.0.0", port=8300)
    with pytest.raises(AddressError, match="needs --port"):
        ServerConfig(model="m", public_host=host, host="0.0.0.0")
    with pytest.raises(AddressError, match="a --host that others reach"):
        ServerConfig(model="m", public_host=host, port=8300)


@pytest.mark.parametrize("host", ["", "a b", "http://x", "-x", "x/y", "é"])
def test_what_is_no_address_is_not_told_to_others(host: str) -> None:
    with pytest.raises(AddressError, match="not an address for others"):
        ServerConfig(model="m", public_host=host, host="0.0.0.0", port=8300)


@pytest.mark.parametrize(
    "there", ["/ip4/10.0.0.5/tcp/8301", "/dns/home.example.org/tcp/8301", "/ip6/2001:db8::1/tcp/1"]
)
def test_a_server_that_others_do_not_reach_does_not_join_them(there: str) -> None:
    here, peer = "/ip4/127.0.0.1/tcp/8301", "Qm" + "a" * 44
    mixed, alone = (
        JoinToken("s", bytes(32), tuple(f"{at}/p2p/{peer}" for at in ats)) for ats in ((here, there), (here,))
    )
    for host in ("127.0.0.1", "localhost", "::1"):
        with pytest.raises(AddressError, match=f"{there.split('/')[2]}.* give --host"):
            ServerConfig(model="m", host=host, join=mixed.encode()).check_join(now=0.0)
        ServerConfig(model="m", host=host, join=alone.encode()).check_join(now=0.0)
        ServerConfig(model="m", host=host).check_join(now=0.0)
    ServerConfig(model="m", host="0.0.0.0", join=mixed.encode()).check_join(now=0.0)


@pytest.mark.parametrize("port", [-1, 65536])
def test_metrics_take_a_port_that_there_is(port: int) -> None:
    with pytest.raises(AddressError, match="--metrics-port"):
        ServerConfig(model="m", metrics_port=port)
