"""`chainserve-server`: host a span of a model's blocks."""

import argparse
import asyncio
import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from chainserve import __version__
from chainserve.errors import ChainserveError, UsageError
from chainserve.models.names import QUANTIZATIONS
from chainserve.protocol.messages import DTYPES, INT8
from chainserve.runtime import logs
from chainserve.runtime.background import in_passing_thread, is_busy
from chainserve.runtime.cores import free_idle_cores
from chainserve.runtime.garbage import sparing_what_is_there
from chainserve_server import bench_options
from chainserve_server.family_options import asks_for_family, children_of
from chainserve_server.gateway_beside import GatewayBeside, add_options, arguments_of
from chainserve_server.standard_input import StandardInput

if TYPE_CHECKING:
    from chainserve_server.config import ServerConfig
    from chainserve_server.prepare import Prepared

LEAVE_SIGNALS = (signal.SIGINT, signal.SIGTERM)
PROGRAM = (sys.executable, "-P", "-m", "chainserve_server.cli")
"""This command, not taken from the current folder, for children."""


def main(arguments: Sequence[str] | None = None, *, program: Sequence[str] = PROGRAM) -> int:
    """Run a server, or several; what was asked for and cannot be done is one line on stderr and exit status 2.

    `program` is what children run.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    options = build_parser().parse_args(arguments)
    logs.configure(is_verbose=options.verbose, as_json=options.log_json)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    free_idle_cores()
    told_to_leave = threading.Event()  # an interrupt that hits a destructor is swallowed, this is not

    def interrupt(*_: object) -> None:
        told_to_leave.set()
        raise KeyboardInterrupt

    for number in LEAVE_SIGNALS:
        signal.signal(number, interrupt)
    try:
        if asks_for_family(options):
            return run_family(options, arguments, told_to_leave, program=program)
        run(options, told_to_leave)
    except ChainserveError as error:
        return fail(error, options)
    except BaseExceptionGroup as group:
        known = [error for error in leaves(group) if isinstance(error, ChainserveError)]
        if not known:
            raise
        return fail(known[0], options)
    except KeyboardInterrupt:
        if is_busy():
            os._exit(130)  # while preparing, for which nobody waits
        return 130
    return 0


def fail(error: ChainserveError, options: argparse.Namespace) -> int:
    if options.log_json:
        print(json.dumps(logs.entry(str(error), level="error", logger="chainserve-server")), file=sys.stderr)
    else:
        print(f"chainserve-server: {error}", file=sys.stderr)
    return 2


def saying(options: argparse.Namespace) -> Callable[[str], None]:
    """How this command says what happens: as text, or line by line as JSON."""

    def as_json(text: str) -> None:
        for line in filter(None, map(str.strip, text.splitlines())):
            print(json.dumps(logs.entry(line, logger="chainserve-server")), flush=True)

    return as_json if options.log_json else lambda text: print(text, flush=True)


def keeping_token(options: argparse.Namespace) -> Callable[[str], None] | None:
    """Where the token goes that is made, if not to the terminal: to a file for this user alone."""
    path: Path | None = options.token_file

    def keep(token: str) -> None:
        assert path is not None
        try:
            path.unlink(missing_ok=True)
            with open(path, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                file.write(f"{token}\n")
        except OSError as error:
            raise UsageError(f"the token cannot be kept at {path}: {error.strerror}") from None

    return None if path is None else keep


def leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """The errors in a group of errors."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaves(error)
        else:
            yield error


EXAMPLES = """\
examples:
  chainserve-server --model smollm2-135m                                        a swarm on this machine
  chainserve-server --model smollm2-135m --host 10.0.0.5 --port 8300            one for other machines
  chainserve-server --model smollm2-135m --host 10.0.0.6 --port 8300 --join TOKEN
  chainserve-server --model smollm2-135m --devices all --join TOKEN             a server on each GPU
  chainserve-server --model smollm2-135m --metrics-port 9400 --log-json         for monitoring
exit status: 0 if it was told to leave, 2 if what was asked for cannot be done"""


