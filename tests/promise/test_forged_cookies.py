"""
A forged cookie causes no server error and affects no other session.
"""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
from aiohttp_session import SimpleCookieStorage

from tests.promise.conftest import Serve
from tests.promise.site import DEAD, Site, cookie_from_before, user_of
from tests.support.clock import Wall

ID, LINEAGE = "aiohttp_session_ws_id", "aiohttp_session_ws_id_lineage"
VALUES: dict[str, Any] = {
    "dict": {"a": 1},
    "nested": [[1, [2]]],
    "nan": math.nan,
    "true": True,
    "empty": "",
    "zero": 0,
    "long": "x" * 2000,
    "none": None,
    "list of none": [None],
    "infinite": math.inf,
    "surrogate": "\ud800",
}
LINEAGES: dict[str, Any] = {
    **VALUES,
    "short": ["token", 0],
    "negative": ["token", -1, 0],
    "generation is a text": ["token", "1", 0],
    "generation is true": ["token", True, 0],
    "huge generation": ["token", 2**80, 0],
    "large generation": ["token", 2**52, 0],
    "began never": ["token", 0, math.nan],
    "began before": ["token", 0, -1e300],
    "began in the future": ["token", 0, 1e300],
    "token is a list": [["token"], 0, 0],
    "empty token": ["", 0, 0],
}


async def forged(**data: Any) -> str:
    """Return a forged cookie."""
    return await cookie_from_before(SimpleCookieStorage(), user="eve", **data)


async def serves(site: Site, cookie: str) -> bool:
    """Return whether every kind of request gets a response without a server error."""
    for path in ("/page", "/write?a=1", "/renew", "/new_id", "/delete_id", "/close", "/page"):
        if (await site.replay(cookie, path)).status >= 500:
            return False
    told = await site.knock(cookie)
    if isinstance(told, int) and 500 <= told < 600:
        return False
    for path in ("/everywhere", "/out/helper", "/page"):
        if (await site.replay(cookie, path)).status >= 500:
            return False
    return True


class TestForged:
    @pytest.mark.parametrize("what", VALUES)
    async def test_an_id(self, serve: Serve, what: str) -> None:
        """A forged id of any type causes no server error and affects no other session."""
        site = await serve(identify=user_of)
        browser = await site.logged_in()
        cookie = await forged(**{ID: VALUES[what]})

        assert await serves(site, cookie)
        assert await site.presented(browser.cookie) == ("ann", "ann")

    @pytest.mark.parametrize("what", LINEAGES)
    async def test_a_lineage(self, serve: Serve, what: str) -> None:
        """A forged lineage of any shape causes no server error and affects no other session."""
        site = await serve(identify=user_of)
        browser = await site.logged_in()
        cookie = await forged(**{LINEAGE: LINEAGES[what], ID: "forged"})

        assert await serves(site, cookie)
        assert await site.presented(browser.cookie) == ("ann", "ann")

    @pytest.mark.parametrize("ahead", [4.0, 60.0, 1e9, 1e300])
    async def test_a_beginning_in_the_future(
        self, clock: Wall, serve: Serve, ahead: float
    ) -> None:
        """A session whose beginning is in the future ends with its identity."""
        site = await serve(identify=user_of)
        began = time.time() + ahead
        cookie = await forged(**{LINEAGE: ["token", 0, began], ID: "forged"})
        assert await site.presented(cookie) == ("eve", "eve")
        clock.advance(10)
        await site.registry.end_identity("eve")

        assert await site.presented(cookie) == (None, DEAD)

    async def test_the_end_of_an_older_id(self, serve: Serve) -> None:
        """A session whose beginning is in the future ends with an id from before a renewal."""
        site = await serve(identify=user_of)
        cookie = await forged(**{LINEAGE: ["token", 0, time.time() + 1e9], ID: "forged"})
        browser = await site.browser(cookie)
        await browser.get("/renew")
        await site.registry.end_session("forged")

        assert await site.presented(browser.cookie) == (None, DEAD)

    async def test_of_another_server(self, clock: Wall, serve: Serve) -> None:
        """A session saved by a server whose clock is ahead lives until an order ends it."""
        site = await serve(identify=user_of)
        cookie = await cookie_from_before(SimpleCookieStorage(), user="eve")
        clock.set_back(60)
        assert await site.presented(cookie) == ("eve", "eve")
        await site.registry.end_identity("eve")

        assert await site.presented(cookie) == (None, DEAD)
