"""What a server is told: checked once, at the edge, as far as that takes no torch, whose import takes seconds."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from chainserve.errors import AddressError, DeviceError, UsageError
from chainserve.planning.profile import MAX_BATCH_TOKENS
from chainserve.runtime.hosts import is_loopback
from chainserve.swarm.orders import Orders
from chainserve.swarm.records import MAX_LEASE_S
from chainserve.swarm.reports import check_name
from chainserve.swarm.token import JoinToken, check_swarm_name
from chainserve.types import Span

DEVICE = re.compile(r"(cpu|cuda|mps)(:\d+)?", re.ASCII)
PUBLIC_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}|[0-9a-fA-F:]{2,39}", re.ASCII)
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
AUTO: Literal["auto"] = "auto"
ALL: Literal["all"] = "all"
MEMORY_FORMS = "give an amount as 6GB or 512MiB, a share of what the device has as 0.5 or 50%, or auto"
FREE_GPU_SHARE = 0.9
"""Of a GPU's free memory, what `auto` takes: the rest is for the allocator's gaps and the driver."""
FREE_RAM_SHARE = 0.25
"""Of free RAM, what `auto` takes: others use this machine too, and so do the parts of a server that are no tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRequest:
    """How much memory a server may take: so many bytes, a share of what its device has, or part of what is free."""

    num_bytes: int | None = None
    share: float | None = None  # in (0, 1], of the device's memory in total

    def __post_init__(self) -> None:
        if self.num_bytes is not None and self.share is not None:
            raise ValueError(f"{self.num_bytes} bytes or a share of {self.share}, not both")
        if self.num_bytes is not None and self.num_bytes < 1:
            raise UsageError(f"a server cannot do with {self.num_bytes} bytes of memory; {MEMORY_FORMS}")
        if self.share is not None and not 0 < self.share <= 1:
            raise UsageError(f"a server cannot have {self.share:.4g} of the memory there is; {MEMORY_FORMS}")


AUTO_MEMORY = MemoryRequest()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Everything `chainserve-server` was asked for."""

    model: str
    blocks: Span | Literal["all"] | None = None  # None: the swarm chooses
    join: str | None = None  # a token; None starts a swarm
    swarm: str = "chainserve"
    memory: MemoryRequest = AUTO_MEMORY
    dtype: str | None = None  # None: what is fastest on the device
    quant: str | None = None  # one of `QUANTIZATIONS`; None: weights as `dtype`, or as the checkpoint holds them
    wire: str | None = None  # how activations go on to the next server: INT8, or as they are
    device: str = "cpu"
    host: str = "127.0.0.1"
    port: int = 0  # for links; 0: the system chooses. The DHT listens on the next one.
    public_host: str | None = None  # what others reach this machine at, if not `host`
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None  # None: no metrics; 0: the system chooses
    identity: Path | None = None
    token_days: float = 30.0  # how long the join tokens we print are good for
    max_batch_tokens: int = MAX_BATCH_TOKENS
    drain_s: float = 2.5  # for sessions to finish when we leave
    move_grace_s: float = 10.0  # and when we move to other blocks
    lease_s: float = 30.0  # how long our record counts
    name: str | None = None  # what people call this server
    slowdown: float | None = None  # for benchmarks: forwards take so many times as long as was measured
    orders: Orders = field(default_factory=Orders)  # for benchmarks

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65535:
            raise AddressError(
                f"not a port: {self.port} (want 1 to 65534, as the DHT takes the next one, or 0: the system chooses)"
            )
        if self.public_host is not None:
            if not PUBLIC_HOST.fullmatch(self.public_host):
                raise AddressError(f"not an address for others: {self.public_host!r} (want a name or an IP address)")
            if is_loopback(self.host):
                raise AddressError(f"--public-host needs a --host that others reach, as 0.0.0.0, not {self.host}")
            if not self.port:
                raise AddressError("--public-host needs --port: the router has to know which port to pass on")
        if self.metrics_port is not None and not 0 <= self.metrics_port <= 65535:
            raise AddressError(f"not a port: --metrics-port {self.metrics_port} (want 1 to 65535, or 0 for a free one)")
        if not 1 <= self.lease_s <= MAX_LEASE_S:
            raise UsageError(f"a record cannot count for {self.lease_s:g} s: give 1 to {MAX_LEASE_S:g} with --lease")
        if self.name is not None:
            try:
                check_name("name", self.name)
            except ValueError as error:
                raise UsageError(f"--name: {error}") from None
        if self.slowdown is not None and not 1 <= self.slowdown < float("inf"):
            raise UsageError(f"a server cannot be slowed down {self.slowdown:g} times: give at least 1 with --slowdown")
        if self.blocks is not None and not self.orders.rule.is_ours:
            raise UsageError(
                f"--bench-placement {self.orders.rule.name} places every server: leave out --blocks {self.blocks}"
            )
        if not self.token_days > 0:
            raise UsageError(f"a token cannot be good for {self.token_days:g} days: give more with --token-days")
        if self.join is None:
            check_swarm_name(self.swarm)
        if not DEVICE.fullmatch(self.device):
            raise DeviceError(f"no device is called {self.device!r}: give cpu, cuda, cuda:1 or mps")

    def check_join(self, *, now: float) -> None:
        """TokenError if our token is of no use at `now` (unix seconds), AddressError if nobody there reaches us."""
        if self.join is None:
            return
        others = [host for host in JoinToken.decode(self.join, now=now).hosts if not is_loopback(host)]
        if others and is_loopback(self.host):
            raise AddressError(
                f"the swarm is on other machines ({others[0]}), which do not reach this one at {self.host}: give "
                f"--host one of its addresses, or 0.0.0.0 for all"
            )


def parse_blocks(text: str) -> Span | Literal["all"] | None:
    """Read 'auto', 'all' or 'START:END'; SpanError if it is anything else."""
    if text == AUTO:
        return None
    return ALL if text == ALL else Span.parse(text)


def parse_memory(text: str) -> MemoryRequest:
    """Read '6GB', '512MiB', '6g' or a whole number of bytes, a share as '0.5' or '50%', or 'auto'.

    Without a unit, a number with a point is a share, so 1.0 is all, and one without is bytes. UsageError for anything
    else, for nothing, for more than all, and for a bare 1, which may be meant as either.
    """
    if (stripped := text.strip().lower()) == AUTO:
        return AUTO_MEMORY
    match = re.fullmatch(r"(-?)(\d+(?:\.\d*)?|\.\d+)\s*(%|(?:[kmg]i?)?b?)", stripped)
    if not match:
        raise UsageError(f"not an amount of memory: {text!r}; {MEMORY_FORMS}")
    sign, number, unit = match.groups()
    size = float(number)
    if sign or not size:
        raise UsageError(f"a server cannot do with {stripped} of memory; {MEMORY_FORMS}")
    if unit == "%" or (not unit and "." in number):
        share = size / 100 if unit else size
        if share > 1:
            raise UsageError(f"{stripped} is more than all of the memory there is; {MEMORY_FORMS}")
        return MemoryRequest(share=share)
    if not unit and size == 1:
        raise UsageError("1 may be one byte or all of the memory; give 1.0 or 100% for all, or an amount as 1GB")
    return MemoryRequest(num_bytes=int(size * UNITS[unit.removesuffix("b")]))
