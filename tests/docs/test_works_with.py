"""
The programs for streams, other libraries, and log-outs ordered by an identity provider.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import aiohttp_session
import pytest
import strawberry
from aiohttp import ClientPayloadError, web
from aiohttp_session import SimpleCookieStorage
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet

from aiohttp_session_ws import SessionWSRegistry, session_ws_middleware, setup
from tests.support import (
    PATIENCE,
    AiohttpClient,
    Client,
    converse,
    cookie_of,
    expect_close,
    make_app,
    user_of,
)

from .documents import ADOPT, PROTOCOL, STREAM, blocks, run

_, _, _, _, SSE, STRAWBERRY, BACK_CHANNEL, CAEP, *REST = blocks("docs/works-with.rst", python=True)
KEY = ECKey.generate_key("P-256", {"kid": "1"})


class TestStreams:
    @pytest.mark.parametrize(
        ("block", "line"), [(STREAM, b"data: 0 for ann\n"), (SSE, b"data: hello\r\n")]
    )
    async def test_a_log_out(self, aiohttp_client: AiohttpClient, block: str, line: bytes) -> None:
        """A log-out cuts the stream; the stale cookie gets a 204, which stops an EventSource."""
        app = make_app(SessionWSRegistry(identify=user_of))
        app.router.add_get("/events", run(block)["events"])
        client = await aiohttp_client(app)
        await client.get("/enter")
        stale = cookie_of(client)
        async with client.get("/events") as stream:
            assert await stream.content.readline() == line
            await client.get("/out/end_session_ws")
            with pytest.raises(ClientPayloadError):
                await stream.content.read()
        headers = {"Cookie": stale, "Accept": "text/event-stream"}
        client.session.cookie_jar.clear()
        async with client.get("/events", headers=headers) as response:
            assert response.status == 204


class TestEndpoints:
    async def test_adopt(self, aiohttp_client: AiohttpClient) -> None:
        """A websocket of another library echoes, and is closed by a log-out."""
        app = make_app()
        app.router.add_get("/foreign", run(ADOPT)["foreign"])
        client = await aiohttp_client(app)
        await client.get("/enter")
        async with client.ws_connect("/foreign") as ws:
            await ws.send_str("hello")
            assert await ws.receive_str() == "hello"
            await client.get("/out/end_session_ws")

            assert await expect_close(ws) == 4401

    async def test_protocol(self, aiohttp_client: AiohttpClient) -> None:
        """An endpoint with its own protocol sets no cookie, gets no push, and sends a goodbye."""
        registry = SessionWSRegistry()
        app = make_app(registry)
        app.router.add_get("/rpc", run(PROTOCOL)["rpc"])
        client = await aiohttp_client(app)
        async with client.ws_connect("/rpc") as ws:
            await ws.send_str("hello")
            assert await ws.receive_str() == "hello"
            assert (await registry.broadcast("news")).sockets == 0
            await registry.close_all()

            assert await ws.receive_json() == {"goodbye": "reconnect"}
            assert await expect_close(ws) == 4403
        assert not list(client.session.cookie_jar)

    async def test_strawberry(self, aiohttp_client: AiohttpClient) -> None:
        """Strawberry's view answers queries, and a log-out closes its websocket."""

        @strawberry.type
        class Query:
            @strawberry.field
            def hello(self) -> str:
                return "world"

        app = make_app()
        view = run(STRAWBERRY)["SessionGraphQLView"](strawberry.Schema(Query))
        app.router.add_route("*", "/graphql", view)
        client = await aiohttp_client(app)
        await client.get("/enter")
        async with client.post("/graphql", json={"query": "{ hello }"}) as response:
            assert (await response.json())["data"] == {"hello": "world"}
        async with client.ws_connect("/graphql", protocols=["graphql-transport-ws"]) as ws:
            await ws.send_json({"type": "connection_init"})
            assert (await ws.receive_json())["type"] == "connection_ack"
            await client.get("/out/end_session_ws")

            assert await expect_close(ws) == 4401


def token(event: str, key: ECKey = KEY, **claims: Any) -> str:
    """Return a token of the provider; ``None`` removes a claim."""
    now = int(time.time())
    found = {
        **{"iss": "https://id.example", "aud": "shop", "iat": now, "exp": now + 60, "jti": "1"},
        **{"events": {event: {}}},
        **claims,
    }
    found = {name: value for name, value in found.items() if value is not None}
    return jwt.encode({"alg": "ES256", "kid": "1"}, found, key)


LOG_OUT = "http://schemas.openid.net/event/backchannel-logout"
REVOKED = "https://schemas.openid.net/secevent/caep/event-type/session-revoked"


async def log_in(request: web.Request) -> web.Response:
    """Log in with the claims in the query."""
    (await aiohttp_session.get_session(request)).update(request.query)
    return web.Response()


async def whoami(request: web.Request) -> web.Response:
    """Return the user of the session."""
    return web.json_response((await aiohttp_session.get_session(request)).get("sub"))


