"""One of several clients of a benchmark, as a process of its own: it gets its part of the load on standard input."""

import asyncio
import os
import sys
import time
from contextlib import suppress

from chainserve.errors import ChainserveError
from chainserve.runtime.cores import free_idle_cores
from chainserve.runtime.loops import quickest_loop
from chainserve_client.bench import messages
from chainserve_client.bench.aim import target_of
from chainserve_client.bench.run import run
from chainserve_client.bench.timing import Timed, to_plain

FLUSH_S = 0.25
"""So often tokens are told of: nobody looks at them more often."""
MAX_LINE = 2**26


class Told:
    """Writes down what it observes."""

    def __init__(self) -> None:
        self._num_tokens = 0
        self._flushed_s = 0.0

    def sent(self) -> None:
        say("sent")

    def first(self, first_s: float) -> None:
        say("first", first_s)

    def came(self, num_tokens: int) -> None:
        self._num_tokens += num_tokens
        if time.monotonic() - self._flushed_s >= FLUSH_S:
            self._flush()

    def ended(self, timed: Timed) -> None:
        self._flush()
        say("ended", to_plain(timed))

    def _flush(self) -> None:
        say("came", self._num_tokens)
        self._num_tokens, self._flushed_s = 0, time.monotonic()


def say(kind: str, value: object = None) -> None:
    """Tell the benchmark, which always reads."""
    sys.stdout.buffer.write(messages.line(kind, value))
    sys.stdout.buffer.flush()


async def serve() -> None:
    """Connect, wait for the beginning, send the requests; give up when standard input ends."""
    orders = asyncio.StreamReader(limit=MAX_LINE)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    aim, load, client = messages.read_task(messages.read(await orders.readline())[1])
    try:
        async with target_of(aim) as target:
            say("ready")
            if not (begin := await orders.readline()):
                return
            begin_s = messages.read(begin)[1]
            running = asyncio.create_task(
                run(target, load, begin_s=begin_s, clock=time.monotonic, observer=Told(), client=client)
            )
            has_ended = asyncio.create_task(orders.read())
            await asyncio.wait((running, has_ended), return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                running.cancel()
            has_ended.cancel()
            with suppress(asyncio.CancelledError):
                await running
    except ChainserveError as error:
        say("refused", str(error))


def main() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    free_idle_cores()
    with asyncio.Runner(loop_factory=quickest_loop()) as runner:
        runner.run(serve())


if __name__ == "__main__":
    main()
