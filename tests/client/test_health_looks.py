"""The health page in a browser, over swarms of every size and state that are built and not run."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from headless import WIDTHS, browsing, visiting
from health_states import application, broken, healthy, loading

from chainserve_client.health.snapshot import Snapshot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

TITLES = {healthy: "Working|Healthy", broken: "Blocks are missing", loading: "Getting ready"}


@asynccontextmanager
async def served(snapshot: Snapshot) -> AsyncIterator[str]:
    runner = web.AppRunner(application(snapshot), handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("make", "num_servers", "scheme"),
    [
        (healthy, 1, "light"),
        (loading, 3, "light"),
        (broken, 3, "dark"),
        (healthy, 12, "dark"),
        (broken, 12, "light"),
    ],
    ids=lambda value: value.__name__ if callable(value) else str(value),
)
async def test_a_page_is_readable_at_every_width(
    make: Callable[[int], Snapshot], num_servers: int, scheme: str
) -> None:
    async with served(make(num_servers)) as url, browsing() as browser:
        for width in WIDTHS:
            async with visiting(browser, url, width=width, scheme=scheme) as visit:
                page = visit.page
                await page.wait_for_selector(".map-row")
                title = await page.inner_text("#verdict-title")
                assert title.startswith(tuple(TITLES[make].split("|")))
                assert await page.locator("#servers tbody tr").count() == num_servers
                assert await page.locator("#history figure").count() == 4
                assert not await visit.is_too_wide()
                assert await visit.inaccessible() == []
                assert visit.faults == []


async def test_what_servers_call_themselves_is_text_and_nothing_else() -> None:
    async with served(healthy(12)) as url, browsing() as browser, visiting(browser, url, width=1440) as visit:
        await visit.page.wait_for_selector(".map-row")
        assert await visit.page.locator("main b").count() == 0
        assert "<b>grace</b>" in await visit.page.inner_text("#servers")


async def test_the_page_is_used_by_keyboard() -> None:
    async with served(healthy(1)) as url, browsing() as browser, visiting(browser, url, width=390) as visit:
        page = visit.page
        await page.wait_for_selector(".map-row")
        reached = []
        for _ in range(12):
            await page.keyboard.press("Tab")
            reached.append(await page.evaluate("document.activeElement.id || document.activeElement.className"))
        assert reached[0] == "skip"
        for wanted in ("chat-new", "chat-log", "chat-text", "chat-send", "events", "links"):
            assert wanted in reached