@pytest.fixture
async def shop(aiohttp_client: AiohttpClient) -> Client:
    """Start an application whose users log in at a provider."""
    names = run(BACK_CHANNEL + "\n\n" + CAEP)
    sessions = aiohttp_session.session_middleware(SimpleCookieStorage())
    app = web.Application(middlewares=[sessions, session_ws_middleware])
    setup(app, names["registry"])
    app[names["PROVIDER_KEYS"]] = KeySet([KEY])
    app.router.add_get("/login", log_in)
    app.router.add_get("/whoami", whoami)
    app.router.add_get("/ws", converse)
    app.router.add_post("/back-channel", names["back_channel"])
    app.router.add_post("/signals", names["signals"])
    return await aiohttp_client(app)


async def sessions_of(client: Client) -> dict[str, Any]:
    """Open a socket for each of two sessions of Ann's, and for one of Bob's."""
    found = {}
    for sub, sid in (("ann", "s1"), ("ann", "s2"), ("bob", "s3")):
        client.session.cookie_jar.clear()
        await client.get("/login", params={"sub": sub, "sid": sid})
        ws = await client.ws_connect("/ws")
        await ws.receive(timeout=PATIENCE)
        found[sid] = (cookie_of(client), ws)
    client.session.cookie_jar.clear()
    return found


async def ended(client: Client, sessions: Mapping[str, Any]) -> set[str]:
    """Return the sessions that have ended, and check that their sockets are closed."""
    found = set()
    for sid, (cookie, ws) in sessions.items():
        client.session.cookie_jar.clear()
        async with client.get("/whoami", headers={"Cookie": cookie}) as response:
            if await response.json() is None:
                found.add(sid)
                assert await expect_close(ws) == 4401
    return found


class TestBackChannel:
    @pytest.mark.parametrize(
        ("claims", "over"),
        [
            ({"sid": "s1"}, {"s1"}),
            ({"sub": "ann"}, {"s1", "s2"}),
            ({"sub": "ann", "sid": "s2"}, {"s2"}),
            ({"sub": "nobody"}, set()),
        ],
    )
    async def test_by_sid_and_sub(
        self, shop: Client, claims: dict[str, Any], over: set[str]
    ) -> None:
        """A log-out token ends the sessions that it names, and no others."""
        sessions = await sessions_of(shop)
        data = {"logout_token": token(LOG_OUT, **claims)}
        async with shop.post("/back-channel", data=data) as response:
            assert (response.status, response.headers["Cache-Control"]) == (200, "no-store")

        assert await ended(shop, sessions) == over

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "no token",
            token(LOG_OUT),
            token(LOG_OUT, sid="s1", iss="https://evil.example"),
            token(LOG_OUT, sid="s1", aud="another shop"),
            token(LOG_OUT, sid="s1", exp=1),
            token(LOG_OUT, sid="s1", iat=None),
            token(LOG_OUT, sid="s1", nonce="1"),
            token(REVOKED, sid="s1"),
            token(LOG_OUT, sid="s1", events="all"),
            token(LOG_OUT, sid="s1", key=ECKey.generate_key("P-256", {"kid": "1"})),
        ],
    )
    async def test_what_is_none(self, shop: Client, text: str) -> None:
        """An invalid log-out token gets a 400, and ends nothing."""
        sessions = await sessions_of(shop)
        async with shop.post("/back-channel", data={"logout_token": text}) as response:
            assert response.status == 400

        assert not await ended(shop, sessions)


class TestCAEP:
    @pytest.mark.parametrize(
        ("subject", "over"),
        [
            ({"format": "iss_sub", "iss": "https://id.example", "sub": "ann"}, {"s1", "s2"}),
            ({"format": "complex", "session": {"format": "opaque", "id": "s1"}}, {"s1"}),
            (
                {
                    "format": "complex",
                    "user": {"format": "iss_sub", "iss": "https://id.example", "sub": "bob"},
                },
                {"s3"},
            ),
        ],
    )
    async def test_session_revoked(
        self, shop: Client, subject: dict[str, Any], over: set[str]
    ) -> None:
        """A security event ends the session or the user's sessions that it names."""
        sessions = await sessions_of(shop)
        text = token(REVOKED, sub_id=subject)
        headers = {"Content-Type": "application/secevent+jwt"}
        async with shop.post("/signals", data=text, headers=headers) as response:
            assert response.status == 202

        assert await ended(shop, sessions) == over

    @pytest.mark.parametrize(
        "subject",
        [
            {},
            "ann",
            {"format": "email", "email": "ann@example.com"},
            {"format": "complex", "session": "s1"},
            {"sub": 1},
        ],
    )
    async def test_another_subject(self, shop: Client, subject: Any) -> None:
        """A security event with an unknown subject gets a 400."""
        async with shop.post("/signals", data=token(REVOKED, sub_id=subject)) as response:
            assert response.status == 400
