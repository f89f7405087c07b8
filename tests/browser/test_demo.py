"""
The demo in a real browser: cookies shared by tabs, close codes that a script sees.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from aiohttp_session import SimpleCookieStorage, session_middleware
from playwright.async_api import Browser, BrowserContext, Page, expect
from pytest_aiohttp.plugin import AiohttpServer

from aiohttp_session_ws import (
    REGISTRY_KEY,
    SessionWSRegistry,
    get_session_ws_id,
    session_ws,
    session_ws_middleware,
    setup,
)
from aiohttp_session_ws.signals import FailDetails
from demo.app import make_app
from tests.support.clients import Server
from tests.support.inspect import inspect

Outcome: TypeAlias = dict[str, Any]

# Opens a websocket, and returns its messages, its close and its subprotocol.
TRY_WEBSOCKET = """
([url, protocols]) => new Promise((resolve) => {
  const messages = [];
  const ws = new WebSocket(url, protocols);
  ws.onmessage = (event) => messages.push(event.data);
  ws.onclose = ({ code, reason }) =>
    resolve({ code, reason, messages, protocol: ws.protocol });
})
"""


@pytest.fixture
async def site() -> AsyncIterator[TestServer]:
    """Run the demo."""
    server = Server(make_app())
    await server.start_server()
    yield server
    await server.close()


@pytest.fixture
def later(site: TestServer) -> Callable[[float], None]:
    """Return a function that advances the registry's wall clock by some seconds."""
    passed = [0.0]
    clock = inspect(registry_of(site)).clock
    clock.wall = lambda: time.time() + passed[0]
    return lambda seconds: passed.append(passed.pop() + seconds)


def registry_of(site: TestServer) -> SessionWSRegistry:
    """Return the registry behind a site."""
    assert site.app is not None
    return site.app[REGISTRY_KEY]


async def open_tab(context: BrowserContext, site: TestServer) -> Page:
    """Open the demo's page and wait until its socket is open."""
    page = await context.new_page()
    await page.goto(str(site.make_url("/")))
    await page.locator("body[data-state=open]").wait_for()
    return page


async def open_tabs(browser: Browser, site: TestServer) -> list[Page]:
    """Open two tabs of one visitor."""
    context = await browser.new_context()
    return [await open_tab(context, site) for _ in range(2)]


async def open_tabs_as(name: str, browser: Browser, site: TestServer) -> list[Page]:
    """Open two tabs of one visitor who has logged in."""
    tabs = await open_tabs(browser, site)
    await log_in(tabs[0], name)
    await back_as(tabs[1], name)
    return tabs


async def session_of(page: Page) -> str:
    """Return the short id that a page shows."""
    return await page.locator("#id").inner_text()


async def log_in(page: Page, name: str) -> None:
    """Log in with the page's form, and wait until the page has reconnected as the user."""
    await page.fill("[name=name]", name)
    await page.click("text=Log in")
    await back_as(page, name)


async def back_as(page: Page, user: str) -> None:
    """Wait until a page is connected as a user."""
    await page.locator(f"body[data-state=open][data-user='{user}']").wait_for()


async def hear_each_other(tabs: list[Page]) -> None:
    """Send a message from one tab, and wait until all have received it."""
    await tabs[0].fill("[name=text]", "still here")
    await tabs[0].click("'Send'")
    for tab in tabs:
        await tab.locator("li[data-kind=said]").wait_for()


async def closed_with(page: Page, code: int) -> None:
    """Wait until a page has logged a close code."""
    await page.locator(f"li[data-code='{code}']").first.wait_for()


async def try_websocket(page: Page, site: TestServer, *protocols: str) -> Outcome:
    """Open a websocket from the script of a page; return how it ended."""
    url = str(site.make_url("/ws")).replace("http", "ws", 1)
    outcome: Outcome = await page.evaluate(TRY_WEBSOCKET, [url, list(protocols)])
    return outcome


