"""What a server shows at /metrics. All but the forwards is read from the server when somebody looks."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from prometheus_client.core import InfoMetricFamily, Metric

from chainserve import __version__
from chainserve.protocol.messages import FailureCode
from chainserve.runtime.metrics import Distribution, Distributions
from chainserve.swarm.records import precision
from chainserve.transport.exposition import Labels, counter, counters, gauge, gauges, histograms
from chainserve_server.work import Forward

if TYPE_CHECKING:
    from chainserve_server.server import Server

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
ROWS = tuple(float(2**power) for power in range(13))
LINK = ("peer", "link")


class ForwardCounts:
    """Counts forwards as they come."""

    def __init__(self) -> None:
        self._num_tokens = dict.fromkeys(("prefill", "decode", "drafts"), 0)
        self._seconds: Distributions[Labels] = Distributions(SECONDS)
        self._rows = Distribution(ROWS)

    def add(self, forward: Forward) -> None:
        """Count one."""
        num_prefill = forward.num_prefill_tokens - forward.num_drafts
        num_decode = forward.num_decode + forward.num_drafts
        self._num_tokens["prefill"] += num_prefill
        self._num_tokens["decode"] += forward.num_decode
        self._num_tokens["drafts"] += forward.num_drafts
        phase = "mixed" if num_prefill and num_decode else "prefill" if num_prefill else "decode"
        self._seconds[(phase,)].add(forward.seconds)
        self._rows.add(num_prefill + num_decode)

    def families(self) -> Iterator[Metric]:
        yield counters(
            "chainserve_server_computed_tokens",
            "Tokens that went through this server's blocks: of prompts, decoded one by one, in steps that check drafts",
            ("phase",),
            {(phase,): num for phase, num in self._num_tokens.items()},
        )
        yield histograms(
            "chainserve_server_step_seconds", "Time of one packed forward", ("phase",), self._seconds.by_key
        )
        yield histograms("chainserve_server_step_rows", "Tokens of one packed forward", (), {(): self._rows})


def server_families(server: "Server") -> Iterator[Metric]:
    """Everything there is to tell of a server now."""
    yield from _who(server)
    yield from _sessions(server)
    yield from server.forwards.families()
    yield from _links(server)
    yield from _gpu(server.device)


def _who(server: "Server") -> Iterator[Metric]:
    record = server.announcement(epoch=server.member.plan.epoch if server.member.plan else 0)
    info = InfoMetricFamily("chainserve_server", "What this server is")
    info.add_metric(
        (),
        {
            "version": __version__,
            "peer": record.peer,
            "model": record.model,
            "precision": precision(record.dtype, record.quant),
            "device": str(server.device),
        },
    )
    yield info
    yield gauge("chainserve_server_online", "1 while it takes sessions", float(record.state == "online"))
    span = record.span
    yield gauge("chainserve_server_blocks", "Blocks that it holds, or is loading", len(span) if span else 0)
    yield gauge("chainserve_server_first_block", "The first of them; -1 if there are none", span.start if span else -1)
    yield gauge("chainserve_server_model_blocks", "Blocks of the whole model", record.num_blocks)
    yield gauge("chainserve_server_plan_epoch", "Number of the plan that it follows; 0: none", record.epoch)
    yield gauge("chainserve_server_swarm_servers", "Servers that it sees in the swarm", server.num_servers_seen)
    yield gauge("chainserve_server_weight_bytes", "Memory that weights take", record.weight_bytes)
    yield gauge("chainserve_server_cache_tokens", "Tokens that its cache holds in all its blocks", record.cache_tokens)
    yield gauge(
        "chainserve_server_cache_free_tokens", "Of these, tokens that a new session can have", record.free_tokens
    )
    yield gauge("chainserve_server_sessions", "Sessions that run through it", record.num_sessions)
    yield gauge(
        "chainserve_server_waiting", "Requests that wait for a place on a chain that begins here", record.num_waiting
    )


def _sessions(server: "Server") -> Iterator[Metric]:
    counts = server.sessions.counts
    yield counter("chainserve_server_sessions_opened", "Sessions that were opened", counts["opened"])
    yield counters(
        "chainserve_server_sessions_failed",
        "Sessions that were refused, or ended before their client wanted, by the reason",
        ("reason",),
        {(code.value,): counts[code] for code in FailureCode},
    )


def _links(server: "Server") -> Iterator[Metric]:
    links = server.links
    yield gauges("chainserve_server_links", "Links that stand", LINK, links.standing())
    seen = links.counters
    yield counters(
        "chainserve_server_sent_bytes",
        "Bytes of messages sent",
        LINK,
        {key: traffic.bytes_sent for key, traffic in seen.traffic.items()},
    )
    yield counters(
        "chainserve_server_received_bytes",
        "Bytes of messages received",
        LINK,
        {key: traffic.bytes_received for key, traffic in seen.traffic.items()},
    )
    yield counter("chainserve_server_links_made", "Links that were made", seen.links_made)
    yield counter("chainserve_server_links_lost", "Links that ended", seen.links_lost)
    yield counters(
        "chainserve_server_refused_frames",
        "Messages that made no sense, by what was wrong",
        ("reason",),
        {(reason,): num for reason, num in seen.refused.items()},
    )
    yield counter(
        "chainserve_server_refused_strangers", "Calls of those who did not prove to be members", links.num_strangers
    )


def _gpu(device: torch.device) -> Iterator[Metric]:
    """Memory of the GPU, of all processes and of this one; nothing where there is no GPU of CUDA."""
    if device.type != "cuda":
        return
    free, total = torch.cuda.mem_get_info(device)
    yield gauge("chainserve_server_gpu_memory_bytes", "Memory of the GPU", total)
    yield gauge("chainserve_server_gpu_memory_free_bytes", "What no process has taken of it", free)
    yield gauge(
        "chainserve_server_gpu_memory_allocated_bytes",
        "What tensors of this server take of it",
        torch.cuda.memory_allocated(device),
    )
