from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import aiohttp_session
import pytest
from aiohttp import WSMsgType, WSServerHandshakeError, web
from aiohttp.typedefs import Handler

from aiohttp_session_ws import (
    DEFAULT_ID_FACTORY,
    DEFAULT_SESSION_KEY,
    NotSetUp,
    SessionWSRegistry,
    delete_session_ws_id,
    end_session_ws,
    ensure_session_ws_id,
    get_session_ws_id,
    new_session_ws_id,
    schedule_close_all_session_ws,
    session_ws,
    session_ws_middleware,
    setup,
)
from aiohttp_session_ws.exceptions import IdFactoryFailed, InvalidSessionWSId
from aiohttp_session_ws.typing import IdFactory
from tests.support import PATIENCE, AiohttpClient, Client
from tests.support.inspect import opening


@dataclass(frozen=True)
class Id:
    """An id that JSON can't represent."""

    number: int


class MemoryStorage(aiohttp_session.AbstractStorage):
    """Keeps sessions as Python objects, which may hold any value."""

    def __init__(self) -> None:
        super().__init__()
        self.sessions: dict[str, dict[str, Any]] = {}

    async def load_session(self, request: web.Request) -> aiohttp_session.Session:
        """Return the session whose key is in the cookie."""
        key = self.load_cookie(request)
        if key is None or key not in self.sessions:
            return aiohttp_session.Session(None, data=None, new=True)
        data: Any = {"session": self.sessions[key], "created": 0}
        return aiohttp_session.Session(key, data=data, new=False)

    async def save_session(
        self, request: web.Request, response: web.StreamResponse, session: aiohttp_session.Session
    ) -> None:
        """Keep a copy of the session."""
        key = session.identity or uuid.uuid4().hex
        self.sessions[key] = dict(session)
        self.save_cookie(response, key)


async def whoami(request: web.Request) -> web.Response:
    """Return the id."""
    return web.Response(text=repr(await get_session_ws_id(request)))


async def renew(request: web.Request) -> web.Response:
    """Replace the id; return the new one."""
    await new_session_ws_id(request)
    return web.Response(text=repr(await get_session_ws_id(request)))


async def delete(request: web.Request) -> web.Response:
    """Delete the id; return the result of a look-up after that."""
    await delete_session_ws_id(request)
    return web.Response(text=repr(await get_session_ws_id(request)))


async def end(request: web.Request) -> web.Response:
    """Log out."""
    response = web.Response()
    await end_session_ws(request, response)
    return response


async def log_out(request: web.Request) -> web.Response:
    """Log out by the pattern in the README of 1.1.1."""
    response = web.Response()
    await schedule_close_all_session_ws(request, response)
    await aiohttp_session.new_session(request)
    await new_session_ws_id(request)
    return response


async def echo(request: web.Request) -> web.WebSocketResponse:
    """Echo messages."""
    async with session_ws(request) as ws:
        async for message in ws:
            await ws.send_str(message.data)
    return ws


def make_app(
    registry: SessionWSRegistry | None = None,
    storage: aiohttp_session.AbstractStorage | None = None,
    middlewares: list[Any] | None = None,
) -> web.Application:
    """Return an app with the handlers above."""
    if middlewares is None:
        storage = storage or aiohttp_session.SimpleCookieStorage()
        middlewares = [aiohttp_session.session_middleware(storage), session_ws_middleware]
    app = web.Application(middlewares=middlewares)
    setup(app, registry)
    for handler in (whoami, renew, delete, end, log_out, echo):
        app.router.add_get(f"/{handler.__name__}", handler)
    return app


async def fetch(client: Client, path: str, **options: Any) -> str:
    """Return the text of a response, which must have status 200."""
    async with client.get(path, **options) as response:
        assert response.status == 200
        return await response.text()


async def expect_close(ws: Any, code: int) -> None:
    """Check that the next message is a close with *code*."""
    message = await ws.receive(timeout=PATIENCE)
    assert message.type is WSMsgType.CLOSE
    assert message.data == code