class TestTabs:
    async def test_log_out_ends_all_tabs(self, browser: Browser, site: TestServer) -> None:
        """A log-out closes every tab of the session with 4401, and no one else's."""
        tabs = await open_tabs_as("Ada", browser, site)
        stranger = await open_tab(await browser.new_context(), site)
        await tabs[0].click("'Log out'")
        for tab in tabs:
            await closed_with(tab, 4401)
            await back_as(tab, "")

        await hear_each_other([stranger])
        await expect(stranger.locator("li[data-kind=close]")).to_have_count(0)

    async def test_reset_brings_tabs_back(self, browser: Browser, site: TestServer) -> None:
        """A reset closes every tab with 4403, and all reconnect with the same new id."""
        tabs = await open_tabs(browser, site)
        before = await session_of(tabs[0])
        await tabs[1].click("text=Reset")
        for tab in tabs:
            await closed_with(tab, 4403)
            await tab.locator("body[data-state=open][data-sockets='2']").wait_for()
        after = [await session_of(tab) for tab in tabs]

        assert after[0] == after[1] != before

    async def test_log_in_brings_tabs_back(self, browser: Browser, site: TestServer) -> None:
        """A log-in closes every tab with 4403, and all reconnect as the user."""
        tabs = await open_tabs(browser, site)
        await log_in(tabs[0], "Ada")
        await back_as(tabs[1], "Ada")

        for tab in tabs:
            await expect(tab.locator("li[data-code='4403']")).to_have_count(1)
            await expect(tab.locator("#user")).to_have_text("Ada")
            await expect(tab.locator("#sockets")).to_have_text("2")

    async def test_server_that_is_away(
        self, browser: Browser, site: TestServer, aiohttp_server: AiohttpServer
    ) -> None:
        """A page reconnects by itself, with a back-off of half a minute at most."""
        context = await browser.new_context()
        await context.clock.install(time=0)  # no test waits for minutes
        page = await open_tab(context, site)
        await context.clock.pause_at(3600)  # only what the test passes, however slow it is
        closes = page.locator("li[data-kind=close]")
        port = site.port
        await site.close()
        waits: list[float] = []
        for failures in range(8):
            await expect(closes).to_have_count(failures + 1)
            found = re.search(r"trying again in ([\d.]+)", await closes.first.inner_text())
            assert found is not None
            waits.append(float(found[1]))
            if failures == 7:
                await aiohttp_server(make_app(), port=port)
            await context.clock.fast_forward(30_000)
        await page.locator("body[data-state=open]").wait_for()

        assert waits[:6] == sorted(waits[:6])
        assert waits[0] <= 0.5
        assert 15 <= max(waits) <= 30
        assert await closes.last.get_attribute("data-code") == "1001"


class TestChat:
    async def test_talk_and_log_out(self, browser: Browser, site: TestServer) -> None:
        """Two users chat; a log-out closes the user's page, which shows the reason."""
        pages = []
        for name in ("Ada", "Bob"):
            context = await browser.new_context()
            await log_in(await open_tab(context, site), name)
            page = await context.new_page()
            await page.goto(str(site.make_url("/chat")))
            await page.locator("body[data-state=open]").wait_for()
            pages.append(page)
        ada, bob = pages
        await ada.fill("[name=text]", "hello")
        await ada.click("'Send'")
        for page in pages:
            await expect(page.locator("li[data-kind=says]")).to_contain_text("Ada: hello")
        await bob.context.pages[0].click("'Log out'")

        await expect(bob.locator("#status")).to_contain_text("session ended")
        await expect(ada.locator("li[data-kind=gone]")).to_contain_text("Bob")


class TestLogOutEverywhere:
    async def test_ends_tabs_of_all_browsers(
        self, browser: Browser, site: TestServer, later: Callable[[float], None]
    ) -> None:
        """A log-out everywhere closes the user's tabs in all browsers, and no one else's."""
        here, there, strangers = [
            await open_tabs_as(name, browser, site) for name in ("Ada", "Ada", "Bob")
        ]
        await expect(here[0].locator("#everywhere")).to_have_text("4 in 2 sessions")
        await here[0].click("'Log out everywhere'")
        for tab in here + there:
            await closed_with(tab, 4401)
            await expect(tab.locator("#user")).to_have_text("Nobody")
        later(60.0)
        for tab in here + there:
            await back_as(tab, "")

        await hear_each_other(strangers)
        for tab in strangers:
            await expect(tab.locator("#user")).to_have_text("Bob")
            await expect(tab.locator("li[data-code='4401']")).to_have_count(0)

    async def test_ends_browser_without_tab(
        self, browser: Browser, site: TestServer, later: Callable[[float], None]
    ) -> None:
        """A log-out everywhere also logs out a browser that has no tab open."""
        here, there = [await open_tabs_as("Ada", browser, site) for _ in range(2)]
        for tab in there:
            await tab.close()
        await expect(here[0].locator("#everywhere")).to_have_text("2 in 1 session")
        await here[0].click("'Log out everywhere'")
        await closed_with(here[0], 4401)
        later(60.0)
        back = await open_tab(there[0].context, site)

        await expect(back.locator("#user")).to_have_text("Nobody")
        await expect(back.locator("li[data-kind=close]")).to_have_count(0)

    async def test_log_in_again(
        self, browser: Browser, site: TestServer, later: Callable[[float], None]
    ) -> None:
        """A log-in after many refusals reconnects the page at once."""
        here, there = [await open_tabs_as("Ada", browser, site) for _ in range(2)]
        await here[0].click("'Log out everywhere'")
        await there[0].locator("li[data-code='4401']").nth(1).wait_for()
        later(60.0)
        await back_as(there[0], "")
        await log_in(there[0], "Ada")

        close = there[0].locator("li[data-code='4403']").first
        await expect(close).to_contain_text("reconnecting")

    async def test_log_out_stays_here(self, browser: Browser, site: TestServer) -> None:
        """A plain log-out ends one session, and not that of the user's other browser."""
        here, there = [await open_tabs_as("Ada", browser, site) for _ in range(2)]
        await here[0].click("'Log out'")
        for tab in here:
            await closed_with(tab, 4401)

        back = await open_tab(there[0].context, site)
        await expect(back.locator("#user")).to_have_text("Ada")
        for tab in [*there, back]:
            await expect(tab.locator("#sockets")).to_have_text("3")
            await expect(tab.locator("#everywhere")).to_have_text("3 in 1 session")


