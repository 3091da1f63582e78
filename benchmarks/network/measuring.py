"""What the links that were made are like: round trips of small datagrams, and rates of bursts over TCP, of every pair.

All sockets belong to this process, each opened in the namespace of its host.
"""

import selectors
import socket
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from network.emulation import Hosts
from network.namespaces import inside
from network.topology import Link

TOLERANCE_MS, TOLERANCE_SHARE = 1.0, 0.05
"""A round trip is as asked within both together."""
ROUNDS = 15
GAP_S = 0.002
ANSWER_S = 2.0
BURST_S = 0.4
CHUNK = bytes(2**16)
PING, ECHO = b"?", b"!"


@dataclass(frozen=True, slots=True)
class Measured:
    """One pair, beside what was asked."""

    pair: tuple[str, str]
    asked: Link
    round_trip_ms: float | None  # median; None: nothing came back
    num_answers: int
    rate_mbit: float | None = None  # None: not measured

    @property
    def is_as_asked(self) -> bool:
        return self.round_trip_ms is not None and is_near(self.round_trip_ms, self.asked.round_trip_ms)


def is_near(measured_ms: float, asked_ms: float) -> bool:
    """Whether a round trip is within 1 ms + 5 % of what was asked."""
    return abs(measured_ms - asked_ms) <= TOLERANCE_MS + TOLERANCE_SHARE * asked_ms


def measure(hosts: Hosts, *, rounds: int = ROUNDS, bursts: bool = True) -> tuple[Measured, ...]:
    """All pairs of hosts: a few seconds for round trips, and half a second per pair for bursts, one after another."""
    topology = hosts.topology
    trips_ms = round_trips_ms(hosts, rounds=rounds)
    return tuple(
        Measured(
            pair,
            topology.link(*pair),
            statistics.median(trips_ms[pair]) if trips_ms[pair] else None,
            len(trips_ms[pair]),
            burst_mbit(hosts, *pair) if bursts else None,
        )
        for pair in topology.pairs
    )


@dataclass
class Echoes:
    """What has come back."""

    sent_s: dict[int, float] = field(default_factory=dict)
    trips_ms: dict[int, float] = field(default_factory=dict)


def round_trips_ms(hosts: Hosts, *, rounds: int = ROUNDS) -> dict[tuple[str, str], list[float]]:
    """Of every pair, as often as something came back."""
    asked = [pair for _ in range(rounds) for pair in hosts.topology.pairs]
    echoes = Echoes()
    with ExitStack() as opened:
        selector = opened.enter_context(selectors.DefaultSelector())
        sockets = {name: opened.enter_context(_open(hosts, name)) for name in hosts.topology.hosts}
        ports = {name: sockets[name].getsockname() for name in sockets}
        for name, opened_socket in sockets.items():
            opened_socket.setblocking(False)
            selector.register(opened_socket, selectors.EVENT_READ, name)
        next_s = time.monotonic()
        number = 0
        end_s = next_s + len(asked) * GAP_S + ANSWER_S
        while len(echoes.trips_ms) < len(asked) and (now := time.monotonic()) < end_s:
            if number < len(asked) and now >= next_s:
                first, second = asked[number]
                echoes.sent_s[number] = time.monotonic()
                sockets[first].sendto(PING + number.to_bytes(4, "big"), ports[second])
                number, next_s = number + 1, next_s + GAP_S
            wait_s = (next_s if number < len(asked) else end_s) - time.monotonic()
            for key, _ in selector.select(max(0.0, wait_s)):
                _answer(sockets[key.data], echoes)
    found: dict[tuple[str, str], list[float]] = {pair: [] for pair in hosts.topology.pairs}
    for at, trip_ms in echoes.trips_ms.items():
        found[asked[at]].append(trip_ms)
    return found


def _open(hosts: Hosts, name: str) -> socket.socket:
    with inside(hosts.namespace(name)):
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        opened.bind((hosts.address(name), 0))
    return opened


def _answer(at: socket.socket, echoes: Echoes) -> None:
    message, sender = at.recvfrom(64)
    if message[:1] == PING:
        at.sendto(ECHO + message[1:], sender)
    elif (number := int.from_bytes(message[1:], "big")) in echoes.sent_s:
        echoes.trips_ms[number] = 1000 * (time.monotonic() - echoes.sent_s[number])


def burst_mbit(hosts: Hosts, first: str, second: str) -> float:
    """The rate at which a burst from one to the other arrives, after its first half, in which TCP finds its speed."""
    with inside(hosts.namespace(second)):
        listener = socket.create_server((hosts.address(second), 0))
    with inside(hosts.namespace(first)):
        sender = socket.socket()
    with listener, sender:
        sender.settimeout(BURST_S + ANSWER_S)
        sender.connect(listener.getsockname())
        receiver, _ = listener.accept()
        with receiver:
            thread = threading.Thread(target=_send_for, args=(sender, time.monotonic() + BURST_S))
            thread.start()
            rate = _received_mbit(receiver)
            thread.join()
    return rate


def _send_for(sender: socket.socket, until_s: float) -> None:
    while time.monotonic() < until_s:
        sender.sendall(CHUNK)
    sender.shutdown(socket.SHUT_WR)


def _received_mbit(receiver: socket.socket) -> float:
    receiver.settimeout(BURST_S + ANSWER_S)
    arrivals: list[tuple[float, int]] = []
    while received := len(receiver.recv(2**20)):
        arrivals.append((time.monotonic(), received))
    since_s = arrivals[0][0] + (arrivals[-1][0] - arrivals[0][0]) / 2
    late = [(at_s, size) for at_s, size in arrivals if at_s >= since_s]
    took_s = late[-1][0] - late[0][0]
    return sum(size for _, size in late[1:]) * 8e-6 / took_s if took_s > 0 else 0.0


def links_json(measured: Sequence[Measured]) -> list[dict[str, object]]:
    """For the report: what was asked and what was found, of every pair."""
    return [
        {
            "between": list(one.pair),
            "asked_ms": one.asked.round_trip_ms,
            "round_trip_ms": one.round_trip_ms,
            "asked_mbit": one.asked.rate_mbit,
            "rate_mbit": one.rate_mbit,
            "is_as_asked": one.is_as_asked,
        }
        for one in measured
    ]


def links_table(rows: Sequence[Mapping[str, object]]) -> str:
    """The same for a terminal."""

    def cell(value: object, form: str) -> str:
        return format(value, form) if isinstance(value, int | float) else "-"

    lines = [f"{'between':<24}{'asked ms':>10}{'is ms':>10}{'asked Mbit/s':>14}{'is Mbit/s':>11}"]
    for row in rows:
        first, second = row["between"]  # type: ignore[misc]
        lines.append(
            f"{f'{first} - {second}':<24}{cell(row['asked_ms'], '.2f'):>10}{cell(row['round_trip_ms'], '.2f'):>10}"
            f"{cell(row['asked_mbit'], '.0f'):>14}{cell(row['rate_mbit'], '.0f'):>11}"
            + ("" if row["is_as_asked"] else "  not as asked")
        )
    return "\n".join(lines)
