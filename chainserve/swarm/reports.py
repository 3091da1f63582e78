"""What a server tells people about itself, and clients about how busy its chains are: nothing that anybody plans by.

It is optional in a record, and every figure in it is the server's own claim.
"""

import math
from dataclasses import astuple, dataclass
from typing import Any, Self

from chainserve.planning.fields import number, text, whole

MAX_NAME_CHARS = 64
MAX_CHAINS = 48
"""Chains of one head that its record tells about, the fastest: about 20 bytes each."""
MAX_COUNT = 10**9
MAX_SECONDS = 1e7


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainUse:
    """How a chain of the plan is used that begins at the server that says so."""

    chain: int  # its place in the plan that the server follows
    num_held: int  # sessions that hold a place
    used_share: float  # of the chain's room, in tokens of cache
    num_waiting: int
    wait_s: float  # that a request which came now would wait, as far as the head can tell
    service_s: float | None  # for which the last sessions held their places, smoothed; None: none has ended yet

    def __post_init__(self) -> None:
        for name, value in (("chain", self.chain), ("held", self.num_held), ("waiting", self.num_waiting)):
            if not 0 <= value <= MAX_COUNT:
                raise ValueError(f"chain use: {name} is {value}")
        if not 0 <= self.used_share <= 1:
            raise ValueError(f"chain use: {self.used_share} of the room is used")
        for seconds in (self.wait_s, 0.0 if self.service_s is None else self.service_s):
            if not 0 <= seconds <= MAX_SECONDS:  # false for what is no number, too
                raise ValueError(f"chain use: {seconds} s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One server, as people want to know it."""

    device: str  # as its maker calls it
    name: str | None = None  # as its owner calls it
    tokens_per_s: float = 0.0  # that came through its blocks in the last seconds, prompts apart
    loaded_share: float | None = None  # of the weights that it loads; None: it loads none
    chains: tuple[ChainUse, ...] = ()

    def __post_init__(self) -> None:
        check_name("device", self.device)
        if self.name is not None:
            check_name("name", self.name)
        if not 0 <= self.tokens_per_s <= MAX_COUNT:
            raise ValueError(f"{self.tokens_per_s} tokens per second")
        if self.loaded_share is not None and not 0 <= self.loaded_share <= 1:
            raise ValueError(f"{self.loaded_share} of the weights are loaded")
        if len(self.chains) > MAX_CHAINS:
            raise ValueError(f"{len(self.chains)} chains, at most {MAX_CHAINS}")

    def to_fields(self) -> dict[str, Any]:
        """The report as msgpack takes it."""
        return {
            "device": self.device,
            "name": self.name,
            "tokens_per_s": float(self.tokens_per_s),
            "loaded_share": self.loaded_share,
            "chains": [astuple(use) for use in self.chains],
        }

    @classmethod
    def from_fields(cls, fields: object) -> Self:
        """The report whose `to_fields` came from a peer; ValueError if these are not its fields."""
        try:
            values: dict[str, Any] = dict(fields)  # type: ignore[call-overload]
            name, loaded_share = values["name"], values["loaded_share"]
            return cls(
                device=text(values["device"]),
                name=None if name is None else text(name),
                tokens_per_s=number(values["tokens_per_s"]),
                loaded_share=None if loaded_share is None else number(loaded_share),
                chains=tuple(_use(*use) for use in values["chains"]),
            )
        except (TypeError, KeyError, AttributeError, OverflowError) as error:
            raise ValueError(f"not a report: {error!r}") from None


def check_name(what: str, value: str) -> None:
    """ValueError unless this is something to show in one line."""
    if not (0 < len(value) <= MAX_NAME_CHARS and value.isprintable() and value.strip()):
        raise ValueError(f"{what} {value[:80]!r} is not 1 to {MAX_NAME_CHARS} printable characters")


def fit_name(value: str) -> str:
    """A name as a machine gave it, so that it can be told."""
    shown = "".join(character for character in value if character.isprintable()).strip()[:MAX_NAME_CHARS]
    return shown.strip() or "unknown"


def finite_seconds(seconds: float) -> float:
    """Seconds as they can be told, however many they are."""
    return min(seconds, MAX_SECONDS) if math.isfinite(seconds) and seconds >= 0 else MAX_SECONDS


def _use(
    chain: object, num_held: object, used_share: object, num_waiting: object, wait_s: object, service_s: object
) -> ChainUse:
    return ChainUse(
        chain=whole(chain),
        num_held=whole(num_held),
        used_share=number(used_share),
        num_waiting=whole(num_waiting),
        wait_s=number(wait_s),
        service_s=None if service_s is None else number(service_s),
    )
