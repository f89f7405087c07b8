from __future__ import annotations

import asyncio
import ssl
from typing import Any

import aiohttp_session
import pytest
from aiohttp import WSServerHandshakeError, web
from aiohttp.test_utils import make_mocked_request
from hypothesis import example, given, strategies as st
from multidict import CIMultiDict

from aiohttp_session_ws import SessionWSRegistry, session_ws, session_ws_middleware, setup
from aiohttp_session_ws._origin import OriginPolicy, parse_origin
from aiohttp_session_ws.typing import Origins
from tests.support import PATIENCE, AiohttpClient, Client

UPGRADE = {"Connection": "Upgrade", "Upgrade": "websocket"}


class CountingStorage(aiohttp_session.SimpleCookieStorage):
    """Counts how often a session is loaded."""

    loads = 0

    async def load_session(self, request: web.Request) -> aiohttp_session.Session:
        """Load and count."""
        self.loads += 1
        return await super().load_session(request)


async def echo(request: web.Request) -> web.WebSocketResponse:
    """Send everything back."""
    async with session_ws(request) as ws:
        async for message in ws:
            await ws.send_str(message.data)
    return ws


def make_app(
    origins: Origins = "same", storage: aiohttp_session.AbstractStorage | None = None
) -> web.Application:
    """Return an app with a websocket at /ws."""
    storage = storage or aiohttp_session.SimpleCookieStorage()
    middlewares = [aiohttp_session.session_middleware(storage), session_ws_middleware]
    app = web.Application(middlewares=middlewares)
    setup(app, SessionWSRegistry(origins=origins))
    app.router.add_route("*", "/ws", echo)
    return app


async def test_many_origins(caplog: pytest.LogCaptureFixture) -> None:
    """At most ten refused origins are logged, and long ones are shortened."""
    policy = OriginPolicy()
    for number in range(50):
        origin = f"https://{number}{'x' * 5000}.example"
        with pytest.raises(web.HTTPForbidden):
            await policy.check(make_mocked_request("GET", "/", {"Origin": origin, "Host": "site"}))

    assert len(caplog.records) == 10
    assert max(len(record.getMessage()) for record in caplog.records) < 1000


async def knock(client: Client, *headers: tuple[str, str], **options: Any) -> int:
    """Return the status of a handshake with these headers."""
    try:
        async with client.ws_connect("/ws", headers=CIMultiDict(headers), **options) as ws:
            await ws.send_str("there?")
            assert await ws.receive_str(timeout=PATIENCE) == "there?"
    except WSServerHandshakeError as exc:
        return exc.status
    return 101


