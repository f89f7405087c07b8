"""
The programs of the README and the guide run, and do what the text around them says.
"""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import aiohttp_session
import pytest
from aiohttp import WSServerHandshakeError, web
from aiohttp_session import SimpleCookieStorage

from aiohttp_session_ws import SessionWSRegistry
from tests.support import AiohttpClient, expect_close, make_app, until
from tests.support.people import outcome, session_of
from tests.support.processes import ROOT

from .documents import (
    AUTHORIZE,
    CALLS,
    CONVERSATIONS,
    DOCUMENTS,
    DRAIN,
    HANDLERS,
    IDENTITY,
    JOURNAL,
    LABELS,
    LOOKING,
    NAIVE,
    OPTIONS,
    ORDERS,
    PROGRAM,
    PROOF,
    PUSHING,
    RECIPE,
    REFRESH,
    SIGNALS,
    START,
    TEST,
    TESTING,
    THREADS,
    TIME,
    blocks,
    parse,
    program,
    run,
)


class TestDocuments:
    @pytest.mark.parametrize("name", DOCUMENTS)
    def test_is_valid(self, name: str) -> None:
        """Each document is well-formed reStructuredText."""
        assert parse(name).children

    def test_stays_short(self) -> None:
        """The README and its first program stay short enough to be read to the end."""
        # It has three programs and a picture; the rest has 200 lines.
        assert len((ROOT / "README.rst").read_text("utf-8").splitlines()) <= 320
        assert len(PROGRAM.splitlines()) <= 75  # the page is a quarter of it

    def test_commands(self) -> None:
        """The README's other blocks are the commands that tests and CI run."""
        assert blocks(python=False) == [START, RECIPE, TEST]
        assert "README.rst" in (ROOT / ".ci/run").read_text("utf-8")

    def test_names_no_machine(self) -> None:
        """No document contains a path of the machine that it was written on."""
        for name in DOCUMENTS:
            assert not re.search(r"/(work|root|home|tmp)/", (ROOT / name).read_text("utf-8"))


