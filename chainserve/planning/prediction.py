"""What a user sees of a chain: seconds to the first token, and tokens per second after it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from chainserve.planning.times import ServerTimes
from chainserve.planning.values import PairSeconds, require
from chainserve.types import Chain, PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The times of a request that has its chain to itself."""

    first_token_s: float  # from the start of the session, not counting any wait for one
    token_s: float  # for each token after the first

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second after the first one; infinite if they take no time."""
        return 1 / self.token_s if self.token_s else math.inf


def predict(
    chain: Chain,
    servers: Mapping[PeerId, ServerTimes],
    *,
    input_tokens: float,
    pair_hop_s: PairSeconds | None = None,
    pair_prompt_s: PairSeconds | None = None,
) -> Prediction:
    """Split the service time of a chain (Eq. 2) at the first token, which the prefill yields.

    `pair_hop_s[i, j]` is the seconds of one message from i to j; heads, and pairs that are not in it, have the `hop_s`
    of their server. `pair_prompt_s[i, j]` is how many more the prompt takes from i to j, which counts where the link is
    slow; none where it is absent. The tail's head turns one output into each token. With n output tokens the service
    time is `first_token_s + (n - 1) * token_s`, beside the head, which planning does not count.
    ValueError for a negative number of tokens.
    """
    require("input_tokens", input_tokens, positive=False)
    pairs, prompts = pair_hop_s or {}, pair_prompt_s or {}
    first_token_s = token_s = servers[chain.hops[-1].peer].head_s
    before: PeerId | None = None
    for hop in chain.hops:
        server = servers[hop.peer]
        hop_s, prompt_s = server.hop_s, 0.0
        if before is not None:
            hop_s, prompt_s = pairs.get((before, hop.peer), hop_s), prompts.get((before, hop.peer), 0.0)
        first_token_s += hop_s + prompt_s + len(hop.span) * server.block.request_s(input_tokens, 1)
        token_s += hop_s + len(hop.span) * server.block.decode_s
        before = hop.peer
    return Prediction(first_token_s=first_token_s, token_s=token_s)
