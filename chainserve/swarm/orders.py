"""What the owner of a swarm under test decides, that swarms else find out: which rule places, for which load.

For benchmarks. The server that plans goes by its own orders, so all servers of a swarm should be given the same.
"""

from dataclasses import dataclass, replace

from chainserve.planning.rules import OURS, PETALS, PETALS_SHARED_TOKENS, PETALS_TOKENS, PlacementRule
from chainserve.swarm.offers import Demand


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """All that may be ordered; the usual values order nothing."""

    rule: PlacementRule = OURS
    demand: Demand | None = None  # planned for from the start, whatever comes; None: what servers see
    slot_tokens: int | None = None  # of cache that planning counts per session; None: as the load asks for

    @property
    def is_fixed(self) -> bool:
        """Whether only servers that come or go make another plan."""
        return self.demand is not None


def filled(rule: PlacementRule, *, shares_heads: bool) -> PlacementRule:
    """The rule with the cache that PETALS would allot for a model whose heads share keys and values, or do not."""
    if rule.name != PETALS or rule.cache_tokens is not None:
        return rule
    return replace(rule, cache_tokens=PETALS_SHARED_TOKENS if shares_heads else PETALS_TOKENS)