class TestPrograms:
    async def test_the_complete_one(self) -> None:
        """The guide's example of a test passes with the README's program."""
        await run(TESTING)["log_out_closes_the_socket"](run(PROGRAM)["make_app"]())

    async def test_handlers(self, aiohttp_client: AiohttpClient) -> None:
        """The ticker sends ten numbers, and the echo returns a message."""
        app = make_app()
        app.add_routes(run(HANDLERS)["routes"])
        client = await aiohttp_client(app)
        async with client.ws_connect("/ticker") as ws:
            numbers = [(await ws.receive_json())["number"] for _ in range(10)]
            assert await expect_close(ws) == 1000
        async with client.ws_connect("/echo") as ws:
            await ws.send_str("x")

            assert await ws.receive_str() == "x"
        assert numbers == list(range(10))

    async def test_calls(
        self, aiohttp_client: AiohttpClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A purchase asks its caller and is published to subscribers; a log-out ends it all."""
        app = program()
        monkeypatch.setitem(sys.modules, "app", app)
        served = app.make_app()
        served.add_routes(run(CALLS)["routes"])
        client = await aiohttp_client(served)
        await client.post("/log-in?name=ann")
        async with client.ws_connect("/rpc", protocols=["wamp.2.json"]) as ws:
            said: list[list[object]] = [
                [1, "", {"roles": {}}],
                [64, 1, {}, "confirm"],
                [32, 2, {}, "shop.stock.tea"],
                [48, 3, {"receive_progress": True}, "shop.countdown", ["2"]],
            ]
            for message in said:
                await ws.send_json(message)
            heard = [await ws.receive_json() for _ in range(6)]
            await ws.send_json([48, 4, {}, "shop.buy", [], {"item": "tea", "count": 2}])
            question = await ws.receive_json()
            await ws.send_json([70, question[1], {}, [True]])
            event, bought = sorted([await ws.receive_json() for _ in range(2)])
            await client.post("/log-out")
            goodbye = await ws.receive_json()

            assert (goodbye[2], await expect_close(ws)) == ("wamp.close.killed", 4401)
        # Answers arrive in any order: from Python 3.12 on calls start at once.
        assert sorted(message[0] for message in heard) == [2, 33, 50, 50, 50, 65]
        assert question[4] == ["Buy 2 tea?"]
        assert (event[4], bought) == ([8], [50, 4, {}, [2]])

    async def test_page_is_told(self, aiohttp_client: AiohttpClient) -> None:
        """A visitor's socket is closed with 4401; a log-in as another user closes with 4403."""
        client = await aiohttp_client(run(PROGRAM)["make_app"]())
        assert "<!doctype html>" in await (await client.get("/")).text()
        async with client.ws_connect("/ws") as ws:
            message = await ws.receive()
            assert (message.data, message.extra) == (4401, "log in first")
        said = []
        for name in ("ann", "bob"):
            await client.post(f"/log-in?name={name}")
            ws = await client.ws_connect("/ws")
            said.append(await ws.receive_str())
        await client.post("/log-in?name=eve")

        assert said == ["hello, ann", "hello, bob"]
        assert await expect_close(ws) == 4403

    async def test_options(
        self, aiohttp_client: AiohttpClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Only users of the listed origin can connect; the journal is at the given path."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setitem(sys.modules, "app", program())
        client = await aiohttp_client(make_app(run(OPTIONS)["registry"]))
        statuses = []
        for headers in ({"Origin": "https://evil.example"}, {}):
            with pytest.raises(WSServerHandshakeError) as refused:
                await client.ws_connect("/ws", headers=headers)
            statuses.append(refused.value.status)
        await client.get("/login")
        async with client.ws_connect("/ws", origin="https://example.org") as ws:
            assert (await ws.receive()).json()[1] == "ann"
        assert statuses == [403, 403]
        assert (tmp_path / "ends.db").exists()

    async def test_program_starts(self, unused_tcp_port: int) -> None:
        """The README's application runs, and answers a request that is no handshake with 400."""
        namespace = run(PROGRAM)
        runner = web.AppRunner(namespace["make_app"]())
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", unused_tcp_port)
        await site.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", unused_tcp_port)
        writer.write(b"GET /ws HTTP/1.0\r\n\r\n")
        answer = await reader.readline()
        writer.close()
        await writer.wait_closed()
        await runner.cleanup()

        assert answer.startswith(b"HTTP/1.0 400")


class TestGuide:
    async def test_naive(self, aiohttp_client: AiohttpClient) -> None:
        """The naive program closes a socket at log-out in a simple demonstration."""

        async def log_in(request: web.Request) -> web.Response:
            (await aiohttp_session.get_session(request))["user"] = "ann"
            return web.Response()

        names = run(NAIVE)
        app = web.Application(
            middlewares=[aiohttp_session.session_middleware(SimpleCookieStorage())]
        )
        app.router.add_get("/login", log_in)
        app.router.add_get("/ws", names["websocket"])
        app.router.add_get("/logout", names["log_out"])
        client = await aiohttp_client(app)
        await client.get("/login")
        async with client.ws_connect("/ws") as ws:
            await ws.send_str("x")
            assert await ws.receive_str() == "x"
            await client.get("/logout")
            assert await expect_close(ws) == 1000

    async def test_authorize(self, aiohttp_client: AiohttpClient) -> None:
        """An anonymous visitor is told to log in; a user can connect."""
        client = await aiohttp_client(make_app(run(AUTHORIZE)["registry"]))
        await client.get("/whoami")
        async with client.ws_connect("/ws") as ws:
            message = await ws.receive()
            assert (message.data, message.extra) == (4401, "log in first")
        await client.get("/login")
        async with client.ws_connect("/ws") as ws:
            assert (await ws.receive()).json()[1] == "ann"

    async def test_journal(
        self, aiohttp_client: AiohttpClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A cookie of an ended session is refused after a restart, too."""
        monkeypatch.chdir(tmp_path)
        client = await aiohttp_client(make_app(run(JOURNAL)["registry"]))
        cookie = await session_of(client)
        codes = [await outcome(client, cookie)]
        await client.get("/out/end_session_ws", headers={"Cookie": cookie})
        await client.close()
        client = await aiohttp_client(make_app(run(JOURNAL)["registry"]))
        codes.append(await outcome(client, cookie))

        assert codes == ["ann", 4401]

    async def test_orders(self, aiohttp_client: AiohttpClient) -> None:
        """A changed right closes sockets with 4403, and a lock-out with 4401."""
        names = run(ORDERS)
        app = make_app()
        app.router.add_get("/rights", names["change_rights"])
        app.router.add_get("/lock/{id}", names["lock_out"])
        client = await aiohttp_client(app)
        await client.get("/login")
        async with client.ws_connect("/ws") as ws:
            await client.get("/rights")
            renewed = await expect_close(ws)
        async with client.ws_connect("/ws") as ws:
            id_ = (await ws.receive()).json()[0]
            text = await (await client.get(f"/lock/{id_}")).text()

            assert (text, renewed, await expect_close(ws)) == ("1 closed", 4403, 4401)

    async def test_conversations(self, aiohttp_client: AiohttpClient) -> None:
        """Only a client that offers the subprotocol "chat" gets a conversation."""
        names = run(CONVERSATIONS)
        app = make_app(names["registry"])
        app.router.add_get("/chat", names["chat"])
        client = await aiohttp_client(app)
        async with client.ws_connect("/chat") as ws:
            assert await expect_close(ws) == 1002
        async with client.ws_connect("/chat", protocols=["chat"]) as ws:
            await ws.send_str("Ann")
            texts = [await ws.receive_str() for _ in range(2)]

            assert (texts, await expect_close(ws)) == (["welcome, Ann", "goodbye"], 1000)

    async def test_identity(self, aiohttp_client: AiohttpClient) -> None:
        """A user can log out everywhere, or everywhere else."""
        names = run(IDENTITY)
        app = make_app(names["registry"])
        app.router.add_get("/enter", names["log_in"])
        app.router.add_get("/everywhere", names["log_out_everywhere"])
        app.router.add_get("/elsewhere", names["log_out_elsewhere"])
        client = await aiohttp_client(app)
        sockets = []
        for _ in range(3):
            client.session.cookie_jar.clear()
            await client.get("/enter?name=ann")
            sockets.append(await client.ws_connect("/ws"))
            await sockets[-1].receive()
        await client.get("/elsewhere")
        codes = [await expect_close(ws) for ws in sockets]
        async with client.ws_connect("/ws") as ws:
            user = (await ws.receive_json())[1]
            await client.get("/everywhere")

            assert (codes, user, await expect_close(ws)) == ([4401, 4401, 4403], "ann", 4401)

    async def test_log_in_and_out(self, aiohttp_client: AiohttpClient) -> None:
        """A log-in and a log-out are detected by ``identify``, without a further call."""
        names = run(IDENTITY)
        app = make_app(names["registry"])
        app.router.add_get("/in", names["log_in"])
        app.router.add_get("/exit", names["log_out"])
        client = await aiohttp_client(app)
        await client.get("/whoami")
        codes = []
        for path in ("/in?name=ann", "/exit"):
            ws = await client.ws_connect("/ws")
            await client.get(path)
            codes.append(await expect_close(ws))

        assert codes == [4403, 4401]

    async def test_labels(self, aiohttp_client: AiohttpClient) -> None:
        """An end by label ends the sessions of one device only."""
        names = run(LABELS)

        async def enter(request: web.Request) -> web.Response:
            session = await aiohttp_session.get_session(request)
            session["device"] = request.query["device"]
            return web.Response()

        app = make_app(names["registry"])
        app.router.add_get("/device", enter)
        app.router.add_get("/lock/{device}", names["lock_device"])
        client = await aiohttp_client(app)
        sockets = []
        for device in ("phone", "desk"):
            client.session.cookie_jar.clear()
            await client.get(f"/device?device={device}")
            sockets.append(await client.ws_connect("/ws"))
        text = await (await client.get("/lock/phone")).text()
        await sockets[1].receive()
        await sockets[1].send_str("still there?")

        assert (text, await expect_close(sockets[0])) == ("1 closed", 4401)
        assert await sockets[1].receive_str() == "still there?"

    async def test_refresh(self, aiohttp_client: AiohttpClient) -> None:
        """A socket survives a refresh, receives a message about it, and ends with the session."""
        names = run(REFRESH)
        app = make_app(names["registry"])
        app.router.add_get("/refresh", names["refresh_token"])
        client = await aiohttp_client(app)
        await client.get("/login")
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            await client.get("/refresh?token=x")
            told = await ws.receive_str()
            await client.get("/out/end_session_ws")

            assert (told, await expect_close(ws)) == ("your token is fresh", 4401)

    async def test_proof(self, aiohttp_client: AiohttpClient) -> None:
        """A socket with a proven identity is closed by an end of that identity."""
        names = run(PROOF)
        registry = names["registry"]
        app = make_app(registry)
        app.router.add_get("/ticketed", names["ticketed"])
        client = await aiohttp_client(app)
        async with client.ws_connect("/ticketed") as ws:
            await ws.send_str("x7k2")
            told = await ws.receive_str()
            await registry.end_identity("ann")

            assert (told, await expect_close(ws)) == ("welcome, ann", 4401)

    async def test_drain(self, aiohttp_client: AiohttpClient) -> None:
        """A drain closes sockets with 1012."""
        names = run(DRAIN)
        client = await aiohttp_client(make_app(names["registry"]))
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            await names["registry"].drain(0)

            assert await expect_close(ws) == 1012

    async def test_pushing_and_looking(self, aiohttp_client: AiohttpClient) -> None:
        """Pushes reach a user and all users, and a query lists the user's tabs."""
        app = make_app(SessionWSRegistry(identify=lambda request: "ann"))
        app.router.add_get("/notify/{user}", run(PUSHING)["notify"])
        app.router.add_get("/tabs/{user}", run(LOOKING)["mine"])
        client = await aiohttp_client(app)
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            await client.get("/notify/ann")
            told = [await ws.receive_json(), await ws.receive_str()]
            tabs = await (await client.get("/tabs/ann")).json()

        assert told == [{"type": "mail"}, "somebody has mail"]
        assert tabs == {"tabs": ["127.0.0.1 /ws, idle for 0 s"], "all": 1}

    def test_options(self) -> None:
        """The guide's options make a registry."""
        assert isinstance(run(TIME)["registry"], SessionWSRegistry)

    async def test_signals(self, aiohttp_client: AiohttpClient) -> None:
        """The signals count a socket that opens, and record the code of its close."""
        names = run(SIGNALS)
        client = await aiohttp_client(make_app(names["registry"]))
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            online = len(names["online"])
        await until(lambda: names["codes"] and not names["online"])

        assert (online, names["codes"]) == (1, [1000])

    async def test_threads(self, aiohttp_client: AiohttpClient) -> None:
        """An order given from another thread closes the user's socket."""
        registry = SessionWSRegistry(identify=lambda request: "ann")
        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            lock_out = run(THREADS)["lock_out"]
            report = await asyncio.to_thread(lock_out, registry, "ann")

            assert await expect_close(ws) == 4401
        assert report.sockets == 1
