"""`chainserve-server`: host a span of a model's blocks."""

import argparse
import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from chainserve import __version__
from chainserve.errors import ChainserveError
from chainserve.protocol.messages import DTYPES
from chainserve.runtime.cores import free_idle_cores
from chainserve.types import Span

LEAVE_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a server; what was asked for and cannot be done is one line on stderr and exit status 2."""
    options = build_parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO if options.verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    free_idle_cores()
    told_to_leave = threading.Event()  # an interrupt that hits a destructor is swallowed, this is not

    def interrupt(*_: object) -> None:
        told_to_leave.set()
        raise KeyboardInterrupt

    for number in LEAVE_SIGNALS:
        signal.signal(number, interrupt)
    try:
        run(options, told_to_leave)
    except ChainserveError as error:
        return fail(error)
    except BaseExceptionGroup as group:
        known = [error for error in leaves(group) if isinstance(error, ChainserveError)]
        if not known:
            raise
        return fail(known[0])
    except KeyboardInterrupt:
        return 130
    return 0


def fail(error: ChainserveError) -> int:
    print(f"chainserve-server: {error}", file=sys.stderr)
    return 2


def leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """The errors in a group of errors."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaves(error)
        else:
            yield error


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="chainserve-server",
        description="Host a span of a model's blocks. Without --join this starts a swarm and prints its join token.",
    )
    parser.add_argument("--version", action="version", version=f"chainserve {__version__}")
    parser.add_argument(
        "--model", required=True, help="hub id, folder, GGUF file, or smollm2-135m, which comes with a package"
    )
    parser.add_argument("--blocks", metavar="START:END", help="blocks to host, end not included (all)")
    parser.add_argument("--join", metavar="TOKEN", help="join the swarm of this token")
    parser.add_argument("--swarm", metavar="NAME", default="chainserve", help="name of the swarm that is started")
    parser.add_argument("--memory", metavar="SIZE", help="for weights and cache, as 6GB or 512MiB (most of a free GPU)")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="float32 on the CPU, bfloat16 elsewhere")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps (cpu)")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="listen here (127.0.0.1)")
    parser.add_argument(
        "--port", type=int, default=0, help="for links; the DHT takes the next one (the system chooses)"
    )
    parser.add_argument("--identity", type=Path, metavar="FILE", help="this peer's key (kept for this user)")
    parser.add_argument(
        "--token-days", type=float, default=30, metavar="DAYS", help="the token printed is good for so long (30)"
    )
    parser.add_argument("--verbose", action="store_true", help="log what happens")
    return parser


def run(options: argparse.Namespace, told_to_leave: threading.Event) -> None:
    """Check everything that needs no swarm, then serve until told to leave."""
    from chainserve.swarm.token import JoinToken
    from chainserve_server.config import ServerConfig, parse_bytes
    from chainserve_server.prepare import prepare

    config = ServerConfig(
        model=options.model,
        blocks=Span.parse(options.blocks) if options.blocks else None,
        join=options.join,
        swarm=options.swarm,
        memory_bytes=parse_bytes(options.memory) if options.memory else None,
        dtype=options.dtype,
        device=options.device,
        host=options.host,
        port=options.port,
        identity=options.identity,
        token_days=options.token_days,
    )
    if config.join:
        JoinToken.decode(config.join, now=time.time())
    prepared = prepare(config)

    import uvloop

    from chainserve_server.server import LOAD_THREAD, serve

    async def until_signalled() -> None:
        leave = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in LEAVE_SIGNALS:
            loop.add_signal_handler(number, leave.set)
        if told_to_leave.is_set():
            raise KeyboardInterrupt
        await serve(config, prepared, leave=leave, say=lambda text: print(text, flush=True))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(until_signalled())
    if any(thread.name.startswith(LOAD_THREAD) for thread in threading.enumerate()):
        os._exit(0)  # we were told to leave while loading, which goes on in its thread: nobody waits for it


if __name__ == "__main__":
    sys.exit(main())
