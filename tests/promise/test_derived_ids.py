"""
Ids that an application derives: a user's id is shared by all of the user's browsers.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from collections.abc import Hashable
from typing import Any

import aiohttp_session
import pytest
from aiohttp import web
from aiohttp_session import AbstractStorage

from aiohttp_session_ws import REGISTRY_KEY, SessionWSRegistry, renew_session_ws
from tests.promise.conftest import Serve
from tests.promise.site import AGAIN, DEAD, OUT, Site, user_of
from tests.support import QUICK


class OfUser(SessionWSRegistry):
    """A registry that derives the id and stores it nowhere, as documented for 1.1.1."""

    async def get_id(self, request: web.Request) -> Hashable | None:
        """Return the user."""
        user: str | None = (await aiohttp_session.get_session(request)).get("user")
        return user

    async def set_id(self, request: web.Request, session_ws_id: Hashable) -> None:
        """Do nothing: the id is derived."""

    async def delete_id(self, request: web.Request) -> None:
        """Do nothing: there is nothing to delete."""


class OfUserNewId(OfUser):
    """A registry written for 1.1.1, which had no ``set_id``."""

    async def new_id(self, request: web.Request) -> None:
        """Do nothing: the id is derived."""


def by_factory(user: str = "ann") -> SessionWSRegistry:
    """Return a registry whose factory gives all sessions of a user the same id."""

    async def factory(request: web.Request) -> str:
        session = await aiohttp_session.get_session(request)
        return f"id of {session.get('user')}"

    return SessionWSRegistry(id_factory=factory, timeouts=QUICK)


async def log_in_during_an_end(request: web.Request) -> web.Response:
    """Log in while an administrator ends the id that the log-in gives."""
    (await aiohttp_session.get_session(request))["user"] = "ann"
    ending = request.app[REGISTRY_KEY].end_session("id of ann")
    await asyncio.create_task(ending, context=contextvars.Context())  # not by this request
    response = web.Response()
    await renew_session_ws(request, response)
    return response


@pytest.fixture(params=[OfUser, OfUserNewId])
def registry(request: pytest.FixtureRequest) -> SessionWSRegistry:
    """A registry that uses the user as the id."""
    made: SessionWSRegistry = request.param(timeouts=QUICK)
    return made


async def two(site: Site, **options: Any) -> Any:
    """Open two browsers of ann."""
    return await site.logged_in("/login"), await site.logged_in("/login")


@pytest.mark.parametrize("out", OUT)
class TestLogOut:
    async def test_sockets(
        self, serve: Serve, storage: AbstractStorage, registry: SessionWSRegistry, out: str
    ) -> None:
        """A log-out closes all sockets under the shared id; the other browser reconnects."""
        site = await serve(storage, registry=registry)
        one, other = await two(site)
        mine, theirs = await one.open(), await other.open()
        await one.get(out)

        assert await mine.code() in (DEAD, AGAIN)
        assert await theirs.code() == AGAIN
        assert (await other.open()).user == "ann"

    async def test_nobody_is_locked_out(
        self, serve: Serve, storage: AbstractStorage, registry: SessionWSRegistry, out: str
    ) -> None:
        """After a log-out the other browser stays logged in, and the first may log in again."""
        site = await serve(storage, registry=registry)
        one, other = await two(site)
        await one.get(out)
        assert await site.presented(other.cookie) == ("ann", "ann")

        await one.get("/login")
        assert await site.presented(one.cookie) == ("ann", "ann")
        assert await site.presented(other.cookie) == ("ann", "ann")

    async def test_the_cookie_of_before(
        self, serve: Serve, cookies: AbstractStorage, registry: SessionWSRegistry, out: str
    ) -> None:
        """A session that was logged out stays ended, though its id is still in use."""
        site = await serve(cookies, registry=registry)
        one, _ = await two(site)
        stale = one.cookie
        await one.get(out)

        assert "ann" not in await site.presented(stale)


class TestOrders:
    async def test_end_session(
        self, serve: Serve, storage: AbstractStorage, registry: SessionWSRegistry
    ) -> None:
        """An end of the id ends every earlier session under it, and no later one."""
        site = await serve(storage, registry=registry)
        one, other = await two(site)
        socket = await one.open()
        await site.registry.end_session("ann")

        assert await socket.code() == DEAD
        assert "ann" not in await site.presented(one.cookie)
        assert "ann" not in await site.presented(other.cookie)
        await one.get("/login")
        assert await site.presented(one.cookie) == ("ann", "ann")

    async def test_another_user(
        self, serve: Serve, storage: AbstractStorage, registry: SessionWSRegistry
    ) -> None:
        """A change of user closes the sockets, which reconnect as the other user."""
        site = await serve(storage, registry=registry)
        browser = await site.logged_in("/login")
        socket = await browser.open()
        await browser.get("/login?user=bob")

        assert await socket.code() in (DEAD, AGAIN)
        assert (await browser.open()).user == "bob"

    async def test_with_identify(self, serve: Serve, storage: AbstractStorage) -> None:
        """A log-out everywhere ends all sessions; a later log-in lives."""
        site = await serve(storage, registry=OfUser(timeouts=QUICK, identify=user_of))
        one, other = await two(site)
        sockets = [await one.open(), await other.open()]
        await one.get("/everywhere")

        assert [await socket.code() for socket in sockets] == [DEAD, DEAD]
        assert "ann" not in await site.presented(other.cookie)
        await one.get("/login")
        assert await site.presented(one.cookie) == ("ann", "ann")


class OutsideOfTheSession(SessionWSRegistry):
    """A registry that stores ids in a table of its own, by user."""

    def __init__(self) -> None:
        super().__init__(timeouts=QUICK)
        self.table: dict[str, Hashable] = {}

    async def get_id(self, request: web.Request) -> Hashable | None:
        """Read the id from the table."""
        user: str | None = (await aiohttp_session.get_session(request)).get("user")
        return None if user is None else self.table.get(user)

    async def set_id(self, request: web.Request, session_ws_id: Hashable) -> None:
        """Write the id into the table."""
        user: str | None = (await aiohttp_session.get_session(request)).get("user")
        if user is not None:
            self.table[user] = session_ws_id

    async def delete_id(self, request: web.Request) -> None:
        """Delete the id from the table."""
        self.table.pop((await aiohttp_session.get_session(request))["user"], None)


class TestOutsideOfTheSession:
    @pytest.mark.parametrize("path", ["/delete_id", "/new_id"])
    async def test_another_id(self, serve: Serve, cookies: AbstractStorage, path: str) -> None:
        """A deleted or new id closes the sockets, though the session itself is unchanged."""
        site = await serve(cookies, registry=OutsideOfTheSession())
        browser = await site.logged_in("/login")
        await browser.get()
        stale, socket = browser.cookie, await browser.open()
        await browser.get(path)

        assert await socket.code() == AGAIN
        assert await site.knock(stale) == AGAIN
        assert (await browser.open()).user == "ann"

    @pytest.mark.parametrize("path", ["/page", "/close"])
    async def test_another_request_changes_it(
        self, serve: Serve, storage: AbstractStorage, path: str
    ) -> None:
        """An id changed by a concurrent request is not attributed to this request."""
        site = await serve(storage, registry=OutsideOfTheSession())
        browser = await site.logged_in("/login")
        await browser.get()
        async with site.held(await site.browser(browser.cookie), path):
            await browser.get("/new_id")

        assert await site.presented(browser.cookie) == ("ann", "ann")

    async def test_the_same_id(self, serve: Serve, storage: AbstractStorage) -> None:
        """A request that leaves the id unchanged saves nothing and closes no socket."""
        site = await serve(storage, registry=OutsideOfTheSession())
        browser = await site.logged_in("/login")
        socket = await browser.open()
        answer = await browser.get()

        assert not answer.saved
        assert await socket.lives()


class TestFactory:
    @pytest.mark.parametrize("out", OUT)
    async def test_log_out(self, serve: Serve, storage: AbstractStorage, out: str) -> None:
        """A log-out under an id shared by a factory leaves the other sessions logged in."""
        site = await serve(storage, registry=by_factory())
        one, other = await site.browser(), await site.browser()
        for browser in (one, other):
            await browser.get("/login/new")
        stale = one.cookie
        mine, theirs = await one.open(), await other.open()
        assert mine.id == theirs.id
        await one.get(out)

        assert await theirs.code() == AGAIN
        assert await site.presented(other.cookie) == ("ann", "ann")
        assert "ann" not in await site.presented(stale)
        await one.get("/login/new")
        assert await site.presented(one.cookie) == ("ann", "ann")

    async def test_log_in_after_an_end(self, serve: Serve, storage: AbstractStorage) -> None:
        """A visitor from before the end of an id may be given that id by a log-in."""
        site = await serve(storage, registry=by_factory())
        visitor, other = await site.browser(), await site.browser()
        await visitor.get()
        await other.get("/login/renew")
        stale = other.cookie
        await site.registry.end_session("id of ann")
        await visitor.get("/login/renew")

        assert await site.presented(visitor.cookie) == ("ann", "ann")
        assert "ann" not in await site.presented(stale)

    async def test_end_during_a_log_in(self, serve: Serve, storage: AbstractStorage) -> None:
        """A log-in under way when its id is ended is ended, too."""
        site = await serve(storage, registry=by_factory(), views={"/during": log_in_during_an_end})
        visitor = await site.browser()
        await visitor.get()
        await visitor.get("/during")

        assert "ann" not in await site.presented(visitor.cookie)


class TestTuples:
    async def test_are_ids(self, serve: Serve, storage: AbstractStorage) -> None:
        """Tuples from a factory work as ids, though a storage turns them into lists."""
        count = itertools.count()
        site = await serve(storage, id_factory=lambda request: ("tenant", next(count)))
        browser = await site.logged_in()
        socket = await browser.open()
        await browser.get("/write?cart=1")
        assert await socket.lives()

        for path, code in (("/renew", AGAIN), ("/new_id", AGAIN), ("/out/helper", DEAD)):
            stale, socket = browser.cookie, await browser.open()
            await browser.get(path)
            assert await socket.code() == code
        assert "ann" not in await site.presented(stale)

    async def test_can_be_ended(self, serve: Serve, storage: AbstractStorage) -> None:
        """An order by a tuple ends the session with that id."""
        site = await serve(storage, id_factory=lambda request: ("tenant", ("a", 1)))
        browser = await site.logged_in("/login")
        socket = await browser.open()
        await site.registry.end_session(("tenant", ("a", 1)))

        assert await socket.code() == DEAD
        assert "ann" not in await site.presented(browser.cookie)
