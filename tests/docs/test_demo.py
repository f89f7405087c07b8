"""
The demo: its pages, what its buttons do to the session's sockets, and its command.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import pytest
from aiohttp import (
    ClientSession,
    ClientWebSocketResponse,
    CookieJar,
    DummyCookieJar,
    WSMsgType,
)
from yarl import URL

from aiohttp_session_ws.rpc.__main__ import main
from demo.app import make_app
from tests.support import PATIENCE, AiohttpClient, Client
from tests.support.processes import ROOT, Process
from tests.support.redis_servers import RedisServer


@pytest.fixture
async def client(aiohttp_client: AiohttpClient) -> Client:
    """Return a visitor who has loaded the page."""
    client = await aiohttp_client(make_app())
    async with client.get("/") as response:
        assert response.status == 200
    return client


@pytest.fixture
async def clients(aiohttp_client: AiohttpClient, client: Client) -> list[Client]:
    """Return Ada in two browsers, and Bob."""
    clients = [client, await aiohttp_client(client.server), await aiohttp_client(client.server)]
    for visitor, name in zip(clients, ["Ada", "Ada", "Bob"], strict=True):
        await post(visitor, "/login", {"name": name})
    return clients


async def state(client: Client) -> dict[str, Any]:
    """Return the visitor's session as the server describes it."""
    async with client.get("/state") as response:
        described: dict[str, Any] = await response.json()
    return described


async def post(client: Client, path: str, data: Mapping[str, str] | None = None) -> int:
    """Press a button; return the status."""
    async with client.post(path, data=data) as response:
        return response.status


async def receive(ws: ClientWebSocketResponse, type_: str) -> dict[str, Any]:
    """Return the next message of a type."""
    while True:
        message: dict[str, Any] = await ws.receive_json(timeout=PATIENCE)
        if message["type"] == type_:
            return message


async def open_tab(client: Client) -> ClientWebSocketResponse:
    """Open a websocket as the page does, and wait for its first message."""
    ws = await client.ws_connect("/ws")
    await receive(ws, "session")
    return ws


async def close_code(ws: ClientWebSocketResponse) -> int:
    """Return the code that the server closes with."""
    while (message := await ws.receive(timeout=PATIENCE)).type is WSMsgType.TEXT:
        pass
    assert message.type is WSMsgType.CLOSE
    return int(message.data)


class TestPage:
    async def test_served_with_session(self, aiohttp_client: AiohttpClient) -> None:
        """The page is HTML, and sets the session's cookie."""
        client = await aiohttp_client(make_app())

        async with client.get("/") as response:
            assert response.content_type == "text/html"
            assert "session_ws_demo" in response.cookies

    @pytest.mark.parametrize(
        ("path", "others", "script"),
        [
            ("/", ["/chat", "/calls"], "demo.js"),
            ("/chat", ["/"], "chat.js"),
            ("/calls", ["/"], "calls.js"),
        ],
    )
    async def test_all_it_links_to_is_served(
        self, client: Client, path: str, others: list[str], script: str
    ) -> None:
        """The styles, scripts, icons and pages that a page links to are served by the demo."""
        async with client.get(path) as response:
            links = re.findall(r'(?:src|href)="([^"]+)"', await response.text())
        async with client.get(f"/static/{script}") as response:
            imported = re.findall(r'from "\./([^"]+)"', await response.text())
        links += [f"/static/{file}" for file in imported]
        statuses = {link: (await client.get(link)).status for link in links}

        files = ["icon.svg", "demo.css", script, "session-ws.js", "page.js"]
        assert statuses == dict.fromkeys([*others, *(f"/static/{file}" for file in files)], 200)

    async def test_state_of_visitor(self, client: Client) -> None:
        """A visitor has a session with an id and without a user, and keeps it."""
        first = await state(client)

        assert len(first["id"]) == 8
        assert first["user"] is None
        assert await state(client) == first