class TestSameOrigin:
    async def test_own_page(self, aiohttp_client: AiohttpClient) -> None:
        """A page of the same origin may connect."""
        client = await aiohttp_client(make_app())
        origin = str(client.make_url("/").origin())

        assert await knock(client, origin=origin) == 101

    async def test_foreign_page(self, aiohttp_client: AiohttpClient) -> None:
        """A foreign page gets 403, also without the middleware, where no session is loaded."""
        storage = CountingStorage()
        app = make_app(storage=storage)
        app.middlewares.remove(session_ws_middleware)
        client = await aiohttp_client(app)

        assert await knock(client, origin="https://evil.example") == 403
        assert storage.loads == 0
        client = await aiohttp_client(make_app())
        assert await knock(client, origin="https://evil.example") == 403

    async def test_no_origin(self, aiohttp_client: AiohttpClient) -> None:
        """A client that sends no Origin header, and so isn't a browser, may connect."""
        storage = CountingStorage()
        client = await aiohttp_client(make_app(storage=storage))

        assert await knock(client) == 101
        assert storage.loads > 0

    @pytest.mark.parametrize(
        ("host", "origin", "status"),
        [
            ("example.org", "http://example.org", 101),
            ("example.org", "http://example.org:80", 101),
            ("example.org:80", "http://example.org", 101),
            ("example.org:8080", "http://example.org:8080", 101),
            # A proxy terminated TLS and passed the Host header on.
            ("example.org", "https://example.org", 101),
            ("example.org", "https://example.org:443", 101),
            ("example.org:443", "https://example.org", 101),
            ("example.org:8443", "https://example.org:8443", 101),
            ("example.org:8080", "http://example.org", 403),
            ("example.org", "http://example.org:8080", 403),
            ("example.org", "https://example.org:8443", 403),
            ("example.org", "https://example.org:80", 403),
            ("example.org:80", "https://example.org", 403),
            ("[::1]:8080", "http://[::1]:8080", 101),
            ("[::1]", "https://[::1]", 101),
            ("[2001:DB8::1]", "http://[2001:db8::1]", 101),
            ("[::1]:8080", "http://[::2]:8080", 403),
            ("EXAMPLE.org", "http://example.ORG", 101),
            ("example.org", "HTTP://EXAMPLE.ORG", 101),
            ("xn--mnchen-3ya.example", "https://xn--mnchen-3ya.example", 101),
            ("example.org", "http://sub.example.org", 403),
            ("sub.example.org", "http://example.org", 403),
            ("example.org", "http://example.org.evil.example", 403),
            ("example.org", "http://evil.example", 403),
        ],
    )
    async def test_host_and_port_are_compared(
        self, aiohttp_client: AiohttpClient, host: str, origin: str, status: int
    ) -> None:
        """Without TLS, host and port must be those of the Host header, whatever the scheme."""
        client = await aiohttp_client(make_app())

        assert await knock(client, ("Host", host), ("Origin", origin)) == status

    @pytest.mark.parametrize(
        "origin",
        [
            "null",
            "",
            "garbage",
            "example.org",
            "//example.org",
            "http://",
            "http://:80",
            "http://example.org:port",
            "http://example.org:99999",
            "http://[::1",
            "http://example.org/",
            "http://example.org/path",
            "http://example.org?query",
            "http://example.org#fragment",
            "http://user@example.org",
            "http://example.org@evil.example",
            "http://example.org\\@evil.example",
            "http://example.org http://example.org",
            "http://example.org, http://example.org",
            "ftp://example.org",
            "ws://example.org",
            "file://",
            "chrome-extension://example.org",
        ],
    )
    async def test_not_an_origin(self, aiohttp_client: AiohttpClient, origin: str) -> None:
        """An Origin header of ``null``, or that isn't a valid origin, is refused."""
        client = await aiohttp_client(make_app())

        assert await knock(client, ("Host", "example.org"), ("Origin", origin)) == 403

    async def test_malformed_idna_is_refused(self, aiohttp_client: AiohttpClient) -> None:
        """An origin with a punycode label that can't be decoded gets 403, not 500."""
        client = await aiohttp_client(make_app())

        assert await knock(client, ("Host", "example.org"), ("Origin", "http://xn--a")) == 403

    async def test_two_origins(self, aiohttp_client: AiohttpClient) -> None:
        """Two Origin headers are refused even if each alone would be accepted."""
        client = await aiohttp_client(make_app())
        own = ("Origin", "http://example.org")

        assert await knock(client, ("Host", "example.org"), own, own) == 403

    async def test_the_refusal_helps(self, aiohttp_client: AiohttpClient) -> None:
        """The text of the 403 shows both compared values and names both remedies."""
        client = await aiohttp_client(make_app())
        headers = {**UPGRADE, "Host": "inner:8080", "Origin": "https://example.org"}
        async with client.get("/ws", headers=headers) as response:
            text = await response.text()

        assert response.status == 403
        assert "'https://example.org'" in text
        assert "'inner:8080'" in text
        assert "Host header" in text
        assert "origins=[" in text

    async def test_nothing_is_stored_for_a_foreign_page(
        self, aiohttp_client: AiohttpClient
    ) -> None:
        """The refusal of a foreign page sets no cookie."""
        client = await aiohttp_client(make_app())
        headers = {**UPGRADE, "Origin": "https://evil.example"}
        async with client.get("/ws", headers=headers) as response:
            cookies = response.cookies

        assert not cookies

    @pytest.mark.parametrize(
        ("origin", "status"),
        [
            ("https://example.org", 101),
            ("https://example.org:443", 101),
            ("http://example.org", 403),
            ("http://example.org:80", 403),
            ("http://example.org:443", 403),
        ],
    )
    async def test_over_tls(
        self, aiohttp_client: AiohttpClient, tls: ssl.SSLContext, origin: str, status: int
    ) -> None:
        """If the handshake came over TLS, an origin with the scheme http is refused."""
        client = await aiohttp_client(make_app(), tls=tls)

        assert await knock(client, ("Host", "example.org"), ("Origin", origin)) == status


