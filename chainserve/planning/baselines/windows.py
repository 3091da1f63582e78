"""What the baselines share: how many blocks a server holds, and which window of that many blocks it takes."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from chainserve.planning.values import ModelSpec, Placement, ServerProfile, by_peer, how_many
from chainserve.types import PeerId, Span


def free_servers(profiles: Sequence[ServerProfile]) -> dict[PeerId, ServerProfile]:
    """Profiles in the order of their peer ids; ValueError if there are none, two of one id, or a pinned one."""
    servers = by_peer(profiles)
    for server in servers.values():
        if server.pinned is not None:
            raise ValueError(f"{server.peer} is pinned to blocks {server.pinned}: the baselines place every server")
    return servers


def spare_bytes(profile: ServerProfile, model: ModelSpec) -> float:
    """Memory for blocks and cache wherever the server's window is: embedding and head are taken off."""
    return profile.memory_bytes - model.end_bytes(Span(0, model.num_blocks))


def blocks_with_cache(profile: ServerProfile, model: ModelSpec, *, num_slots: float) -> int:
    """Blocks that fit with `num_slots` slots of cache each, at most the model's (Eq. 6)."""
    block_bytes = model.block_bytes + num_slots * model.slot_bytes
    return min(how_many(spare_bytes(profile, model), block_bytes), model.num_blocks)


def poorest_window(values: NDArray[np.float64], num_blocks: int) -> Span:
    """The window whose values, sorted ascending, are lexicographically smallest; of equals the first."""
    windows = np.sort(np.lib.stride_tricks.sliding_window_view(values, num_blocks), axis=1).tolist()
    start = windows.index(min(windows))
    return Span(start, start + num_blocks)


def require_room(placement: Placement, slots: Mapping[PeerId, int]) -> None:
    """ValueError unless each server has a slot for each of its blocks: else no session could use it as placed."""
    for peer, span in placement.spans.items():
        if slots[peer] < len(span):
            raise ValueError(f"{peer} has {slots[peer]} block-slots for its {len(span)} blocks: no session fits")