class TestSocket:
    async def test_welcome(self, client: Client) -> None:
        """The first message describes the socket's session."""
        ws = await client.ws_connect("/ws")

        assert await receive(ws, "session") == {"type": "session", **await state(client)}

    async def test_count_goes_up_and_down(self, client: Client) -> None:
        """A tab receives the number of its session's sockets whenever it changes."""
        ws = await client.ws_connect("/ws")
        counts = [(await receive(ws, "sockets"))["count"]]
        other = await client.ws_connect("/ws")
        counts.append((await receive(ws, "sockets"))["count"])
        await other.close()
        counts.append((await receive(ws, "sockets"))["count"])

        assert counts == [1, 2, 1]

    async def test_count_of_user(self, clients: list[Client]) -> None:
        """A tab receives the number of its user's sockets and sessions whenever it changes."""
        ada, same, bob = clients
        ws = await ada.ws_connect("/ws")
        counts = [await receive(ws, "everywhere")]
        await open_tab(bob)
        for visitor in (ada, same):
            other = await open_tab(visitor)
            counts.append(await receive(ws, "everywhere"))
        await other.close()
        counts.append(await receive(ws, "everywhere"))

        numbers = [(count["sockets"], count["sessions"]) for count in counts]
        assert numbers == [(1, 1), (2, 1), (3, 2), (2, 1)]

    async def test_words_reach_all_tabs(self, client: Client) -> None:
        """A message from one tab reaches all tabs of the session."""
        first, second = await open_tab(client), await open_tab(client)
        await first.send_str("hello")

        assert (await receive(first, "said"))["text"] == "hello"
        assert (await receive(second, "said"))["text"] == "hello"


class TestChat:
    async def test_talk(self, clients: list[Client]) -> None:
        """Every user receives who joins, what is said and who leaves, each once."""
        ada, _, bob = clients
        first = await ada.ws_connect("/chat/ws")
        assert (await receive(first, "chat"))["what"] == "here"
        second = await bob.ws_connect("/chat/ws")
        for ws in (first, second):
            assert (await receive(ws, "chat"))["who"] == "Bob"
        await second.send_str("hello")
        heard = [await receive(ws, "chat") for ws in (first, second)]
        assert heard == [{"type": "chat", "who": "Bob", "what": "says", "text": "hello"}] * 2
        await post(bob, "/logout")

        assert await close_code(second) == 4401
        left = {"type": "chat", "who": "Bob", "what": "gone", "text": "4401"}
        assert await receive(first, "chat") == left

    async def test_must_log_in(self, client: Client) -> None:
        """The socket of an anonymous visitor is closed with 4401 and "log in first"."""
        ws = await client.ws_connect("/chat/ws")
        message = await ws.receive(timeout=PATIENCE)

        assert (message.data, message.extra) == (4401, "log in first")


class TestCalls:
    async def test_must_log_in(self, client: Client) -> None:
        """The socket of an anonymous visitor is closed with 4401 and "log in first"."""
        ws = await client.ws_connect("/calls/ws", protocols=["wamp.2.json"])
        message = await ws.receive(timeout=PATIENCE)

        assert (message.data, message.extra) == (4401, "log in first")

    def test_types(self, capsys: pytest.CaptureFixture[str]) -> None:
        """The page's TypeScript declarations are those generated from the served calls."""
        main(["typescript", "demo.calls:application"])
        made = (ROOT / "demo" / "static" / "session-ws.d.ts").read_text("utf-8")

        assert made == capsys.readouterr().out


class TestLogIn:
    async def test_begins_anew(self, client: Client) -> None:
        """A log-in tells all tabs to reconnect, and they do as the user, with a new id."""
        before = await state(client)
        tabs = [await open_tab(client), await open_tab(client)]
        status = await post(client, "/login", {"name": " Ada "})
        codes = [await close_code(tab) for tab in tabs]
        welcome = await receive(await client.ws_connect("/ws"), "session")

        assert status == 204
        assert codes == [4403, 4403]
        assert welcome["user"] == "Ada"
        assert welcome["id"] != before["id"]

    async def test_needs_name(self, client: Client) -> None:
        """A log-in without a name gets a 400, and changes nothing."""
        before = await state(client)

        assert await post(client, "/login", {"name": " "}) == 400
        assert await state(client) == before


class TestReset:
    async def test_moves_session(self, client: Client) -> None:
        """A reset gives the session a new id, and keeps its user."""
        await post(client, "/login", {"name": "Ada"})
        before = await state(client)
        tab = await open_tab(client)
        status = await post(client, "/reset")
        code = await close_code(tab)
        after = await state(client)

        assert (status, code) == (204, 4403)
        assert after["user"] == "Ada"
        assert after["id"] != before["id"]


