"""
The demo's page of calls in a real browser, at the size of a phone and of a desktop.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from aiohttp.test_utils import TestServer
from playwright.async_api import Browser, BrowserContext, Page, expect

from demo.app import make_app
from tests.support.clients import Server

PHONE = {"width": 360, "height": 740}
DESKTOP = {"width": 1280, "height": 800}


@pytest.fixture
async def site() -> AsyncIterator[TestServer]:
    """Run the demo."""
    server = Server(make_app())
    await server.start_server()
    yield server
    await server.close()


ERRORS: list[object] = []  # of all pages of a test


@pytest.fixture(autouse=True)
def _no_errors() -> Iterator[None]:
    """Check that no script of a page raises an uncaught error."""
    ERRORS.clear()
    yield
    assert ERRORS == []


async def visit(context: BrowserContext, site: TestServer, state: str) -> Page:
    """Open the page of calls, and wait until it is in a state."""
    page = await context.new_page()
    page.on("pageerror", lambda error: ERRORS.append(error))
    await page.goto(str(site.make_url("/calls")))
    await page.locator(f"body[data-state={state}]").wait_for()
    return page


async def log_in(browser: Browser, site: TestServer, name: str, width: int = 1280) -> Page:
    """Open the page of calls in a browser of its own, and log in with its form."""
    context = await browser.new_context(viewport={"width": width, "height": 800})
    page = await visit(context, site, "stopped")
    await page.fill("[name=name]", name)
    await page.click("'Log in'")
    await page.locator(f"body[data-state=open][data-user='{name}']").wait_for()
    return page


async def write(page: Page, text: str) -> None:
    """Write on the board."""
    await page.fill("[name=text]", text)
    await page.click("'Write'")


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
async def test_fits(browser: Browser, site: TestServer, size: dict[str, int]) -> None:
    """Nothing is wider than the screen, and every button is at least 44 pixels high."""
    page = await log_in(browser, site, "Ada", size["width"])
    await page.click("'Count down'")
    await page.locator("#cancel").wait_for()
    await page.click("'Pay'")
    await page.locator("#question").wait_for()

    assert await page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    for button in await page.locator("button:visible:not(.quiet)").all():
        box = await button.bounding_box()
        assert box is not None
        assert box["height"] >= 44
    bar = await page.locator("#progress").bounding_box()
    assert bar is not None
    assert bar["width"] > 100


class TestCountdown:
    async def test_moves_and_is_cancelled(self, browser: Browser, site: TestServer) -> None:
        """The bar moves with each partial result; a cancelled countdown can be started again."""
        page = await log_in(browser, site, "Ada")
        await page.click("'Count down'")
        await page.wait_for_function("document.getElementById('progress').value > 0")
        await page.click("'Cancel'")

        await expect(page.locator("#left")).to_contain_text("Cancelled with")
        await expect(page.locator("#cancel")).to_be_hidden()
        await expect(page.locator("#start")).to_be_enabled()

    async def test_ends(self, browser: Browser, site: TestServer) -> None:
        """A countdown that is not cancelled fills the bar."""
        page = await log_in(browser, site, "Ada")
        await page.click("'Count down'")

        await expect(page.locator("#left")).to_have_text("Done.")
        assert await page.evaluate("document.getElementById('progress').value") == 1


class TestBoard:
    async def test_is_shared(self, browser: Browser, site: TestServer) -> None:
        """A note appears in all tabs of all users."""
        ada = await log_in(browser, site, "Ada")
        pages = [ada, await visit(ada.context, site, "open"), await log_in(browser, site, "Bob")]
        await write(ada, "hello")
        await write(pages[2], "welcome")

        for page in pages:
            await expect(page.locator("li[data-kind=note]")).to_have_count(2)
            await expect(page.locator("li[data-kind=note]").first).to_contain_text("Bob: welcome")
            await expect(page.locator("li[data-kind=note]").last).to_contain_text("Ada: hello")


class TestQuestion:
    @pytest.mark.parametrize(
        ("button", "kind", "text"),
        [
            ("Allow", "paid", "Ada has paid 7 €."),
            ("Decline", "error", "You have declined."),
        ],
    )
    async def test_goes_on_with_the_answer(
        self, browser: Browser, site: TestServer, button: str, kind: str, text: str
    ) -> None:
        """Only the tab that pays is asked, and the server continues with its answer."""
        page = await log_in(browser, site, "Ada")
        other = await visit(page.context, site, "open")
        await page.fill("[name=amount]", "7")
        await page.click("'Pay'")
        await expect(page.locator("#asked")).to_have_text("Pay 7 €?")
        await expect(other.locator("#question")).to_be_hidden()
        await page.click(f"'{button}'")

        await expect(page.locator(f"li[data-kind={kind}]")).to_contain_text(text)
        await expect(page.locator("#question")).to_be_hidden()

    async def test_takes_the_place_of_another(self, browser: Browser, site: TestServer) -> None:
        """A new question declines the one before it."""
        page = await log_in(browser, site, "Ada")
        for amount in ("7", "8"):
            await page.fill("[name=amount]", amount)
            await page.click("'Pay'")
            await expect(page.locator("#asked")).to_have_text(f"Pay {amount} €?")
        await expect(page.locator("li[data-kind=error]")).to_contain_text("You have declined.")
        await page.click("'Allow'")

        await expect(page.locator("li[data-kind=paid]")).to_contain_text("Ada has paid 8 €.")
        await expect(page.locator("#question")).to_be_hidden()


class TestLogOut:
    async def test_ends_all_of_it(self, browser: Browser, site: TestServer) -> None:
        """A log-out ends the calls, subscriptions and questions of all tabs."""
        page = await log_in(browser, site, "Ada")
        other = await visit(page.context, site, "open")
        bob = await log_in(browser, site, "Bob")
        await other.click("'Count down'")
        await other.wait_for_function("document.getElementById('progress').value > 0")
        await other.click("'Pay'")
        await other.locator("#question").wait_for()
        await page.click("'Log out'")

        for tab in (page, other):
            await tab.locator("body[data-state=stopped][data-user='']").wait_for()
            ended = tab.locator("li[data-code='4401']", has_text="session ended")
            await expect(ended).to_have_count(1)
            await expect(tab.locator("#status")).to_contain_text("session ended")
            await expect(tab.locator("#start")).to_be_disabled()
        await expect(other.locator("#left")).to_contain_text("Ended (session ended)")
        await expect(other.locator("#question")).to_be_hidden()
        await expect(other.locator("li[data-kind=error]")).to_contain_text("session ended")
        await write(bob, "anybody?")
        await expect(bob.locator("li[data-kind=note]")).to_have_count(1)
        await expect(other.locator("li[data-kind=note]")).to_have_count(0)

    async def test_logs_in_again(self, browser: Browser, site: TestServer) -> None:
        """After a log-in the page has its subscription and its procedure again."""
        page = await log_in(browser, site, "Ada")
        await page.click("'Log out'")
        await page.locator("body[data-state=stopped]").wait_for()
        await page.fill("[name=name]", "Eve")
        await page.click("'Log in'")
        await page.locator("body[data-state=open][data-user='Eve']").wait_for()
        await write(page, "again")
        await page.click("'Pay'")
        await page.click("'Allow'")

        await expect(page.locator("li[data-kind=note]")).to_contain_text("Eve: again")
        await expect(page.locator("li[data-kind=paid]")).to_contain_text("Eve has paid")
