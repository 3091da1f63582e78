"""`chainserve bench`: send the requests, from this process or several, and show what they took."""

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TextIO

from chainserve_client.bench import output
from chainserve_client.bench.figures import Run
from chainserve_client.bench.load import Due
from chainserve_client.bench.options import aim_of, load_of, settings_of
from chainserve_client.bench.report import to_json, to_text

INTERRUPTED_STATUS = 130


@dataclass(frozen=True, slots=True)
class Done:
    """A run, and what is shown of it."""

    run: Run
    text: str

    @property
    def status(self) -> int:
        """Exit status: 0 if all were answered, 1 if not, 130 if it was interrupted."""
        if self.run.is_interrupted:
            return INTERRUPTED_STATUS
        return int(len(self.run.answered) < self.run.num_due)


async def bench(options: argparse.Namespace, *, terminal: TextIO | None) -> Done:
    """Measure as the options say, which were checked; live figures go to a terminal, if there is one."""
    load = load_of(options)
    settings = settings_of(options, load)
    if options.output is not None:
        output.prepare(options.output)
    run = await measure(options, load, terminal=terminal)
    if options.output is not None:
        output.write(options.output, run, settings)
    if options.json:
        return Done(run, to_json(run, settings))
    kept = (
        "" if options.output is None else f"\n\nkept in {options.output}: report.md, report.json, requests.csv, plots"
    )
    return Done(run, to_text(run) + kept)


async def measure(options: argparse.Namespace, load: Sequence[Due], *, terminal: TextIO | None = None) -> Run:
    """Send the load; what it took. When it is cancelled after it has begun, what is there so far."""
    from chainserve_client.bench.aim import target_of
    from chainserve_client.bench.processes import run_clients
    from chainserve_client.bench.progress import Progress
    from chainserve_client.bench.run import run

    aim = aim_of(options)
    progress = Progress(len(load))
    is_interrupted = False
    try:
        async with _shown(progress, terminal):
            if options.clients > 1:
                num_clients = min(options.clients, len(load))
                await run_clients(aim, load, num_clients=num_clients, observer=progress, on_begin=progress.begins)
            else:
                async with target_of(aim) as target:
                    progress.begins(time.time())
                    await run(target, load, begin_s=time.monotonic(), clock=time.monotonic, observer=progress)
    except asyncio.CancelledError:
        if not progress.ended_of:
            raise
        is_interrupted = True
    return Run(
        results=progress.results(), num_due=len(load), is_interrupted=is_interrupted, began_s=progress.began_s or 0.0
    )


@asynccontextmanager
async def _shown(progress: Any, terminal: TextIO | None) -> AsyncIterator[None]:
    """Show live figures meanwhile."""
    if terminal is None:
        yield
        return
    from chainserve_client.bench.progress import show

    showing = asyncio.create_task(show(progress, terminal, clock=time.time))
    try:
        yield
    finally:
        showing.cancel()
        await asyncio.gather(showing, return_exceptions=True)