class TestLogOut:
    async def test_ends_session(self, client: Client) -> None:
        """A log-out closes all tabs with 4401; the visitor is anonymous, with a new id."""
        await post(client, "/login", {"name": "Ada"})
        before = await state(client)
        tabs = [await open_tab(client), await open_tab(client)]
        status = await post(client, "/logout")
        codes = [await close_code(tab) for tab in tabs]
        after = await state(client)

        assert status == 204
        assert codes == [4401, 4401]
        assert after["user"] is None
        assert after["id"] not in (None, before["id"])

    async def test_leaves_other_sessions_alone(self, clients: list[Client]) -> None:
        """A log-out does not affect the user's other sessions."""
        ada, same, _ = clients
        tab = await open_tab(same)
        await post(ada, "/logout")

        await tab.send_str("still here")
        assert (await receive(tab, "said"))["text"] == "still here"
        assert (await state(same))["user"] == "Ada"

    @pytest.mark.parametrize("path", ["/reset", "/login", "/logout", "/logout-everywhere"])
    async def test_not_by_link(self, client: Client, path: str) -> None:
        """A GET request to a button's path gets a 405."""
        async with client.get(path) as response:
            assert response.status == 405


class TestLogOutEverywhere:
    async def test_ends_all_sessions_of_user(self, clients: list[Client]) -> None:
        """A log-out everywhere closes the user's tabs in all sessions, and no one else's."""
        tabs = [await open_tab(visitor) for visitor in clients]
        status = await post(clients[0], "/logout-everywhere")
        codes = [await close_code(tab) for tab in tabs[:2]]
        await tabs[2].send_str("still here")

        assert status == 204
        assert codes == [4401, 4401]
        assert (await receive(tabs[2], "said"))["text"] == "still here"
        assert [(await state(visitor))["user"] for visitor in clients] == [None, None, "Bob"]

    async def test_ends_session_without_socket(self, clients: list[Client]) -> None:
        """A log-out everywhere also ends a session without a socket."""
        await post(clients[0], "/logout-everywhere")

        assert (await state(clients[1]))["user"] is None

    async def test_same_name_again(self, clients: list[Client]) -> None:
        """A log-in after a log-out everywhere is not ended by it."""
        await post(clients[0], "/logout-everywhere")
        for visitor in clients[:2]:
            await post(visitor, "/login", {"name": "Ada"})
            welcome = await receive(await visitor.ws_connect("/ws"), "session")
            assert welcome["user"] == "Ada"

    async def test_nobody(self, client: Client) -> None:
        """A log-out everywhere by an anonymous visitor closes the visitor's socket."""
        tab = await open_tab(client)
        await post(client, "/logout-everywhere")

        assert await close_code(tab) == 4401


class TestLogOutElsewhere:
    async def test_spares_this_session(self, clients: list[Client]) -> None:
        """A log-out elsewhere ends the user's other sessions, not this one or another user's."""
        tabs = [await open_tab(visitor) for visitor in clients]
        status = await post(clients[0], "/logout-elsewhere")
        codes = [await close_code(tab) for tab in tabs[:2]]
        await tabs[2].send_str("still here")

        assert (status, codes) == (204, [4403, 4401])
        assert (await receive(tabs[2], "said"))["text"] == "still here"
        assert [(await state(visitor))["user"] for visitor in clients] == ["Ada", None, "Bob"]
        welcome = await receive(await clients[0].ws_connect("/ws"), "session")
        assert welcome["user"] == "Ada"

    async def test_nobody(self, client: Client) -> None:
        """A log-out elsewhere by an anonymous visitor gets a 409."""
        assert await post(client, "/logout-elsewhere") == 409


class Demo(Process):
    """A process of the demo that uses a Redis."""

    def __init__(self, redis: str) -> None:
        command = [sys.executable, "-u", "-m", "demo", "--port", "0", "--redis", redis]
        super().__init__("demo", command)

    async def start(self) -> str:
        """Start it; return its URL."""
        self.launch()
        found = re.search(r"http://\S+:\d+", await self.said("Open http"))
        assert found is not None
        return found[0]


@pytest.fixture
async def shared(redis_server: RedisServer) -> AsyncIterator[list[str]]:
    """Run two demos that share a Redis; return their URLs."""
    demos = [Demo(redis_server.url), Demo(redis_server.url)]
    try:
        yield [await demo.start() for demo in demos]
    finally:
        for demo in demos:
            await demo.stop()


