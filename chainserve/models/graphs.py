"""Forwards of few tokens as CUDA graphs: a step of a model is hundreds of kernels, and launching them one by one takes
a GPU's host longer than a small batch takes the GPU.

Blocks are compiled first, which joins their small kernels; all blocks of a kind share what is compiled. Graphs of all
blocks are made when they are loaded, of fewer at their first forward. Where no compiler is at hand, or blocks do what
no graph can hold, as mixtures of experts do, forwards go on without.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from chainserve.models.rows import ADDRESSES, POSITION, RowCache
from chainserve.models.skeleton import Skip
from chainserve.types import Span

logger = logging.getLogger(__name__)

SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Rows that there are graphs for; fewer are filled up with rows that are not there."""
MOST_ROWS = SIZES[-1]
WARM_UPS = 2
"""Runs before a graph is captured: kernels are compiled and libraries take their memory."""

Run = Callable[[Tensor, Tensor, RowCache, nn.ModuleList], Tensor]
"""Hidden states (rows, hidden) and positions (rows,) through blocks: hidden states."""


@dataclass(frozen=True, slots=True)
class _Graph:
    """One captured forward, and the tensors it reads and writes."""

    hidden: Tensor
    table: Tensor
    output: Tensor
    replay: Callable[[], object]


class Graphs:
    """The graphs of one runner. Call it from one thread only."""

    def __init__(self, run: Run, *, backend: str = "inductor") -> None:
        """`backend` is what torch.compile has to hand its findings to."""
        self._run = run
        self._backend = backend
        self._graphs: dict[tuple[Span, int], _Graph] = {}
        self._pool: Any = None  # memory that all graphs share, as one runs at a time
        self.failure: str | None = None
        """Why there are none."""

    def forward(self, hidden: Tensor, table: Tensor, blocks: nn.ModuleList, span: Span) -> Tensor | None:
        """Hidden states (rows, hidden) through the blocks of `span`; None if that has to be done without a graph.

        `table` (`rows.POSITION` and on) tells of as many rows, on the CPU.
        """
        num_rows = len(hidden)
        if num_rows > MOST_ROWS:
            return None
        graph = self._graph(hidden, blocks, span, next(size for size in SIZES if size >= num_rows))
        if graph is None:
            return None
        graph.hidden[:num_rows].copy_(hidden)
        graph.table[:, :num_rows].copy_(table)
        if num_rows < len(graph.hidden):
            graph.table[ADDRESSES:, num_rows:].zero_()
        graph.replay()
        return graph.output[:num_rows].clone()

    def prepare(self, like: Tensor, blocks: nn.ModuleList, span: Span) -> None:
        """Make the graphs of these blocks, for hidden states that look `like` (1, hidden). Takes up to half a minute on
        a machine that has not compiled such blocks before."""
        for size in SIZES:
            self._graph(like, blocks, span, size)

    def _graph(self, like: Tensor, blocks: nn.ModuleList, span: Span, size: int) -> _Graph | None:
        """The graph of this size; None if there can be none."""
        if self.failure is None and (span, size) not in self._graphs:
            try:
                self._graphs[span, size] = self._capture(like, blocks, span, size)
            except Exception as error:  # noqa: BLE001 (of a compiler, of a driver, or of a family's code: any kind)
                self.failure = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
                self._graphs.clear()
                logger.warning("no CUDA graphs, so small batches are slower: %s", self.failure)
        return self._graphs.get((span, size))

    def _capture(self, like: Tensor, blocks: nn.ModuleList, span: Span, size: int) -> _Graph:
        hidden = like.new_zeros(size, like.shape[1])
        table = torch.zeros(ADDRESSES + 2 * len(span), size, dtype=torch.int64, device=like.device)
        rows = RowCache(table, first_block=span.start)
        compiled = nn.ModuleList(
            block if isinstance(block, Skip) else CompiledBlock(block, self._backend) for block in blocks
        )

        def run() -> Tensor:
            return self._run(hidden, table[POSITION], rows, compiled)

        if like.device.type != "cuda":  # the interpreter of the tests
            output = run()
            return _Graph(hidden, table, output, lambda: output.copy_(run()))
        side = torch.cuda.Stream(like.device)
        side.wait_stream(torch.cuda.current_stream(like.device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                run()
        torch.cuda.current_stream(like.device).wait_stream(side)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured, pool=self._pool, capture_error_mode="thread_local"):
            output = run()
        self._pool = captured.pool()
        return _Graph(hidden, table, output, captured.replay)


class CompiledBlock(nn.Module):
    """A block whose forward is compiled, together with those of its kind."""

    def __init__(self, block: nn.Module, backend: str) -> None:
        super().__init__()
        self._backend = backend
        self.attention_type = getattr(block, "attention_type", None)
        self._block = block

    def forward(self, *args: object, **kwargs: object) -> object:
        # A block's number decides nothing but which cache it uses, so that it need not be compiled for each.
        with torch._dynamo.config.patch(allow_unspec_int_on_nn_module=True, recompile_limit=64):
            return _compiled(self._backend)(self._block, *args, **kwargs)


@cache
def _compiled(backend: str) -> Callable[..., object]:
    """Calls its first argument with the others."""

    def forward(block: nn.Module, *args: object, **kwargs: object) -> object:
        return block(*args, **kwargs)

    if backend != "inductor":
        return torch.compile(forward, backend=backend)
    from torch._inductor import config  # slow to import

    config.compile_threads = 1  # processes of its own would outlive their use
    # With the tuning, the product of a matrix and one row is a kernel that reads as fast as the memory can.
    return torch.compile(forward, options={"coordinate_descent_tuning": True})