class TestOrigins:
    @pytest.mark.parametrize(
        ("origin", "status"),
        [
            ("https://example.org", 101),
            ("https://EXAMPLE.org:443", 101),
            ("http://localhost:3000", 101),
            ("http://example.org", 403),
            ("http://example.org:443", 403),
            ("https://example.org:8443", 403),
            ("http://localhost", 403),
            ("https://localhost:3000", 403),
            ("https://evil.example", 403),
            ("http://inner:8080", 403),  # the same origin, but not in the list
            ("null", 403),
        ],
    )
    async def test_list(self, aiohttp_client: AiohttpClient, origin: str, status: int) -> None:
        """Origins in a list are compared in full, scheme and port included."""
        origins = ["https://example.org", "http://LOCALHOST:3000"]
        client = await aiohttp_client(make_app(origins))

        assert await knock(client, ("Host", "inner:8080"), ("Origin", origin)) == status

    @pytest.mark.parametrize("origins", [[], (), frozenset()])
    async def test_empty_list(self, aiohttp_client: AiohttpClient, origins: Origins) -> None:
        """With an empty list no page may connect, not even one of the same origin."""
        client = await aiohttp_client(make_app(origins))

        assert await knock(client, origin=str(client.make_url("/").origin())) == 403
        assert await knock(client) == 101

    async def test_callable(self, aiohttp_client: AiohttpClient) -> None:
        """A callable receives each request, also one without an origin, and decides."""

        def origins(request: web.Request) -> bool:
            return request.headers.get("Origin") == "https://friend.example"

        client = await aiohttp_client(make_app(origins))

        assert await knock(client, origin="https://friend.example") == 101
        assert await knock(client, origin="https://evil.example") == 403
        assert await knock(client) == 403

    async def test_async_callable(self, aiohttp_client: AiohttpClient) -> None:
        """The callable that decides on an origin may be async."""

        async def origins(request: web.Request) -> bool:
            return request.headers.get("Origin") == "https://friend.example"

        client = await aiohttp_client(make_app(origins))

        assert await knock(client, origin="https://friend.example") == 101
        assert await knock(client, origin="https://evil.example") == 403

    async def test_none(self, aiohttp_client: AiohttpClient) -> None:
        """With ``origins=None`` a page of any origin may connect."""
        client = await aiohttp_client(make_app(None))

        assert await knock(client, origin="https://evil.example") == 101
        assert await knock(client, origin="null") == 101

    @pytest.mark.parametrize("entry", ["null", "*", "", "example.org", "https://example.org/"])
    def test_bad_entry(self, entry: str) -> None:
        """An entry that isn't an origin raises a ValueError that shows it and the right form."""
        with pytest.raises(ValueError, match="write it like") as caught:
            SessionWSRegistry(origins=["https://example.org", entry])

        assert repr(entry) in str(caught.value)

    @pytest.mark.parametrize("origins", ["*", ["*"], ["https://example.org", "*"]])
    def test_asterisk(self, origins: str | list[str]) -> None:
        """``*``, as in CORS, raises a ValueError that says how to allow all pages."""
        with pytest.raises(ValueError, match="origins=None allows all pages"):
            SessionWSRegistry(origins=origins)

    def test_bare_string(self) -> None:
        """A string in place of a list raises a ValueError that shows the list."""
        with pytest.raises(ValueError, match=r"origins=\['https://example\.org'\]"):
            SessionWSRegistry(origins="https://example.org")