class TestIdFactory:
    async def test_default(self, aiohttp_client: AiohttpClient) -> None:
        """An id is a random UUID4 in hex, the same for the whole session."""
        client = await aiohttp_client(make_app())
        session_ws_id = (await fetch(client, "/whoami")).strip("'")

        assert uuid.UUID(session_ws_id).version == 4
        assert uuid.UUID(session_ws_id).hex == session_ws_id
        assert (await fetch(client, "/whoami")).strip("'") == session_ws_id

    async def test_default_is_random(self, aiohttp_client: AiohttpClient) -> None:
        """Every session has an id of its own."""
        one, other = await aiohttp_client(make_app()), await aiohttp_client(make_app())

        assert SessionWSRegistry().id_factory is DEFAULT_ID_FACTORY
        assert await fetch(one, "/whoami") != await fetch(other, "/whoami")

    @pytest.mark.parametrize("session_ws_id", ["anna", 7, (7, "anna"), Id(7)])
    async def test_any_hashable(
        self, aiohttp_client: AiohttpClient, session_ws_id: Hashable
    ) -> None:
        """An id factory may return any hashable object."""
        registry = SessionWSRegistry(id_factory=lambda request: session_ws_id)
        client = await aiohttp_client(make_app(registry, MemoryStorage()))

        assert await fetch(client, "/whoami") == repr(session_ws_id)
        async with client.ws_connect("/echo") as ws:
            assert list(registry) == [session_ws_id]
            await registry.end_session(session_ws_id)
            await expect_close(ws, 4401)

    async def test_tuple_in_a_cookie(self, aiohttp_client: AiohttpClient) -> None:
        """A tuple remains a tuple as an id, though the storage's JSON turns it into a list."""
        registry = SessionWSRegistry(id_factory=lambda request: (7, "anna"))
        client = await aiohttp_client(make_app(registry))

        assert await fetch(client, "/whoami") == repr((7, "anna"))
        assert await fetch(client, "/whoami") == repr((7, "anna"))
        async with client.ws_connect("/echo"):
            assert list(registry) == [(7, "anna")]

    async def test_is_given_the_request(self, aiohttp_client: AiohttpClient) -> None:
        """An id factory is called with the request."""
        registry = SessionWSRegistry(id_factory=lambda request: request.headers["X-Id"])
        client = await aiohttp_client(make_app(registry))

        assert await fetch(client, "/whoami", headers={"X-Id": "anna"}) == "'anna'"

    async def test_async(self, aiohttp_client: AiohttpClient) -> None:
        """An id factory may be async."""

        async def id_factory(request: web.Request) -> Hashable:
            return request.path

        client = await aiohttp_client(make_app(SessionWSRegistry(id_factory=id_factory)))

        assert await fetch(client, "/whoami") == "'/whoami'"

    async def test_session_key(self, aiohttp_client: AiohttpClient) -> None:
        """A session holds its id under the chosen key, and its lineage beside the id."""
        for registry, key in [
            (SessionWSRegistry(), DEFAULT_SESSION_KEY),
            (SessionWSRegistry(session_key="mine"), "mine"),
        ]:
            storage = MemoryStorage()
            client = await aiohttp_client(make_app(registry, storage))
            session_ws_id = (await fetch(client, "/whoami")).strip("'")

            (session,) = storage.sessions.values()
            token, generation, began = session.pop(f"{key}_lineage")
            assert token != session_ws_id
            assert generation == 0
            assert began == pytest.approx(time.time(), abs=60)
            assert session == {key: session_ws_id}
        assert DEFAULT_SESSION_KEY == "aiohttp_session_ws_id"