class TestTwoServers:
    async def test_are_one(self, shared: list[str]) -> None:
        """A log-in, a message and a log-out on one server take effect on both."""
        async with ClientSession(cookie_jar=CookieJar(unsafe=True)) as browser:
            await browser.get(shared[0])
            await browser.post(f"{shared[0]}/login", data={"name": "Ada"})
            tabs = [await browser.ws_connect(f"{url}/ws") for url in shared]
            users = [(await receive(tab, "session"))["user"] for tab in tabs]
            while (await receive(tabs[0], "sockets"))["count"] != 2:
                pass
            await tabs[1].send_str("hello")
            said = [(await receive(tab, "said"))["text"] for tab in tabs]
            async with browser.post(f"{shared[1]}/logout") as response:
                assert response.status == 204
            codes = [await close_code(tab) for tab in tabs]

        assert users == ["Ada", "Ada"]
        assert said == ["hello", "hello"]
        assert codes == [4401, 4401]

    async def test_share_the_board(self, shared: list[str]) -> None:
        """A note written on one server is received on the other."""
        async with ClientSession(cookie_jar=CookieJar(unsafe=True)) as browser:
            await browser.get(shared[0])
            await browser.post(f"{shared[0]}/login", data={"name": "Ada"})
            tabs = [
                await browser.ws_connect(f"{url}/calls/ws", protocols=["wamp.2.json"])
                for url in shared
            ]
            for tab in tabs:
                await tab.send_json([1, "", {"roles": {}}])
                await tab.send_json([32, 1, {}, "demo.board"])
                kinds = [(await tab.receive_json(timeout=PATIENCE))[0] for _ in range(2)]
                assert kinds == [2, 33]
            await tabs[0].send_json([48, 2, {}, "demo.write", ["hello"]])
            event = await tabs[1].receive_json(timeout=PATIENCE)

        assert event[4] == [{"who": "Ada", "text": "hello"}]

    async def test_stale_cookie(self, shared: list[str]) -> None:
        """A cookie from before a log-out is refused by the other server."""
        async with ClientSession(cookie_jar=CookieJar(unsafe=True)) as browser:
            await browser.get(shared[0])
            await browser.post(f"{shared[0]}/login", data={"name": "Ada"})
            cookies = browser.cookie_jar.filter_cookies(URL(shared[0]))
            stale = cookies.output(header="", sep=";").strip()
            await browser.post(f"{shared[0]}/logout")
        async with ClientSession(cookie_jar=DummyCookieJar()) as thief:
            ws = await thief.ws_connect(f"{shared[1]}/ws", headers={"Cookie": stale})

            assert await close_code(ws) == 4401

    async def test_while_redis_is_away(self, shared: list[str], redis_server: RedisServer) -> None:
        """A log-out during an outage closes sockets here at once, and elsewhere afterwards."""
        async with ClientSession(cookie_jar=CookieJar(unsafe=True)) as browser:
            await browser.get(shared[0])
            tabs = [await browser.ws_connect(f"{url}/ws") for url in shared]
            for tab in tabs:
                await receive(tab, "session")
            redis_server.kill()
            await browser.post(f"{shared[0]}/logout")
            codes = [await close_code(tabs[0])]
            await redis_server.restart()
            while (message := await tabs[1].receive(timeout=PATIENCE)).type is WSMsgType.TEXT:
                pass

        assert [*codes, message.data] == [4401, 4401]


class TestCommand:
    @pytest.mark.parametrize("url", ["redis://:s3cret@127.0.0.1:1/0", "http://s3cret@here"])
    def test_no_redis(self, url: str) -> None:
        """A Redis that can't be used gives one line of error without secrets, and exit code 1."""
        command = [sys.executable, "-m", "demo", "--redis", url, "--port", "0"]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)

        assert (result.returncode, result.stdout) == (1, "")
        assert re.fullmatch("demo: .*(is it running|is a URL).*\n", result.stderr)
        assert "s3cret" not in result.stderr

    @pytest.fixture
    def process(self) -> Iterator[subprocess.Popen[str]]:
        """Run the demo."""
        command = [sys.executable, "-m", "demo", "--port", "0"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            try:
                yield process
            finally:
                process.terminate()

    def test_serves(self, process: subprocess.Popen[str]) -> None:
        """The demo prints its URL, serves its page there, and exits with 0 when terminated."""
        assert process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
        assert found is not None
        with urllib.request.urlopen(found[0], timeout=10) as response:
            page = response.read().decode()
        process.terminate()

        assert "aiohttp_session_ws" in page
        assert process.wait(timeout=10) == 0

    def test_port_taken(self) -> None:
        """A port that is taken gives one line of error, and exit code 1."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            command = [sys.executable, "-m", "demo", "--port", str(port)]
            result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)

        assert result.returncode == 1
        assert result.stdout == ""
        assert re.fullmatch(
            rf"demo: can't listen on 127\.0\.0\.1 port {port}: .+\n", result.stderr
        )
