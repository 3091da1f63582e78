"""What the requests of a run come to: times, throughput, and where the time went."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from network.settings import CLIENT
from network.topology import Topology

KINDS = {
    "response": "total_s",
    "waiting": "waited_s",
    "service": "service_s",
    "first token": "first_s",
    "between tokens": "between_s",
}
"""What is summed up, and the field of a request in the report of `chainserve bench`."""
PARTS = ("waiting", "links", "queues", "blocks", "software")

Request = Mapping[str, Any]


def figures_of(report: Mapping[str, Any], topology: Topology, host_of: Mapping[str, str]) -> dict[str, Any]:
    """One run, from the report of `chainserve bench`."""
    requests: Sequence[Request] = report["requests"]
    answered = [request for request in requests if request["error"] is None]
    took_s = max((request["arrival_s"] + request["total_s"] for request in answered), default=0.0)
    split = [parts for request in answered if (parts := where(request, topology, host_of)) is not None]
    return {
        "num_requests": len(requests),
        "num_answered": len(answered),
        "errors": dict(Counter(request["error"] for request in requests if request["error"] is not None)),
        "num_retried": sum(bool(request.get("retries")) for request in requests),
        "took_s": took_s,
        "requests_per_s": len(answered) / took_s if took_s else 0.0,
        "tokens_per_s": sum(request["num_tokens"] for request in answered) / took_s if took_s else 0.0,
        "times": {name: summary(values_of(answered, field)) for name, field in KINDS.items()},
        "where": {part: statistics.fmean(parts[part] for parts in split) for part in PARTS} if split else None,
        "hops": statistics.fmean(len(request["chain"]) for request in answered) if split else None,
    }


def values_of(requests: Iterable[Request], field: str) -> list[float]:
    """All values of one kind; what is not told is left out."""
    values: list[float] = []
    for request in requests:
        value = request.get(field)
        values += value if isinstance(value, list) else [] if value is None else [value]
    return values


def summary(values: Sequence[float]) -> dict[str, float] | None:
    """Mean, median, P95, P99 (nearest rank) and the most; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)

    def percentile(share: float) -> float:
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

    return {
        "mean": statistics.fmean(ordered),
        "median": statistics.median(ordered),
        "p95": percentile(0.95),
        "p99": percentile(0.99),
        "max": ordered[-1],
    }


def where(request: Request, topology: Topology, host_of: Mapping[str, str]) -> dict[str, float] | None:
    """Seconds of one request by what they were spent on; None where its chain or hop times are not told.

    `blocks` are the forwards that ran its steps, `queues` the turns they waited for at servers, `links` what its
    messages need at least by the topology, and `software` what is left of the service time.
    """
    hops = request.get("hops") or ()
    chain = [host_of.get(peer) for peer, *_ in request.get("chain") or ()]
    if not chain or not hops or None in chain or request["waited_s"] is None:
        return None
    hosts = [host for host in chain if host is not None]
    links_s = links_of(hosts, topology, num_tokens=request["num_tokens"])
    queues_s = sum(hop["queue_s"] for hop in hops)
    blocks_s = sum(hop["compute_s"] for hop in hops)
    service_s = request["total_s"] - request["waited_s"]
    return {
        "waiting": request["waited_s"],
        "links": links_s,
        "queues": queues_s,
        "blocks": blocks_s,
        "software": service_s - links_s - queues_s - blocks_s,
    }


def links_of(hosts: Sequence[str], topology: Topology, *, num_tokens: int) -> float:
    """Seconds that the messages of a request are under way, one token per step.

    The prompt goes from the client along the chain, each token from the tail back to the head and along again, and the
    last one from the tail to the client.
    """

    def one_way_s(first: str, second: str) -> float:
        return 0.0 if first == second else topology.link(first, second).one_way_s

    along_s = sum(one_way_s(first, second) for first, second in pairwise(hosts))
    back_s = one_way_s(hosts[-1], hosts[0])
    ends_s = one_way_s(CLIENT, hosts[0]) + one_way_s(hosts[-1], CLIENT)
    return ends_s + num_tokens * along_s + max(0, num_tokens - 1) * back_s


def lower_by(ours_s: float, theirs_s: float) -> float:
    """By which share our time is lower than theirs; negative if it is longer."""
    return 1 - ours_s / theirs_s


def relative_error(predicted_s: float, measured_s: float) -> float:
    """Of a prediction, by what was measured."""
    return predicted_s / measured_s - 1