class TestIsWebsocket:
    @pytest.mark.parametrize("value", ["WebSocket", "websocket", "WEBSOCKET"])
    async def test_upgrade_in_any_case(self, aiohttp_client: AiohttpClient, value: str) -> None:
        """``Upgrade`` is compared case-insensitively: the origin of the handshake is checked."""
        client = await aiohttp_client(make_app())
        headers = {"Connection": "Upgrade", "Upgrade": value, "Origin": "null"}
        async with client.get("/ws", headers=headers) as response:
            text = await response.text()

        assert response.status == 403
        assert "Origin" in text

    async def test_plain_get(self, aiohttp_client: AiohttpClient) -> None:
        """A request that is no handshake gets 400 and the reason."""
        client = await aiohttp_client(make_app())
        async with client.get("/ws") as response:
            text = await response.text()

        assert response.status == 400
        assert "Upgrade: websocket" in text

    @pytest.mark.parametrize(
        ("method", "upgrade"), [("POST", "websocket"), ("GET", "h2c"), ("HEAD", "websocket")]
    )
    async def test_not_a_handshake(
        self, aiohttp_client: AiohttpClient, method: str, upgrade: str
    ) -> None:
        """A request other than a GET with ``Upgrade: websocket`` gets 400."""
        client = await aiohttp_client(make_app())
        headers = {"Connection": "Upgrade", "Upgrade": upgrade}
        async with client.request(method, "/ws", headers=headers) as response:
            status = response.status

        assert status == 400


class TestParseOrigin:
    @pytest.mark.parametrize(
        ("text", "origin"),
        [
            ("http://example.org", ("http", "example.org", 80)),
            ("https://example.org", ("https", "example.org", 443)),
            ("HTTPS://Example.ORG:8443", ("https", "example.org", 8443)),
            ("http://[::1]:80", ("http", "::1", 80)),
            ("null", None),
        ],
    )
    def test_parts(self, text: str, origin: tuple[str, str, int] | None) -> None:
        """Scheme and host are lowercased; a missing port is the default port of the scheme."""
        assert parse_origin(text) == origin

    @given(st.text() | st.text().map("http://{}".format) | st.text().map("https://[{}]".format))
    @example("http://[::1")
    @example("http://example.org:99999")
    @example("http://\udc80")
    def test_any_text(self, text: str) -> None:
        """Any text is parsed as an origin or as None; nothing is raised."""
        origin = parse_origin(text)

        assert origin is None or (origin[0] in {"http", "https"} and 0 <= origin[2] < 65536)

    @given(st.text("abc019-", max_size=12).map("http://xn--{}".format))
    @example("http://xn--a")
    def test_any_punycode(self, text: str) -> None:
        """Any host that begins with ``xn--`` is parsed as an origin or None; nothing is raised."""
        origin = parse_origin(text)

        assert origin is None or origin[0] == "http"

    @given(st.text("abc.", min_size=1), st.integers(0, 65535), st.sampled_from(["http", "https"]))
    def test_round_trip(self, host: str, port: int, scheme: str) -> None:
        """A text that can be parsed as an origin is accepted by a list that contains it."""
        text = f"{scheme}://{host}:{port}"
        origin = parse_origin(text)
        assert origin in {None, (scheme, host, port)}
        if origin is not None:
            request = make_mocked_request("GET", "/", {"Origin": text, "Host": "example.org"})
            asyncio.run(OriginPolicy([text]).check(request))
