"""The health page over a real swarm, in a browser: who comes and goes, what that means, and an answer as it comes."""

import signal
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from bundled import MODEL
from commands import serving
from headless import WIDTHS, Visit, briefly, browsing, visiting
from playwright.async_api import expect

from chainserve_server.local import LocalSwarm

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

SOON_MS = 60_000
COUNT_PIECES = """() => {
    window.lengths = new Set();
    const count = () => window.lengths.add(document.querySelector(".answer")?.textContent.length ?? 0);
    new MutationObserver(count).observe(document.getElementById("chat-log"), {childList: true, subtree: true});
}"""
REFUSED = "error: Failed to load resource: net::ERR_"
"""What the browser itself says of a gateway that is gone."""


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@asynccontextmanager
async def visits(url: str) -> AsyncIterator[list[Visit]]:
    """The page at every width, all at once."""
    async with AsyncExitStack() as stack:
        browser = await stack.enter_async_context(browsing())
        yield [await stack.enter_async_context(visiting(browser, url, width=width)) for width in WIDTHS]


async def verdict_is(pages: Sequence[Visit], title: str) -> None:
    for visit in pages:
        await expect(visit.page.locator("#verdict-title")).to_have_text(title, timeout=SOON_MS)


async def event_is(pages: Sequence[Visit], text: str) -> None:
    for visit in pages:
        await expect(visit.page.locator("#events li").filter(has_text=text).first).to_be_visible(timeout=SOON_MS)


async def test_the_page_shows_the_life_of_a_swarm(tmp_path: Path) -> None:
    port = free_port()
    with LocalSwarm(MODEL, tmp_path, is_warm=True) as swarm:
        swarm.start("0:10", "10:20", arguments=("--name", "first & <i>last</i>"))
        async with AsyncExitStack() as stack:
            with serving("health", swarm.token, tmp_path, "--port", str(port)) as url:
                pages = await stack.enter_async_context(visits(url))
                await verdict_is(pages, "Blocks are missing")

                [third] = swarm.start("20:30")
                await event_is(pages, f"{third.peer[-6:]} joined")
                await event_is(pages, "every block of smollm2-135m is online again")
                await verdict_is(pages, "Working, with nothing to spare")
                for visit in pages:
                    row = visit.page.locator("#servers tbody tr").filter(has_text=third.peer[-6:])
                    await expect(row).to_contain_text("online")
                    await expect(row).to_contain_text("20:30")
                    await expect(row).to_contain_text("blocks 20:30 missing")
                    await expect(visit.page.locator("#chains .hop")).to_have_count(3, timeout=SOON_MS)

                for visit in pages:
                    await answer_comes_in_pieces(visit)
                    assert await visit.inaccessible() == []
                    assert not await visit.is_too_wide()

                swarm.servers[1].process.send_signal(signal.SIGKILL)
                lost = swarm.servers[1].peer[-6:]
                await event_is(pages, f"{lost} does not answer any more, it held blocks 10:20")
                await event_is(pages, "blocks 10:20 of smollm2-135m are missing")
                await verdict_is(pages, "Blocks are missing")
                for visit in pages:
                    row = visit.page.locator("#servers tbody tr").filter(has_text=lost)
                    await expect(row).to_contain_text("unreachable")

                swarm.start("10:20")
                await verdict_is(pages, "Working, with nothing to spare")
                for visit in pages:
                    assert visit.faults == []
                    assert swarm.token not in await visit.page.content()

            for visit in pages:
                await expect(visit.page.locator("#lost")).to_contain_text(
                    "The gateway does not answer.", timeout=SOON_MS
                )
                await expect(visit.page.locator("#verdict-title")).to_have_text("Not connected")
            with serving("health", swarm.token, tmp_path, "--port", str(port)):
                await verdict_is(pages, "Working, with nothing to spare")
                for visit in pages:
                    await expect(visit.page.locator("#lost")).to_be_hidden()
                    assert [fault for fault in visit.faults if not fault.startswith(REFUSED)] == []


async def answer_comes_in_pieces(visit: Visit) -> None:
    """Ask by keyboard, watch the answer grow, and see the way it took."""
    page = visit.page
    await page.route("**/v1/chat/completions", briefly)
    await page.evaluate(COUNT_PIECES)
    await page.fill("#chat-text", "Count from one to twenty, in words.")
    await page.press("#chat-text", "Enter")
    await expect(page.locator("#chat-log .meta .hop")).to_have_count(3, timeout=SOON_MS)
    await expect(page.locator("#chat-log .meta")).to_contain_text("tokens/s")
    assert await page.evaluate("window.lengths.size") > 5
    assert len(await page.inner_text("#chat-log .answer")) > 10