class Completion(argparse.Action):
    """Prints a shell's script and exits, as --help does."""

    def __call__(self, parser: argparse.ArgumentParser, *given: object) -> None:
        try:
            import shtab
        except ModuleNotFoundError:
            parser.error("this takes shtab: pip install shtab")
        print(shtab.complete(parser, shell=str(given[1])))
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="chainserve-server",
        description="Host a span of a model's blocks. Without --join this starts a swarm and prints its join token.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"chainserve {__version__}")
    parser.add_argument(
        "--model", required=True, help="hub id, folder, GGUF file, or smollm2-135m, which comes with a package"
    )
    parser.add_argument(
        "--blocks",
        default="auto",
        metavar="START:END",
        help="blocks to host, end not included; auto: chosen by the swarm; all",
    )
    parser.add_argument("--join", metavar="TOKEN", help="join the swarm of this token; -: read it from standard input")
    parser.add_argument("--swarm", metavar="NAME", default="chainserve", help="name of the swarm that is started")
    parser.add_argument(
        "--memory",
        metavar="SIZE",
        help="for weights, activations and cache: 6GB or 512MiB, 0.5 or 50%% of what the device has, or auto, which is "
        "most of a free GPU and a quarter of free RAM (auto)",
    )
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="bfloat16, or float32 on CPUs without it")
    parser.add_argument(
        "--quant",
        choices=QUANTIZATIONS,
        help="hold the weights of blocks in 8 or 4 bits: int8 and nf4 by bitsandbytes, int4 by torch, fp8 on GPUs that "
        "have it (no)",
    )
    parser.add_argument(
        "--wire",
        choices=(INT8,),
        help="send activations on in 8 bits, for slow links; answers are then not quite the model's own (no)",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps (cpu)")
    parser.add_argument(
        "--devices", metavar="NAMES", help="one server on each, under one parent: cuda:0,cuda:1, or all CUDA devices"
    )
    parser.add_argument(
        "--num-servers", type=int, default=1, metavar="N", help="so many servers on the device, under one parent (1)"
    )
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="listen here (127.0.0.1)")
    parser.add_argument(
        "--public-host",
        metavar="ADDRESS",
        help="what others reach this machine at, if that is not --host: a router that passes the ports on (--host)",
    )
    parser.add_argument(
        "--port", type=int, default=0, help="for links; the DHT takes the next one (the system chooses)"
    )
    parser.add_argument(
        "--metrics-port",
        type=int,
        metavar="PORT",
        help="show metrics for Prometheus at this port, over plain HTTP (no)",
    )
    parser.add_argument(
        "--metrics-host", default="127.0.0.1", metavar="ADDRESS", help="and this address (127.0.0.1: this machine only)"
    )
    parser.add_argument("--identity", type=Path, metavar="FILE", help="this peer's key (kept for this user)")
    parser.add_argument("--name", help="what people see this server called on the swarm's health page")
    parser.add_argument(
        "--token-days", type=float, default=30, metavar="DAYS", help="the token printed is good for so long (30)"
    )
    parser.add_argument(
        "--lease",
        type=float,
        default=30,
        metavar="SECONDS",
        help="how long the others believe that this server is there when it says nothing (30)",
    )
    parser.add_argument(
        "--leave-on-eof", action="store_true", help="leave when standard input ends, as when the parent is gone"
    )
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help="write the token of a new swarm there, and do not print it"
    )
    parser.add_argument(
        "--slowdown",
        type=float,
        metavar="F",
        help="for benchmarks only: take F times as long for everything as this device was measured to (no)",
    )
    add_options(parser)
    bench_options.add_options(parser)
    parser.add_argument("--verbose", action="store_true", help="log what happens")
    parser.add_argument("--log-json", action="store_true", help="say and log everything as lines of JSON")
    parser.add_argument(
        "--completion",
        choices=("bash", "zsh", "fish"),
        action=Completion,
        help="print what completes this command in a shell, and exit",
    )
    return parser


