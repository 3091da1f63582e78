"""By which rule blocks are placed: ours, or for benchmarks that of another system. Only names and numbers: what carries
out the others is `baselines.plans`, which takes numpy."""

from dataclasses import dataclass

GBP_CR, PETALS, BPRR, WHOLE_MODEL, RANDOM = PLACEMENTS = ("gbp-cr", "petals", "bprr", "whole-model", "random")
"""Names of the rules; the first is the one for everything but benchmarks."""

ROUTED = (PETALS, BPRR)
"""Systems without chains: their clients compose a route for every request."""

PETALS_TOKENS, PETALS_SHARED_TOKENS = 4096, 16_384
"""Cache that a PETALS server allots per block, and where heads share keys and values (its server/server.py)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementRule:
    """Which rule, with all that it takes beside servers, model and load."""

    name: str = GBP_CR
    seed: int = 0  # of rules that draw
    cache_tokens: int | None = None  # that PETALS allots per block; None: as PETALS does for the model
    has_chains: bool = True  # whether cache is allocated to chains (GCA), or left to clients' routes

    def __post_init__(self) -> None:
        if self.name not in PLACEMENTS:
            raise ValueError(f"no placement is called {self.name!r}: there are {', '.join(PLACEMENTS)}")
        if self.seed < 0:
            raise ValueError(f"a seed is not negative: {self.seed}")
        if self.cache_tokens is not None and self.cache_tokens < 1:
            raise ValueError(f"cache for {self.cache_tokens} tokens per block: it takes at least one")

    @property
    def is_ours(self) -> bool:
        """Whether it is the planning library's own."""
        return self.name == GBP_CR


OURS = PlacementRule()