class TestStaleCookie:
    @pytest.fixture
    async def thief(
        self, browser: Browser, site: TestServer, later: Callable[[float], None]
    ) -> BrowserContext:
        """Return a context with the cookie of a session that has just ended."""
        page = await open_tab(await browser.new_context(), site)
        await log_in(page, "Ada")
        stolen = await page.context.cookies()
        await page.click("'Log out'")
        await closed_with(page, 4401)
        thief = await browser.new_context()
        await thief.add_cookies([{**cookie} for cookie in stolen])  # type: ignore[typeddict-item]
        return thief

    async def test_opens_nothing(self, thief: BrowserContext, site: TestServer) -> None:
        """A socket with a stale cookie is closed with 4401 before it receives a message."""
        page = await thief.new_page()
        await page.goto(str(site.make_url("/static/demo.css")))
        outcome = await try_websocket(page, site)

        assert (outcome["code"], outcome["reason"]) == (4401, "session ended")
        assert outcome["messages"] == []

    async def test_page_sees_nothing(
        self, thief: BrowserContext, site: TestServer, later: Callable[[float], None]
    ) -> None:
        """A page with a stale cookie is refused repeatedly, and then connects without a user."""
        page = await thief.new_page()
        await page.goto(str(site.make_url("/")))
        await page.locator("li[data-code='4401']").nth(1).wait_for()

        await expect(page.locator("li[data-kind=open]")).to_have_count(0)
        await expect(page.locator("#user")).to_have_text("Nobody")

        later(60.0)
        await page.click("text=Connect now")
        await back_as(page, "")


class TestSubprotocol:
    @pytest.fixture
    async def chat(self, aiohttp_server: AiohttpServer) -> TestServer:
        """Serve a page that shows its id, and a socket with a subprotocol."""

        async def tell_id(request: web.Request) -> web.Response:
            return web.Response(text=str(await get_session_ws_id(request)))

        async def chat(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request, protocols=["chat"]) as ws:
                await ws.send_str("hello")
            return ws

        storage = SimpleCookieStorage()
        app = web.Application(middlewares=[session_middleware(storage), session_ws_middleware])
        setup(app)
        app.add_routes([web.get("/", tell_id), web.get("/ws", chat)])
        return await aiohttp_server(app)

    async def test_agreed(self, browser: Browser, chat: TestServer) -> None:
        """The socket of a live session uses the requested subprotocol."""
        page = await browser.new_page()
        await page.goto(str(chat.make_url("/")))
        outcome = await try_websocket(page, chat, "chat")

        assert outcome["messages"] == ["hello"]
        assert (outcome["code"], outcome["protocol"]) == (1000, "chat")

    async def test_refused_with_code(self, browser: Browser, chat: TestServer) -> None:
        """A page that requests a subprotocol sees 4401, too, not just a failed handshake."""
        page = await browser.new_page()
        await page.goto(str(chat.make_url("/")))
        await registry_of(chat).end_session(await page.inner_text("body"))
        outcome = await try_websocket(page, chat, "chat", "other")

        assert (outcome["code"], outcome["messages"]) == (4401, [])


class TestForeignPage:
    async def test_opens_nothing(
        self, browser: Browser, site: TestServer, aiohttp_server: AiohttpServer
    ) -> None:
        """The page of another origin gets no socket, though the visitor's cookie is sent."""
        failures: list[BaseException] = []

        async def note(details: FailDetails) -> None:
            failures.append(details.exception)

        registry_of(site).on_fail.append(note)
        foreign = await aiohttp_server(web.Application())
        page = await browser.new_page()
        await page.goto(str(site.make_url("/state")))
        await page.goto(str(foreign.make_url("/")))
        outcome = await try_websocket(page, site)

        assert (outcome["code"], outcome["messages"]) == (1006, [])
        (failure,) = failures
        assert isinstance(failure, web.HTTPForbidden)
        assert len(registry_of(site)) == 0