def config_of(options: argparse.Namespace) -> "ServerConfig":
    """What the options say; UsageError if that cannot be, on any machine."""
    from chainserve_server.config import ServerConfig, parse_blocks, parse_memory

    return ServerConfig(
        model=options.model,
        blocks=parse_blocks(options.blocks),
        join=options.join,
        swarm=options.swarm,
        memory=parse_memory(options.memory or "auto"),
        dtype=options.dtype,
        quant=options.quant,
        wire=options.wire,
        device=options.device,
        host=options.host,
        port=options.port,
        public_host=options.public_host,
        metrics_host=options.metrics_host,
        metrics_port=options.metrics_port,
        identity=options.identity,
        token_days=options.token_days,
        lease_s=options.lease,
        name=options.name,
        slowdown=options.slowdown,
        orders=bench_options.orders_of(options),
    )


def run(options: argparse.Namespace, told_to_leave: threading.Event) -> None:
    """Check everything that needs no swarm, then serve until told to leave, with a gateway beside it if asked for."""
    if options.gateway is None:
        run_server(options, told_to_leave, None)
        return
    gateway = GatewayBeside(arguments_of(options))
    try:
        run_server(options, told_to_leave, gateway)
    finally:
        gateway.close()


def run_server(options: argparse.Namespace, told_to_leave: threading.Event, gateway: GatewayBeside | None) -> None:
    reads_token = options.join == "-"
    if reads_token or options.leave_on_eof:
        standard_input = StandardInput(leave_on_eof=options.leave_on_eof)

    from chainserve.models.names import find_model
    from chainserve.swarm.daemon import listen_address

    config = config_of(options)
    if not reads_token:
        config.check_join(now=time.time())
    find_model(config.model)
    for port in (config.port, config.port + 1) if config.port else (0,):
        asyncio.run(listen_address(config.host, port))

    def checked() -> "Prepared":
        from chainserve_server.prepare import prepare  # imports torch, which takes seconds

        return prepare(config)

    prepared = in_passing_thread(checked)
    if gateway is not None:
        gateway.check()

    import uvloop

    from chainserve_server.server import serve

    if reads_token:  # now that all slow imports are done
        config = replace(config, join=standard_input.token())
        config.check_join(now=time.time())

    async def until_signalled() -> None:
        leave = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in LEAVE_SIGNALS:
            loop.add_signal_handler(number, leave.set)
        if told_to_leave.is_set():
            raise KeyboardInterrupt
        await serve(
            config, prepared, leave=leave, say=saying(options), keep_token=keeping_token(options), gateway=gateway
        )

    with sparing_what_is_there(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(until_signalled())
    if is_busy():
        if gateway is not None:
            gateway.close()
        os._exit(0)  # we were told to leave while loading or planning: nobody waits for that


def run_family(
    options: argparse.Namespace,
    arguments: Sequence[str],
    told_to_leave: threading.Event,
    *,
    program: Sequence[str],
) -> int:
    """Start the servers asked for as children and stay until they are gone; returns the exit status."""
    from chainserve.swarm.token import JoinToken
    from chainserve_server.family import Family
    from chainserve_server.hardware import auto_memory, cuda_devices

    children = children_of(options, arguments, cuda_devices=cuda_devices, auto_memory=auto_memory)
    token = sys.stdin.readline() if options.join == "-" else options.join
    if token is not None:
        JoinToken.decode(token, now=time.time())
        token = "".join(token.split())
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # servers may write what this terminal has no letters for

    async def until_gone() -> int:
        family = Family(
            children,
            program=program,
            say=lambda text: print(text, flush=True),
            token=token,
            keep_token=keeping_token(options),
            as_json=options.log_json,
        )
        loop = asyncio.get_running_loop()
        for number in LEAVE_SIGNALS:
            loop.add_signal_handler(number, family.interrupt)
        if told_to_leave.is_set():
            raise KeyboardInterrupt
        return await family.run()

    return asyncio.run(until_gone())


if __name__ == "__main__":
    sys.exit(main())
