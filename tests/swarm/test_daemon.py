"""What keeps us from listening has one line that says what to change."""

import socket
from collections.abc import Iterator

import pytest

from chainserve.errors import AddressError, JoinError, SwarmError
from chainserve.swarm import daemon
from chainserve.swarm.daemon import Daemon, announced, find_binary, listen_address
from chainserve.swarm.identity import Identity


@pytest.fixture
def used_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


async def test_an_address_to_listen_at_is_written_as_multiaddr() -> None:
    assert await listen_address("127.0.0.1", 0) == "/ip4/127.0.0.1/tcp/0"
    assert await listen_address("0.0.0.0", 0) == "/ip4/0.0.0.0/tcp/0"


async def test_a_port_in_use_is_named(used_port: int) -> None:
    with pytest.raises(AddressError, match=rf"port {used_port} of 127\.0\.0\.1 is in use: choose another --port"):
        await listen_address("127.0.0.1", used_port)


async def test_a_port_whose_last_connections_are_closed_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        accepted.close()  # first, so that it is this end which lingers
        client.close()
    assert await listen_address("127.0.0.1", port) == f"/ip4/127.0.0.1/tcp/{port}"


@pytest.mark.parametrize(
    ("host", "port", "says"),
    [
        ("192.0.2.250", 0, "192.0.2.250 is not an address of this machine: choose another --host"),
        ("no host", 0, "is no address: give --host"),
        ("x" * 300, 0, "is no address"),
        ("127.0.0.1", 65536, "65536 is no port: choose a --port"),
    ],
)
async def test_a_host_that_is_not_ours_is_named(host: str, port: int, says: str) -> None:
    with pytest.raises(AddressError, match=says):
        await listen_address(host, port)


async def test_what_the_daemon_says_when_it_cannot_listen_becomes_one_line(
    identities: list[Identity], used_port: int
) -> None:
    with pytest.raises(AddressError, match="address already in use"):
        await Daemon.start(identities[0], f"/ip4/127.0.0.1/tcp/{used_port}")


async def test_an_address_to_join_through_that_makes_no_sense_is_named(identities: list[Identity]) -> None:
    address = f"/no/address/p2p/{identities[1].peer_id}"
    with pytest.raises(JoinError, match=f"cannot join through {address}"):
        await Daemon.start(identities[0], None, bootstrap=[address])


async def test_a_daemon_that_dies_is_noticed(identities: list[Identity]) -> None:
    running = await Daemon.start(identities[0], None)
    running.check()
    running._process.kill()
    await running._process.wait()
    with pytest.raises(SwarmError, match="daemon has ended with status -9: start again"):
        running.check()
    await running.close()


async def test_without_hivemind_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_binary().name == "p2pd"
    monkeypatch.setattr(daemon, "find_spec", lambda name: None)
    with pytest.raises(SwarmError, match="pip install"):
        find_binary()


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("203.0.113.7", "/ip4/203.0.113.7/tcp/8301"),
        ("2001:db8::1", "/ip6/2001:db8::1/tcp/8301"),
        ("home.example.org", "/dns/home.example.org/tcp/8301"),
    ],
)
def test_what_others_are_told_is_an_address_or_a_name(host: str, address: str) -> None:
    assert announced(host, 8301) == address
