"""The paper's settings: models, servers, network and trace (Sun et al. 2026, section 4)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chainserve.planning.baselines.petals import OVERHEAD_S, RoundTrips
from chainserve.planning.times import BlockTimes, ServerTimes
from chainserve.planning.values import ModelSpec, ServerProfile
from chainserve.simulator.networks import Anchor, choose_anchors, read_anchors, round_trips_s, synthetic_anchors
from chainserve.simulator.workloads import Requests, make_requests, poisson_arrivals, read_trace
from chainserve.types import PeerId

GB, TERA = 1e9, 1e12
RIPE, AZURE = "ripe_atlas_eu_rtt.csv", "azure_llm_inference_2023_code.csv"

NUM_SERVERS = 20
SHARE_HIGH = 0.2  # eta
ARRIVAL_RATE = 0.2  # lambda, requests per second
CONCURRENCY = 7  # c
PETALS_TOKENS = 4096  # attention cache per block of a PETALS server, without grouped-query attention


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of server: a slice of an 80 GB A100."""

    memory_bytes: float
    flop_per_s: float
    bytes_per_s: float


HIGH = Kind(memory_bytes=40 * GB, flop_per_s=120 * TERA, bytes_per_s=1020 * GB)
LOW = Kind(memory_bytes=20 * GB, flop_per_s=80 * TERA, bytes_per_s=510 * GB)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A model and its mean request."""

    spec: ModelSpec
    slot_tokens: int
    flop_per_token: float  # of one block
    input_tokens: int
    output_tokens: int
    overhead_s: float = 0.001  # t_o per block
    slowness: float = 1.0  # times in blocks relative to those that follow from the hardware

    def times(self, kind: Kind, hop_s: float) -> ServerTimes:
        """What a server of this kind takes for this model."""
        block = BlockTimes.from_hardware(
            overhead_s=self.overhead_s * self.slowness,
            flop_per_token=self.flop_per_token,
            flop_per_s=kind.flop_per_s / self.slowness,
            block_bytes=self.spec.block_bytes,
            bytes_per_s=kind.bytes_per_s / self.slowness,
        )
        return ServerTimes(hop_s=hop_s, block=block)


BLOOM = Served(
    spec=ModelSpec(num_blocks=70, block_bytes=1.32 * GB, slot_bytes=0.11 * GB),
    slot_tokens=2048,
    flop_per_token=5e9,
    input_tokens=2000,
    output_tokens=20,
)


def llama(slot_tokens: int) -> Served:
    """LLaMA-2-7B in 16 bits with cache slots of so many tokens; its ends stay with the client, as in the paper."""
    hidden, intermediate = 4096, 11008
    num_parameters = 4 * hidden**2 + 3 * hidden * intermediate + 2 * hidden
    # A slot holds keys and values, 2 bytes each.
    return Served(
        spec=ModelSpec(num_blocks=32, block_bytes=2 * num_parameters, slot_bytes=2 * 2 * hidden * slot_tokens),
        slot_tokens=slot_tokens,
        flop_per_token=2 * num_parameters,  # one multiplication and one addition each
        input_tokens=2048,
        output_tokens=28,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Swarm:
    """Servers somewhere in Europe, and a client that is one place more."""

    served: Served
    servers: Mapping[PeerId, ServerTimes]
    profiles: tuple[ServerProfile, ...]
    round_trip_s: RoundTrips  # None is the client


def make_swarm(world: "World", served: Served, *, kinds: Sequence[Kind], rng: np.random.Generator) -> Swarm:
    """Servers in places drawn at random; each message of a request is one round trip to the client."""
    peers = [PeerId(f"s{number:02}") for number in range(len(kinds))]
    trips_s = round_trips_s(choose_anchors(world.anchors, len(kinds) + 1, rng=rng)).tolist()
    servers = {
        peer: served.times(kind, trips_s[0][place] + OVERHEAD_S)
        for place, (peer, kind) in enumerate(zip(peers, kinds, strict=True), start=1)
    }
    return Swarm(
        served=served,
        servers=servers,
        profiles=tuple(
            servers[peer].profile(
                peer, kind.memory_bytes, input_tokens=served.input_tokens, output_tokens=served.output_tokens
            )
            for peer, kind in zip(peers, kinds, strict=True)
        ),
        round_trip_s={
            (before, peer): trips_s[row][column]
            for row, before in enumerate((None, *peers))
            for column, peer in enumerate(peers, start=1)
            if before != peer
        },
    )


def bloom_swarm(
    world: "World", rng: np.random.Generator, *, num_servers: int = NUM_SERVERS, share_high: float = SHARE_HIGH
) -> Swarm:
    """The paper's simulated swarm."""
    num_high = round(share_high * num_servers)
    return make_swarm(world, BLOOM, kinds=[HIGH] * num_high + [LOW] * (num_servers - num_high), rng=rng)


@dataclass(frozen=True, slots=True)
class World:
    """The measured places and requests, or made-up ones with the same means."""

    anchors: tuple[Anchor, ...]
    trace: Requests
    sources: Mapping[str, str]  # of both, for the reader

    @classmethod
    def read(cls, folder: Path) -> "World":
        """From both files where they are there."""
        sources = {}
        if (folder / RIPE).exists():
            anchors = read_anchors((folder / RIPE).read_text().splitlines())
            sources["round trips"] = "RIPE Atlas, Europe"
        else:
            anchors = synthetic_anchors(320, rng=np.random.default_rng(0))
            sources["round trips"] = f"made up, as {RIPE} is absent"
        if (folder / AZURE).exists():
            trace = read_trace((folder / AZURE).read_text().splitlines())
            sources["requests of the trace"] = "Azure LLM inference trace 2023, code"
        else:
            trace = _made_up_trace(np.random.default_rng(0))
            sources["requests of the trace"] = f"made up (Poisson arrivals, same mean tokens), as {AZURE} is absent"
        return cls(anchors, trace, sources)


def _made_up_trace(rng: np.random.Generator, *, num_requests: int = 1000) -> Requests:
    return make_requests(
        poisson_arrivals(num_requests, rate=2.57, rng=rng),
        input_tokens=np.maximum(1, rng.exponential(2048, num_requests).astype(int)),
        output_tokens=rng.geometric(1 / 28, num_requests),
    )
