"""A session in activation mode that outlives its servers: it goes on over another chain from what it has sent so far.

It keeps the hidden states that it was given. After a loss they are sent once more, as one prefill over the new chain,
and the step that was under way ends as if nothing had happened. So whatever drives the session, beam search or
transformers' own `generate()`, sees a pause, and the same numbers.
"""

from collections.abc import Sequence

import torch

from chainserve.errors import SessionLostError
from chainserve.models.wire import from_wire, to_wire
from chainserve.protocol.messages import Activations
from chainserve.protocol.session import Output
from chainserve.types import Chain
from chainserve_client.lifeline import Lifeline, Recovery

CHUNK_TOKENS = 512
"""Tokens per message of a long prompt: servers down the chain work on one while the next is on its way."""


class Session:
    """Lanes of tokens over a chain of servers, and over another one if that breaks. Use one caller at a time."""

    def __init__(self, line: Lifeline, *, num_lanes: int) -> None:
        self.line = line
        self._known: list[list[torch.Tensor]] = [[] for _ in range(num_lanes)]  # inputs so far, per lane

    @property
    def chain(self) -> Chain:
        """The chain it runs on now."""
        return self.line.current.chain

    @property
    def recoveries(self) -> Sequence[Recovery]:
        """How it went on elsewhere."""
        return self.line.recoveries

    async def step(
        self, hidden: torch.Tensor, num_tokens: Sequence[int], num_outputs: Sequence[int]
    ) -> list[torch.Tensor]:
        """Continue every lane and return its outputs.

        `hidden` (sum of num_tokens, hidden size) holds the lanes' tokens one lane after another; the result has
        for each lane a tensor (num_outputs[lane], hidden size). SessionLostError if no chain could end the step.
        """
        for known, rows in zip(self._known, hidden.split(list(num_tokens)), strict=True):
            if len(rows):
                known.append(rows)
        if await self.line.move_if_leaving():
            hidden, num_tokens = self._all_known()
        while True:
            try:
                outputs = await self._step(hidden, num_tokens, num_outputs)
            except SessionLostError as error:
                await self.line.replace(error)
                hidden, num_tokens = self._all_known()
            else:
                self.line.arrived(len(hidden))
                return outputs

    async def reorder(self, sources: Sequence[int]) -> None:
        """Let lane i continue from what lane sources[i] has cached."""
        self._known = [list(self._known[source]) for source in sources]
        current = self.line.current
        await current.send(current.state.reorder(sources))

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget lane i's positions at or after lengths[i]."""
        self._known = [
            [torch.cat(known)[:length]] if known and length else []
            for known, length in zip(self._known, lengths, strict=True)
        ]
        self.line.current.state.truncate(lengths)

    async def close(self) -> None:
        """Free the session's cache along the chain."""
        await self.line.close()

    async def _step(
        self, hidden: torch.Tensor, num_tokens: Sequence[int], num_outputs: Sequence[int]
    ) -> list[torch.Tensor]:
        """As `step`, on the chain there is."""
        current = self.line.current
        for chunks in current.state.step(num_tokens, num_outputs, chunk_tokens=CHUNK_TOKENS):
            first, last = chunks[0], chunks[-1]
            rows = hidden[first.first : last.first + last.step.num_tokens]
            await current.send(Activations(tuple(chunk.step for chunk in chunks), to_wire(rows)))
        outputs: list[list[torch.Tensor]] = [[] for _ in num_tokens]
        async for output in current.outputs(len(hidden)):
            if isinstance(output, Output):
                outputs[output.lane].append(from_wire(output.tensor, dtype=hidden.dtype, device=hidden.device))
        return [torch.cat(parts) if parts else hidden[:0] for parts in outputs]

    def _all_known(self) -> tuple[torch.Tensor, Sequence[int]]:
        """Hidden states of all lanes so far, for a chain that has cached nothing, and how many of each."""
        return torch.cat([row for known in self._known for row in known]), [sum(map(len, k)) for k in self._known]
