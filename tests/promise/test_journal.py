"""
With a journal, ended sessions stay ended after a restart.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import threading
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from aiohttp import ClientSession, DummyCookieJar, web

from aiohttp_session_ws import Expiry, SessionWSRegistry
from aiohttp_session_ws.exceptions import InvalidIdentity, InvalidSessionWSId, JournalError
from aiohttp_session_ws.registry import effects
from aiohttp_session_ws.sessions import journal_writer
from aiohttp_session_ws.sessions.journal_file import JournalFile
from aiohttp_session_ws.sessions.journal_rows import Row
from aiohttp_session_ws.sessions.records import Records
from tests.support import PATIENCE, AiohttpClient, Client, expect_close, make_app, until
from tests.support.app import user_of
from tests.support.clock import Wall
from tests.support.inspect import inspect
from tests.support.people import outcome, seen_as, session_of
from tests.support.processes import Process
from tests.support.seconds import Seconds

Start: TypeAlias = Callable[[], Awaitable[Client]]

#: A server process with a journal and cookie sessions.
PROGRAM = """
import sys
from aiohttp import web
from aiohttp_session_ws import Expiry, SessionWSRegistry
from tests.support import make_app
from tests.support.app import user_of

registry = SessionWSRegistry(identify=user_of, journal=sys.argv[1])
web.run_app(make_app(registry), host="127.0.0.1", port=int(sys.argv[2]))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of the journal."""
    return tmp_path / "ends.db"


@pytest.fixture
def start(aiohttp_client: AiohttpClient, path: Path) -> Start:
    """Start applications with the journal."""

    async def start() -> Client:
        return await aiohttp_client(make_app(SessionWSRegistry(identify=user_of, journal=path)))

    return start


async def out(client: Client, cookie: str, path: str = "/out/end_session_ws") -> None:
    """Log out with *cookie*."""
    client.session.cookie_jar.clear()
    async with client.get(path, headers={"Cookie": cookie}, allow_redirects=False) as response:
        assert response.status < 400


def take_away(path: Path, *, moved: bool) -> None:
    """Delete a file, or replace it by an empty one, as clean-up and rotation jobs do."""
    if moved:
        path.rename(path.with_suffix(".old"))
        path.touch()
    else:
        path.unlink()


class TestRestart:
    @pytest.mark.parametrize(
        "way", ["end_session_ws", "invalidate", "new_session", "pattern", "everywhere"]
    )
    async def test_log_out(self, start: Start, way: str) -> None:
        """A cookie that was logged out, by any log-out, stays ended after a restart."""
        client = await start()
        cookie, other = await session_of(client), await session_of(client, "bob")
        await out(client, cookie, f"/out/{way}")
        await client.close()
        client = await start()

        # The response of the pattern of 1.1.1 carries the next session.
        assert await outcome(client, cookie) == (4403 if way == "pattern" else 4401)
        assert await seen_as(client, cookie) is None
        assert await outcome(client, other) == "bob"

    async def test_older_cookie(self, start: Start) -> None:
        """A cookie from before a renewal stays ended after a restart."""
        client = await start()
        older = await session_of(client)
        async with client.get("/renew", headers={"Cookie": older}) as response:
            newer = response.headers["Set-Cookie"].partition(";")[0]
        await out(client, newer)
        await client.close()
        client = await start()

        assert [await outcome(client, cookie) for cookie in (older, newer)] == [4401, 4401]

    async def test_damaged(self, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        """The file that replaces a damaged one holds earlier and later ends."""

        def find_damage(self: JournalFile, rows: object) -> None:
            exc = sqlite3.DatabaseError("database disk image is malformed")
            exc.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise exc

        client = await start()
        ann, bob = await session_of(client), await session_of(client, "bob")
        await out(client, ann)
        with monkeypatch.context() as broken:
            broken.setattr(JournalFile, "write", find_damage)
            await out(client, bob)
        await client.close()
        client = await start()

        assert [await outcome(client, cookie) for cookie in (ann, bob)] == [4401, 4401]

    @pytest.mark.parametrize("moved", [False, True])
    async def test_deleted(self, start: Start, path: Path, moved: bool) -> None:
        """The file that replaces one taken away holds earlier and later ends."""
        client = await start()
        ann, bob = await session_of(client), await session_of(client, "bob")
        await out(client, ann)
        take_away(path, moved=moved)
        await out(client, bob)
        await client.close()
        client = await start()

        assert [await outcome(client, cookie) for cookie in (ann, bob)] == [4401, 4401]

    @pytest.mark.parametrize("stops", [False, True])
    async def test_damaged_with_much_to_write(
        self,
        aiohttp_client: AiohttpClient,
        start: Start,
        path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        *,
        stops: bool,
    ) -> None:
        """
        Rewriting all records leaves room for new ones, however slow the disk is; all are written
        even if the process stops before.
        """
        monkeypatch.setattr(effects, "BATCH", 1)
        monkeypatch.setattr(journal_writer, "BACKLOG", 1000 if stops else 20)
        monkeypatch.setattr(journal_writer, "RETRY", 0.0)
        write, works, damaged = JournalFile.write, threading.Event(), [True]

        def write_slowly(self: JournalFile, rows: list[Row]) -> None:
            if damaged and damaged.pop():
                exc = sqlite3.DatabaseError("database disk image is malformed")
                exc.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
                raise exc
            works.wait(PATIENCE)
            write(self, rows)

        registry = SessionWSRegistry(identify=user_of, journal=path)
        client = await aiohttp_client(make_app(registry))
        cookies = [await session_of(client, f"user{number}") for number in range(30)]
        last = await session_of(client)
        for cookie in cookies:
            await out(client, cookie)
        with monkeypatch.context() as slow:
            slow.setattr(JournalFile, "write", write_slowly)
            await out(client, await session_of(client, "bob"))
            await out(client, last)  # which waits a moment for its commit
            closing = asyncio.ensure_future(client.close()) if stops else None
            if not stops:
                works.set()
            await until(lambda: not len(inspect(registry).tasks))
            works.set()
            await (closing or client.close())
        client = await start()

        assert "backlog is full" not in caplog.text
        assert {await outcome(client, cookie) for cookie in (*cookies, last)} == {4401}

    @pytest.mark.parametrize("seconds", [4.0, 3600.0])  # 3600: beginnings in the future count, too
    async def test_clock_set_back(
        self, start: Start, seconds: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An end ordered after the clock was set back ends sessions that began before."""
        wall = Wall(monkeypatch)
        client = await start()
        cookie = await session_of(client)
        await out(client, await session_of(client, "bob"))
        await client.close()
        wall.set_back(seconds)
        client = await start()
        assert await outcome(client, cookie) == "ann"
        await out(client, await session_of(client), "/out/everywhere")

        assert await outcome(client, cookie) == 4401

    async def test_clock_set_forward(self, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        """A clock set far ahead during one run doesn't expire the recorded ends."""
        wall = Wall(monkeypatch)
        client = await start()
        cookie = await session_of(client)
        await out(client, cookie)
        await client.close()
        tidied = list[bool]()
        tidy = JournalFile.tidy
        with monkeypatch.context() as quick:
            quick.setattr(journal_writer, "TIDY", 0.1)
            quick.setattr(JournalFile, "tidy", lambda self: tidied.append(tidy(self)))
            wall.advance(1e9)
            client = await start()
            codes = [await outcome(client, cookie)]
            await until(lambda: bool(tidied))
            await client.close()
        wall.set_back(1e9)
        client = await start()
        codes.append(await outcome(client, cookie))

        assert codes == [4401, 4401]

    async def test_clock_set_forward_meanwhile(
        self, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A clock set far ahead just before the process stops doesn't expire any ends."""
        wall = Wall(monkeypatch)
        client = await start()
        cookie = await session_of(client)
        await out(client, cookie)
        wall.advance(1e9)
        await out(client, await session_of(client, "bob"))
        await client.close()
        wall.set_back(1e9)
        client = await start()

        assert await outcome(client, cookie) == 4401
        assert await outcome(client, await session_of(client)) == "ann"

    async def test_kill(self, path: Path, unused_tcp_port_factory: Callable[[], int]) -> None:
        """A log-out whose response has arrived survives ``kill -9``."""
        codes = []
        cookie = None
        async with ClientSession(cookie_jar=DummyCookieJar()) as browser:
            for _ in range(2):
                port = unused_tcp_port_factory()
                command = [sys.executable, "-u", "-c", PROGRAM, str(path), str(port)]
                process = Process("app", command)
                process.launch()
                await process.said("Running on")
                url = f"http://127.0.0.1:{port}"
                if cookie is None:
                    async with browser.get(f"{url}/enter") as response:
                        cookie = response.headers["Set-Cookie"].partition(";")[0]
                    headers = {"Cookie": cookie}
                    async with browser.get(f"{url}/out/end_session_ws", headers=headers):
                        pass
                async with browser.ws_connect(f"{url}/ws", headers=headers) as ws:
                    codes.append((await ws.receive()).data)
                process.kill()

        assert codes == [4401, 4401]


class TestTrouble:
    async def test_second_application(self, start: Start, path: Path) -> None:
        """A second application with the same journal fails to start; the error says what to do."""
        await start()
        runner = web.AppRunner(make_app(SessionWSRegistry(journal=path)))
        with pytest.raises(JournalError, match="a path of its own, or use RedisSessionWSRegistry"):
            await runner.setup()
        await runner.cleanup()

    async def test_failing_disk(self, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        """A log-out works with a failing disk; the report and the state show it isn't stored."""
        client = await start()
        cookie = await session_of(client)
        registry: SessionWSRegistry = client.app["aiohttp_session_ws_registry"]
        states = [registry.state]

        def fail(self: JournalFile, rows: object) -> None:
            exc = sqlite3.OperationalError("database or disk is full")
            exc.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise exc

        monkeypatch.setattr(JournalFile, "write", fail)
        report = await registry.end_identity("ann")
        states.append(registry.state)

        assert (report.stored, states) == (False, ["connected", "degraded"])
        assert await outcome(client, cookie) == 4401

    async def test_disk_that_fails_at_the_start(
        self, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ends that can't be read at the start apply once the disk works, to open sockets too."""
        monkeypatch.setattr(journal_writer, "RETRY", 0.01)
        client = await start()
        stale, other = await session_of(client), await session_of(client, "bob")
        await out(client, stale)
        await client.server.close()
        load, works = JournalFile.load, threading.Event()

        def fail(self: JournalFile) -> Any:
            if works.is_set():
                return load(self)
            exc = sqlite3.OperationalError("disk I/O error")
            exc.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise exc

        monkeypatch.setattr(JournalFile, "load", fail)
        client = await start()
        registry: SessionWSRegistry = client.app["aiohttp_session_ws_registry"]
        assert registry.state == "degraded"
        async with client.ws_connect("/ws", headers={"Cookie": stale}) as ws:
            await ws.receive(timeout=PATIENCE)
            await registry.end_identity("carl")  # not written before the rest is read
            works.set()
            assert await expect_close(ws) == 4401

        await until(lambda: registry.state == "connected")
        assert (await seen_as(client, stale), await outcome(client, stale)) == (None, 4401)
        assert await outcome(client, other) == "bob"

    async def test_slow_disk(self, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        """The response of a log-out waits for a slow disk only for a limited time."""
        client = await start()
        cookie = await session_of(client)
        release = asyncio.Event()
        loop = asyncio.get_running_loop()
        write = JournalFile.write

        def hang(self: JournalFile, rows: Any) -> None:
            asyncio.run_coroutine_threadsafe(release.wait(), loop).result(20)
            write(self, rows)

        monkeypatch.setattr(JournalFile, "write", hang)
        began = loop.time()
        await out(client, cookie)
        waited = loop.time() - began
        release.set()

        assert 0.2 < waited < 5
        assert await outcome(client, cookie) == 4401

    async def test_unfit_identity(self, start: Start) -> None:
        """An id or identity that the journal can't store raises an error."""
        client = await start()
        registry: SessionWSRegistry = client.app["aiohttp_session_ws_registry"]
        with pytest.raises(InvalidIdentity, match="a UUID can't be stored"):
            await registry.end_identity(uuid.uuid4())
        with pytest.raises(InvalidSessionWSId, match="a float can't be stored"):
            await registry.end_session(1.5)

    def test_wrong_type(self) -> None:
        """A wrong type is an error at construction that names the option."""
        with pytest.raises(TypeError, match="journal must be a str or Path"):
            SessionWSRegistry(journal=web.Application())  # type: ignore[arg-type]


class TestMet:
    async def test_stale_cookie_in_use(
        self, path: Path, aiohttp_client: AiohttpClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A record whose cookie keeps being used outlives its TTL, on disk too."""
        monkeypatch.setattr(journal_writer, "TIDY", 0.1)
        wall, seconds = Wall(monkeypatch), Seconds()
        defaults = Records.__init__.__kwdefaults__
        assert defaults is not None
        monkeypatch.setitem(defaults, "clock", seconds)
        expiry = Expiry(revocation_ttl=3600.0)
        clients = []

        tidy, rounds = JournalFile.tidy, list[bool]()

        def tidy_and_tell(self: JournalFile) -> bool:
            more = tidy(self)
            rounds.append(more)
            return more

        monkeypatch.setattr(JournalFile, "tidy", tidy_and_tell)
        for _ in range(2):
            registry = SessionWSRegistry(identify=user_of, journal=path, expiry=expiry)
            client = await aiohttp_client(make_app(registry))
            clients.append(client)
            if len(clients) == 1:
                cookie = await session_of(client)
                await out(client, cookie)
                for _ in range(4):
                    assert await outcome(client, cookie) in (4401, 4403)
                    wall.advance(1800.0)
                    seconds.now += 1800.0
                    tidied = len(rounds) + 2  # the first round may have begun before
                    await until(lambda tidied=tidied: len(rounds) >= tidied)  # type: ignore[misc]
                await client.close()

        assert await outcome(clients[1], cookie) == 4401
