"""
The README's page in a real browser, and that it reconnects after a close as the demo does.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import pytest
from aiohttp.test_utils import TestServer
from playwright.async_api import Browser, Page, expect

from demo.app import make_app
from tests.docs.documents import CALLS, program, run
from tests.support.clients import Server

CODES = [1000, 1001, 1006, 1011, 1012, 1013, 4401, 4403, 4429]

# Replaces a page's sockets, so that a test can close them, and records when it would reconnect.
FAKES = """
window.sockets = [];
window.wait = null;
window.WebSocket = class {
  constructor() { sockets.push(this); }
  close() {}
};
window.setTimeout = (callback, wait) => { window.retry = callback; window.wait = wait / 1000; };
"""
# The seconds that the README's page waits after each of several closes in a row.
README_WAITS = """
(codes) => codes.map((code) => {
  window.wait = null;
  const target = sockets.at(-1);
  target.onclose({ target, code, reason: "" });
  if (window.wait !== null) retry();
  return window.wait;
})
"""
# The rule of the library's script, and so of the demo.
RULE = """
async (code, failures) =>
  (await import("/static/session-ws.js")).reconnectAfter(code, failures)
"""


@pytest.fixture
async def site() -> AsyncIterator[TestServer]:
    """Run the README's program."""
    server = Server(program().make_app())
    await server.start_server()
    yield server
    await server.close()


async def open_page(page: Page, site: TestServer) -> Page:
    """Open the page."""
    await page.goto(str(site.make_url("/")))
    return page


async def log_in(page: Page, name: str) -> None:
    """Log in, and wait for the greeting over the socket."""
    await page.fill("#name", name)
    await page.click("#in")
    await expect(page.locator("#log")).to_contain_text(f"hello, {name}")


class TestPage:
    async def test_told_to_log_in(self, browser: Browser, site: TestServer) -> None:
        """An anonymous visitor's page shows that a log-in is needed, and does not reconnect."""
        page = await browser.new_page()
        sockets: list[object] = []
        page.on("websocket", lambda socket: sockets.append(socket))
        await page.clock.install()
        await open_page(page, site)
        await expect(page.locator("#log")).to_have_text("closed with 4401: log in first\n")
        await page.clock.fast_forward(60_000)
        assert len(sockets) == 1

        await log_in(page, "Ada")

    async def test_log_out_closes_all_tabs(self, browser: Browser, site: TestServer) -> None:
        """One log-out closes all tabs of a session with 4401."""
        context = await browser.new_context()
        tabs = [await open_page(await context.new_page(), site) for _ in range(2)]
        for tab in tabs:
            await log_in(tab, "Ada")
        await tabs[0].click("#out")

        for tab in tabs:
            await expect(tab.locator("#log")).to_contain_text("closed with 4401: session ended")

    async def test_another_user(self, browser: Browser, site: TestServer) -> None:
        """Another tab reconnects as the new user when another user logs in."""
        context = await browser.new_context()
        tabs = [await open_page(await context.new_page(), site) for _ in range(2)]
        for tab in tabs:
            await log_in(tab, "Ada")
        await log_in(tabs[0], "Bob")

        await expect(tabs[1].locator("#log")).to_contain_text("closed with 4403")
        await expect(tabs[1].locator("#log")).to_contain_text("hello, Bob")


class TestCalls:
    @pytest.fixture
    async def site(self, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TestServer]:
        """Run the README's program with its calls."""
        module = program()
        monkeypatch.setitem(sys.modules, "app", module)
        app = module.make_app()
        app.add_routes(run(CALLS)["routes"])
        server = Server(app)
        await server.start_server()
        yield server
        await server.close()

    async def test_page(self, browser: Browser, site: TestServer) -> None:
        """The page shows progress, a confirmed purchase, an event, and the end of the session."""
        context = await browser.new_context()
        home = await open_page(await context.new_page(), site)
        await log_in(home, "Ada")
        page = await context.new_page()
        page.on("dialog", lambda dialog: dialog.accept())
        await page.goto(str(site.make_url("/shop")))
        log = page.locator("#log")
        await expect(log).to_contain_text("joined")
        await expect(log).to_contain_text("3\n2\n1\n")
        await expect(log).to_contain_text("tea left: 8")
        await expect(log).to_contain_text("bought: 2")
        await home.click("#out")

        await expect(log).to_contain_text("closed session ended")


class TestAgreement:
    @pytest.fixture
    async def readme(self, browser: Browser, site: TestServer) -> Page:
        """Open the README's page with sockets that a test can close."""
        page = await browser.new_page()
        await page.add_init_script(FAKES)
        return await open_page(page, site)

    @pytest.fixture
    async def demo(self, browser: Browser) -> AsyncIterator[Page]:
        """Open the demo's page."""
        server = Server(make_app())
        await server.start_server()
        yield await open_page(await browser.new_page(), server)
        await server.close()

    async def test_first_close(self, readme: Page, demo: Page) -> None:
        """Both pages stay closed after the same codes, and reconnect soon after the others."""
        waits, others = {}, {}
        for code in CODES:
            await readme.reload()
            (waits[code],) = await readme.evaluate(README_WAITS, [code])
            wait = await demo.evaluate(f"async (code) => ({RULE})(code, 0)", code)
            others[code] = wait and wait / 1000  # seconds

        for found in (waits, others):
            assert (found.pop(4401), found.pop(4429)) == (None, None)
            assert found.pop(4403) <= 1
            assert max(found.values()) <= 0.5

    async def test_back_off(self, readme: Page, demo: Page) -> None:
        """Both pages back off up to half a minute, after 4403 as well."""
        codes = [4403, *[1006, 4403] * 10]
        waits = await readme.evaluate(README_WAITS, codes)
        script = f"async (codes) => Promise.all(codes.map({RULE}))"
        others = [wait / 1000 for wait in await demo.evaluate(script, codes)]  # seconds

        for failures in range(1, len(codes)):
            assert max(waits[failures], others[failures]) <= min(30.0, 0.5 * 2**failures)
        assert max(waits[7:]) > 5
        assert max(others[7:]) >= 15
