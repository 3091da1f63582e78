"""`chainserve gateway`: its options, and the server from start to end."""

import argparse
import asyncio
import os
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from chainserve.errors import UsageError
from chainserve.runtime.garbage import sparing_what_is_there
from chainserve.runtime.hosts import is_loopback
from chainserve_client.examples import TOKEN_HELP

if TYPE_CHECKING:
    from chainserve_client.gateway.app import Gateway

MAX_WAIT_S = 60.0
LEAVE_S = 2.0
"""So long running answers have to end when the gateway is stopped."""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands and their options."""
    _add_options(commands.add_parser("gateway", help="serve an OpenAI-compatible API, and the health page"), port=8000)
    _add_options(commands.add_parser("health", help="serve the swarm's health page, which can chat, too"), port=8080)
    key = commands.add_parser("api-key", help="make a key for the gateway")
    key.add_argument("--json", action="store_true", help="print key and table as JSON")
    key.add_argument("name", metavar="NAME", type=_key_name, help="whose key it is")


def _add_options(gateway: argparse.ArgumentParser, *, port: int) -> None:
    gateway.add_argument("token", metavar="TOKEN", help=TOKEN_HELP)
    gateway.add_argument("--leave-on-eof", action="store_true", help=argparse.SUPPRESS)
    gateway.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1)")
    gateway.add_argument("--port", type=int, default=port, help=f"0 takes any that is free ({port})")
    gateway.add_argument("--api-keys", type=Path, metavar="FILE", help="TOML file with a table per key; see api-key")
    gateway.add_argument("--no-auth", action="store_true", help="let everybody in who reaches --host")
    gateway.add_argument(
        "--cors-origin", action="append", default=[], metavar="ORIGIN", help="let pages from there ask; may be repeated"
    )
    gateway.add_argument(
        "--max-wait",
        type=float,
        default=MAX_WAIT_S,
        metavar="SECONDS",
        help=f"answer 429 if a place would have to be waited for longer ({MAX_WAIT_S:.0f})",
    )
    gateway.add_argument("--draft-model", metavar="MODEL", help="a smaller model, on this machine, that drafts answers")
    gateway.add_argument("--json", action="store_true", help="say where it serves as JSON")


def _key_name(text: str) -> str:
    if not text.replace("-", "").replace("_", "").isalnum() or not text.isascii():
        raise argparse.ArgumentTypeError("letters, digits, - and _ only")
    return text


def check(options: argparse.Namespace) -> None:
    """UsageError, before anything is started, if this cannot be or would let strangers in."""
    if not options.max_wait >= 0:
        raise UsageError(f"--max-wait {options.max_wait:g}: it has to be at least 0")
    if options.api_keys is None and not options.no_auth and not is_loopback(options.host):
        raise UsageError(
            f"{options.host} can be reached by others, and no keys are given: add --api-keys FILE "
            f"(`chainserve api-key NAME` makes one), or --no-auth if everybody may use the swarm"
        )


def end_of_input(*, is_watched: bool) -> asyncio.Event:
    """Set when standard input ends, if that is watched: then whoever holds the other end is gone."""
    loop, has_ended = asyncio.get_running_loop(), asyncio.Event()

    def read() -> None:  # not through sys.stdin: a thread that waits in there keeps Python from ending
        while os.read(sys.stdin.fileno(), 4096):
            pass
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(has_ended.set)

    if is_watched:
        threading.Thread(target=read, name="end of input", daemon=True).start()
    return has_ended


@asynccontextmanager
async def serving(options: argparse.Namespace) -> AsyncIterator[str]:
    """Join the swarm and serve; gives the address to ask at."""
    from chainserve.swarm.token import JoinToken
    from chainserve_client.client import load_draft_model
    from chainserve_client.gateway.app import Gateway
    from chainserve_client.gateway.keys import Keys, read_keys
    from chainserve_client.gateway.models import Models
    from chainserve_client.health.page import HealthPage
    from chainserve_client.health.watch import watching
    from chainserve_client.join import join

    name = JoinToken.decode(options.token, now=time.time()).swarm
    keys = None if options.api_keys is None else Keys(read_keys(options.api_keys))
    draft = await load_draft_model(options.draft_model) if options.draft_model is not None else None
    network = await join(options.token)
    try:
        async with watching(network, swarm=name) as watch:
            gateway = Gateway(
                Models(network, draft=draft),
                keys=keys,
                cors_origins=options.cors_origin,
                max_wait_s=options.max_wait,
                page=HealthPage(watch),
                is_local=keys is None and not options.no_auth,
            )
            with sparing_what_is_there():
                async with listening(gateway, host=options.host, port=options.port) as url:
                    yield url
    finally:
        await network.close()
        if draft is not None:
            draft.close()


@asynccontextmanager
async def listening(gateway: "Gateway", *, host: str, port: int) -> AsyncIterator[str]:
    """Serve a `Gateway` at this address; AddressError if it cannot be had."""
    from aiohttp import web

    from chainserve.transport import http

    runner = web.AppRunner(
        gateway.app, handler_cancellation=True, shutdown_timeout=LEAVE_S, access_log=None, keepalive_timeout=75.0
    )
    async with http.listening(runner, host=host, port=port) as url:
        yield url
