"""The health page in a browser, over swarms of every size and state that are built and not run."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web
from gateway_in_memory import page_over
from headless import WIDTHS, briefly, browsing, visiting
from health_states import application, broken, healthy, loading, snapshot_of, swarm_of
from playwright.async_api import Browser, expect
from served_in_memory import served as served_in_memory

from chainserve.swarm.reports import Report
from chainserve.types import Span
from chainserve_client.gateway.keys import Keys, new_key, read_keys
from chainserve_client.health.snapshot import Snapshot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="module")]

TITLES = {healthy: "Working, with nothing to spare", broken: "Blocks are missing", loading: "Getting ready"}


@asynccontextmanager
async def served(snapshot: Snapshot) -> AsyncIterator[str]:
    runner = web.AppRunner(application(snapshot), handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with browsing() as browser:
        yield browser


@pytest.mark.parametrize(
    ("make", "num_servers", "scheme", "judged"),
    [(healthy, 1, "light", 390), (loading, 3, "light", 1440), (broken, 3, "dark", 390), (broken, 12, "dark", 1440)],
    ids=lambda value: value.__name__ if callable(value) else str(value),
)
async def test_a_page_is_readable_at_every_width(
    browser: Browser, make: Callable[[int], Snapshot], num_servers: int, scheme: str, judged: int
) -> None:
    async with served(make(num_servers)) as url:
        for width in WIDTHS:
            async with visiting(browser, url, width=width, scheme=scheme) as visit:
                page = visit.page
                await page.wait_for_selector(".map-row")
                assert await page.inner_text("#verdict-title") == TITLES[make]
                assert await page.locator("#servers tbody tr").count() == num_servers
                assert await page.locator("#history figure").count() == 4
                assert not await visit.is_too_wide()
                if width == judged:
                    assert await visit.inaccessible() == []
                assert visit.faults == []


async def test_what_servers_call_themselves_is_text_and_nothing_else(browser: Browser) -> None:
    servers, plan = swarm_of(3, num_blocks=30)
    named = [replace(one, report=Report(device="<i>GPU</i>", name="<b>grace</b>")) for one in servers]
    async with served(snapshot_of(named, plan)) as url, visiting(browser, url, width=1440) as visit:
        await visit.page.wait_for_selector(".map-row")
        assert await visit.page.locator("main b, main i").count() == 0
        assert "<b>grace</b>" in await visit.page.inner_text("#servers")


async def test_the_page_is_used_by_keyboard(browser: Browser) -> None:
    async with served(healthy(1)) as url, visiting(browser, url, width=390) as visit:
        page = visit.page
        await page.wait_for_selector(".map-row")
        reached = []
        for _ in range(12):
            await page.keyboard.press("Tab")
            reached.append(await page.evaluate("document.activeElement.id || document.activeElement.className"))
        assert reached[0] == "skip"
        for wanted in ("chat-new", "chat-log", "chat-text", "chat-send", "events", "links"):
            assert wanted in reached


async def test_a_gateway_with_keys_asks_for_one_and_keeps_it_in_this_tab(browser: Browser, tmp_path: Path) -> None:
    key, table = new_key("alice")
    (tmp_path / "keys.toml").write_text(table)
    keys = Keys(read_keys(tmp_path / "keys.toml"))
    async with served_in_memory({"a": Span(0, 8)}) as swarm, page_over(swarm, keys=keys) as (http, _):
        url = str(http._base_url)
        async with visiting(browser, url, width=390) as visit:
            page = visit.page
            await expect(page.locator("#key-form")).to_be_visible(timeout=20_000)
            assert await visit.inaccessible() == []
            await page.fill("#key", "sk-wrong")
            await page.press("#key", "Enter")
            await expect(page.locator("#key-hint")).to_have_text("This gateway does not know that key.")
            await page.fill("#key", key)
            await page.press("#key", "Enter")
            await expect(page.locator(".map-row").first).to_be_visible(timeout=20_000)
            await expect(page.locator("#key-form")).to_be_hidden()
            await page.route("**/v1/chat/completions", briefly)
            await page.fill("#chat-text", "hello")
            await page.press("#chat-text", "Enter")
            await expect(page.locator("#chat-log .meta .hop")).to_have_count(1, timeout=20_000)
            await page.reload()
            await expect(page.locator(".map-row").first).to_be_visible(timeout=20_000)
            assert key not in await page.content()