async def test_fails_for_a_new_session(aiohttp_client: AiohttpClient) -> None:
    """An id factory that fails after the handler doesn't prevent sockets from being closed."""
    ids = ["first"]
    registry = SessionWSRegistry(id_factory=lambda request: ids.pop())

    async def enter(request: web.Request) -> web.Response:
        (await aiohttp_session.new_session(request))["user"] = "bob"
        return web.Response()

    app = make_app(registry)
    app.router.add_get("/enter", enter)
    client = await aiohttp_client(app)
    await fetch(client, "/whoami")
    async with client.ws_connect("/echo") as ws:
        await client.get("/enter")

        await expect_close(ws, 4401)


def fail(request: web.Request) -> Hashable:
    """Raise instead of making an id."""
    raise LookupError("out of ids")


async def fail_later(request: web.Request) -> Hashable:
    """Raise instead of making an id, async."""
    raise LookupError("out of ids")


class TestBadIdFactory:
    @pytest.mark.parametrize("id_factory", [fail, fail_later])
    async def test_raises(
        self,
        aiohttp_client: AiohttpClient,
        id_factory: IdFactory,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A request whose id factory fails gets 500 and no session; the log names the factory."""
        registry = SessionWSRegistry(id_factory=id_factory)
        storage = MemoryStorage()
        client = await aiohttp_client(make_app(registry, storage))
        async with client.get("/whoami") as response:
            text = await response.text()

        assert response.status == 500
        assert "out of ids" not in text
        assert not storage.sessions
        assert id_factory.__name__ in caplog.text

    @pytest.mark.parametrize("id_factory", [fail, fail_later, lambda request: None])
    async def test_handshake(self, aiohttp_client: AiohttpClient, id_factory: IdFactory) -> None:
        """A handshake that can't get an id gets 500, and no session or connection is kept."""
        registry = SessionWSRegistry(id_factory=id_factory)
        storage = MemoryStorage()
        client = await aiohttp_client(make_app(registry, storage))
        with pytest.raises(WSServerHandshakeError) as caught:
            await client.ws_connect("/echo")

        assert caught.value.status == 500
        assert not len(registry)
        assert not storage.sessions
        assert not opening(registry)

    @pytest.mark.parametrize("id_factory", [fail, fail_later])
    async def test_cause(self, aiohttp_client: AiohttpClient, id_factory: IdFactory) -> None:
        """The error says what an id factory must return; the factory's error is its cause."""
        registry = SessionWSRegistry(id_factory=id_factory)
        caught: list[IdFactoryFailed] = []

        async def handler(request: web.Request) -> web.Response:
            with pytest.raises(IdFactoryFailed, match="must return a hashable id") as info:
                await registry.generate_id(request)
            caught.append(info.value)
            return web.Response()

        app = web.Application()
        app.router.add_get("/", handler)
        await fetch(await aiohttp_client(app), "/")

        assert isinstance(caught[0].__cause__, LookupError)
        assert isinstance(caught[0], RuntimeError)

    @pytest.mark.parametrize(
        ("result", "match"), [(None, "can't be None"), ([1], "hashable"), ({}, "hashable")]
    )
    async def test_unusable(self, aiohttp_client: AiohttpClient, result: Any, match: str) -> None:
        """``None`` and unhashable objects are refused as ids."""
        registry = SessionWSRegistry(id_factory=lambda request: result)
        session_ws_id = "unset"

        async def handler(request: web.Request) -> web.Response:
            nonlocal session_ws_id
            with pytest.raises(InvalidSessionWSId, match=match):
                await registry.new_id(request)
            session_ws_id = str(await registry.get_id(request))
            return web.Response()

        app = make_app(middlewares=[aiohttp_session.session_middleware(MemoryStorage())])
        app.router.add_get("/", handler)
        await fetch(await aiohttp_client(app), "/")

        assert session_ws_id == "None"
        assert issubclass(InvalidSessionWSId, TypeError)


class TestHelpers:
    async def test_ensure(self, aiohttp_client: AiohttpClient) -> None:
        """``ensure_session_ws_id`` gives an id only to a session that has none."""

        async def handler(request: web.Request) -> web.Response:
            ids = [await get_session_ws_id(request)]
            for _ in range(2):
                await ensure_session_ws_id(request)
                ids.append(await get_session_ws_id(request))
            return web.json_response(ids)

        app = make_app(middlewares=[aiohttp_session.session_middleware(MemoryStorage())])
        app.router.add_get("/", handler)
        client = await aiohttp_client(app)
        async with client.get("/") as response:
            none, first, second = await response.json()

        assert none is None
        assert first == second is not None

    async def test_delete(self, aiohttp_client: AiohttpClient) -> None:
        """A deleted id is gone, and the next request of the session gets another one."""
        client = await aiohttp_client(make_app())
        before = await fetch(client, "/whoami")

        assert await fetch(client, "/delete") == "None"
        assert await fetch(client, "/delete") == "None"
        assert await fetch(client, "/whoami") != before

    async def test_new(self, aiohttp_client: AiohttpClient) -> None:
        """A new id replaces the old one for good."""
        client = await aiohttp_client(make_app())
        before = await fetch(client, "/whoami")
        renewed = await fetch(client, "/renew")

        assert renewed != before
        assert await fetch(client, "/whoami") == renewed

    async def test_set_id_is_called(self, aiohttp_client: AiohttpClient) -> None:
        """The id of a new session is stored by ``set_id``, which may be overridden."""
        written: list[Hashable] = []

        class Registry(SessionWSRegistry):
            async def set_id(self, request: web.Request, session_ws_id: Hashable) -> None:
                written.append(session_ws_id)
                await super().set_id(request, session_ws_id)

        client = await aiohttp_client(make_app(Registry()))
        session_ws_id = (await fetch(client, "/whoami")).strip("'")

        assert written == [session_ws_id]


class NestedRegistry(SessionWSRegistry):
    """Keeps the id inside a dictionary in the session."""

    async def get_id(self, request: web.Request) -> Hashable | None:
        """Read the id from the dictionary."""
        session = await aiohttp_session.get_session(request)
        session_ws_id: Hashable | None = session.get("user", {}).get("socket")
        return session_ws_id

    async def set_id(self, request: web.Request, session_ws_id: Hashable) -> None:
        """Write the id into the dictionary."""
        session = await aiohttp_session.get_session(request)
        session["user"] = {**session.get("user", {}), "socket": session_ws_id}

    async def delete_id(self, request: web.Request) -> None:
        """Remove the id from the dictionary."""
        session = await aiohttp_session.get_session(request)
        session["user"] = {k: v for k, v in session.get("user", {}).items() if k != "socket"}


class HeaderRegistry(SessionWSRegistry):
    """Derives the id from a header, without a session."""

    async def get_id(self, request: web.Request) -> Hashable | None:
        """Read the header."""
        return request.headers.get("X-User")

    async def set_id(self, request: web.Request, session_ws_id: Hashable) -> None:
        """Do nothing: the client sets the header."""

    async def delete_id(self, request: web.Request) -> None:
        """Do nothing: the client sets the header."""


class TableRegistry(HeaderRegistry):
    """Keeps the ids in a table by a header, without a session."""

    def __init__(self) -> None:
        super().__init__()
        self.table: dict[str, Hashable] = {}

    async def get_id(self, request: web.Request) -> Hashable | None:
        """Read the id from the table."""
        return self.table.get(request.headers["X-User"])

    async def set_id(self, request: web.Request, session_ws_id: Hashable) -> None:
        """Write the id into the table."""
        self.table[request.headers["X-User"]] = session_ws_id

    async def delete_id(self, request: web.Request) -> None:
        """Delete the id from the table."""
        self.table.pop(request.headers["X-User"], None)


class TestIdElsewhere:
    # With the id under the application's own key, a session with nothing but its id isn't empty.
    @pytest.mark.parametrize(("path", "code"), [("/renew", 4403), ("/end", 4403)])
    async def test_nested(self, aiohttp_client: AiohttpClient, path: str, code: int) -> None:
        """A renewal or an end of a nested id closes its socket; the next socket has a new id."""
        registry = NestedRegistry()
        client = await aiohttp_client(make_app(registry))
        before = await fetch(client, "/whoami")
        async with client.ws_connect("/echo") as ws:
            assert [repr(session_ws_id) for session_ws_id in registry] == [before]
            await fetch(client, path)
            await expect_close(ws, code)

        async with client.ws_connect("/echo") as ws:
            await ws.send_str("back")
            assert await ws.receive_str(timeout=PATIENCE) == "back"
            assert before not in map(repr, registry)

    async def test_nested_handshake(self, aiohttp_client: AiohttpClient) -> None:
        """A session with a nested id opens a socket even if its first request is the handshake."""
        client = await aiohttp_client(make_app(NestedRegistry()))
        async with client.ws_connect("/echo") as ws:
            await ws.send_str("hello")
            assert await ws.receive_str(timeout=PATIENCE) == "hello"

    async def test_nested_delete(self, aiohttp_client: AiohttpClient) -> None:
        """Deleting a nested id by the helper closes the sockets of the session."""
        client = await aiohttp_client(make_app(NestedRegistry()))
        await fetch(client, "/whoami")
        async with client.ws_connect("/echo") as ws:
            assert await fetch(client, "/delete") == "None"
            message = await ws.receive(timeout=PATIENCE)

        assert message.type is WSMsgType.CLOSE
        assert message.data in {4401, 4403}

    @pytest.mark.parametrize("middlewares", [[], [session_ws_middleware]])
    async def test_without_sessions(
        self, aiohttp_client: AiohttpClient, middlewares: list[Any]
    ) -> None:
        """An id derived from the request needs no aiohttp_session."""
        registry = HeaderRegistry()
        client = await aiohttp_client(make_app(registry, middlewares=middlewares))
        headers = {"X-User": "anna"}
        async with client.ws_connect("/echo", headers=headers) as ws:
            await ws.send_str("hello")
            assert await ws.receive_str(timeout=PATIENCE) == "hello"
            assert list(registry) == ["anna"]
            assert await fetch(client, "/whoami", headers=headers) == "'anna'"

            await registry.close_all_session("anna")
            await expect_close(ws, 4403)

    @pytest.mark.parametrize("middlewares", [[], [session_ws_middleware]])
    async def test_end_without_sessions(
        self, aiohttp_client: AiohttpClient, middlewares: list[Any]
    ) -> None:
        """A log-out needs no aiohttp_session if the id is derived from the request."""
        client = await aiohttp_client(make_app(HeaderRegistry(), middlewares=middlewares))
        headers = {"X-User": "anna"}
        async with client.ws_connect("/echo", headers=headers) as ws:
            await fetch(client, "/end", headers=headers)
            await expect_close(ws, 4401)

    @pytest.mark.parametrize(("path", "code"), [("/renew", 4403), ("/delete", 4401)])
    async def test_another_id_without_sessions(
        self, aiohttp_client: AiohttpClient, path: str, code: int
    ) -> None:
        """Sockets close if a handler deletes or replaces their id, without aiohttp_session too."""
        client = await aiohttp_client(
            make_app(TableRegistry(), middlewares=[session_ws_middleware])
        )
        headers = {"X-User": "anna"}
        async with client.ws_connect("/echo", headers=headers) as ws:
            await fetch(client, path, headers=headers)
            await expect_close(ws, code)

    @pytest.mark.parametrize("middlewares", [[], [session_ws_middleware]])
    async def test_no_id_after_all(
        self, aiohttp_client: AiohttpClient, middlewares: list[Any]
    ) -> None:
        """A handshake whose id can't be derived fails, and isn't filed."""
        registry = HeaderRegistry()
        client = await aiohttp_client(make_app(registry, middlewares=middlewares))
        with pytest.raises(WSServerHandshakeError):
            await client.ws_connect("/echo")

        assert not len(registry)


class TestSharedIds:
    @pytest.mark.parametrize(("path", "code"), [("/end", 4401), ("/log_out", 4403)])
    async def test_log_out(self, aiohttp_client: AiohttpClient, path: str, code: int) -> None:
        """An id that the factory gives again after a log-out opens sockets again."""
        registry = SessionWSRegistry(id_factory=lambda request: "anna")
        client = await aiohttp_client(make_app(registry))
        await fetch(client, "/whoami")
        async with client.ws_connect("/echo") as ws:
            await fetch(client, path)
            await expect_close(ws, code)

        async with client.ws_connect("/echo") as ws:
            await ws.send_str("back")
            assert await ws.receive_str(timeout=PATIENCE) == "back"


class TestMisplaced:
    async def test_helper_without_setup(self, aiohttp_client: AiohttpClient) -> None:
        """A helper that finds no registry raises an error that names the remedy."""

        async def handler(request: web.Request) -> web.Response:
            with pytest.raises(NotSetUp) as caught:
                await get_session_ws_id(request)
            return web.Response(text=str(caught.value))

        app = web.Application()
        app.router.add_get("/", handler)

        assert "call aiohttp_session_ws.setup(" in await fetch(await aiohttp_client(app), "/")
        assert issubclass(NotSetUp, RuntimeError)

    @pytest.mark.parametrize("path", ["/whoami", "/echo"])
    async def test_middleware_without_setup(
        self, aiohttp_client: AiohttpClient, path: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A request to a middleware without a registry gets 500, and the log names the remedy."""
        app = web.Application(middlewares=[session_ws_middleware])
        app.router.add_get("/whoami", whoami)
        app.router.add_get("/echo", echo)
        client = await aiohttp_client(app)
        async with client.get(path) as response:
            status = response.status

        assert status == 500
        assert "NotSetUp: no registry: call aiohttp_session_ws.setup(" in caplog.text

    @pytest.mark.parametrize("reverse", [False, True])
    async def test_order_of_middlewares(
        self, aiohttp_client: AiohttpClient, reverse: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A middleware that isn't inside aiohttp_session's causes 500; the log names the order."""
        sessions = aiohttp_session.session_middleware(aiohttp_session.SimpleCookieStorage())
        middlewares = [session_ws_middleware, sessions] if reverse else [session_ws_middleware]
        client = await aiohttp_client(make_app(middlewares=middlewares))
        async with client.get("/whoami") as response:
            status = response.status

        assert status == 500
        assert "NotSetUp: no session: put session_ws_middleware inside" in caplog.text
        assert "[aiohttp_session.session_middleware(storage), session_ws_mid" in caplog.text

    async def test_handshake_without_sessions(
        self, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A handshake without aiohttp_session's middleware fails, and the log names the order."""
        client = await aiohttp_client(make_app(middlewares=[session_ws_middleware]))
        with pytest.raises(WSServerHandshakeError):
            await client.ws_connect("/echo")

        assert "NotSetUp: no session: put session_ws_middleware inside" in caplog.text

    async def test_session_loaded_before(
        self, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Sessions that are loaded before the package's middleware cause one warning, not many."""

        @web.middleware
        async def early(request: web.Request, handler: Handler) -> web.StreamResponse:
            await aiohttp_session.get_session(request)
            return await handler(request)

        sessions = aiohttp_session.session_middleware(aiohttp_session.SimpleCookieStorage())
        app = make_app(middlewares=[sessions, early, session_ws_middleware])
        client = await aiohttp_client(app)
        for _ in range(3):
            await fetch(client, "/whoami")

        warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert len(warnings) == 1
        assert "directly inside aiohttp_session's middleware" in warnings[0]

    async def test_right_order_is_silent(
        self, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A middleware in its right place logs no warning."""
        client = await aiohttp_client(make_app())
        await fetch(client, "/whoami")
        async with client.ws_connect("/echo"):
            await fetch(client, "/whoami")

        assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
