"""Listening for HTTP."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from chainserve.errors import AddressError


@asynccontextmanager
async def listening(runner: web.AppRunner, *, host: str, port: int, doing: str = "listen") -> AsyncIterator[str]:
    """Let `runner` serve at this address; gives the URL of its root. AddressError if the address cannot be had."""
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise AddressError(f"cannot {doing} at {host}:{port}: {error.strerror}") from None
        shown = f"[{host}]" if ":" in host else host
        yield f"http://{shown}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
