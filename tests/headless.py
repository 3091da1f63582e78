"""A browser without a window, from the distribution's package, and what a page may not do in it."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, ConsoleMessage, Page, Request, Route, async_playwright

CHROMIUM = Path("/usr/bin/chromium")
IS_INSTALLED = CHROMIUM.exists()
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WIDTHS = (390, 1440)


@asynccontextmanager
async def browsing() -> AsyncIterator[Browser]:
    """The browser; the test fails if it is not installed."""
    if not IS_INSTALLED:
        pytest.fail(f"this test takes Debian's chromium at {CHROMIUM}: apt-get install chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            await browser.close()


@dataclass
class Visit:
    """One page that is open, and what it did that it may not do."""

    page: Page
    url: str
    faults: list[str] = field(default_factory=list)

    def heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(f"{message.type}: {message.text}")

    def asked(self, request: Request) -> None:
        if urlsplit(request.url).netloc != urlsplit(self.url).netloc:
            self.faults.append(f"asked another host: {request.url}")

    async def is_too_wide(self) -> bool:
        """Whether the page as a whole scrolls sideways."""
        return bool(await self.page.evaluate("document.documentElement.scrollWidth > window.innerWidth"))

    async def inaccessible(self) -> list[str]:
        """What axe finds that is serious or worse, with where it is."""
        found = await Axe().run(self.page)
        return [
            f"{fault['id']}: {node['html'][:200]}"
            for fault in found.response["violations"]
            if fault["impact"] in ("serious", "critical")
            for node in fault["nodes"]
        ]


@asynccontextmanager
async def visiting(browser: Browser, url: str, *, width: int, scheme: str = "light") -> AsyncIterator[Visit]:
    """A page of this width, in a session of its own."""
    context = await browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if scheme == "dark" else "light",
        reduced_motion="reduce",
    )
    try:
        page = await context.new_page()
        visit = Visit(page, url)
        page.on("console", visit.heard)
        page.on("pageerror", lambda error: visit.faults.append(f"error: {error}"))
        page.on("request", visit.asked)
        await page.goto(url)
        yield visit
    finally:
        await context.close()


async def briefly(route: Route) -> None:
    """Let the page ask for a short answer, which is the same one every time."""
    asked = json.loads(route.request.post_data or "")
    await route.continue_(post_data=json.dumps({**asked, "max_tokens": 24, "temperature": 0}))
