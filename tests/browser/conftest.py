"""
Fixtures that run the system's Chromium.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, async_playwright, expect
from pytest_aiohttp.plugin import AiohttpServer

ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

expect.set_options(timeout=20_000)  # milliseconds


@pytest.fixture(scope="session")
def executable() -> str:
    """Return the path of the system's browser."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        reason = f"no browser found: install one of {', '.join(BROWSERS)}"
        # CI must not pass without these tests.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    return path


@pytest.fixture
async def browser(executable: str, aiohttp_server: AiohttpServer) -> AsyncIterator[Browser]:
    """Run a browser that is closed before the servers of the test are."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=ARGS)
        yield browser
        await browser.close()
