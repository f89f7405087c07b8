"""
The command line: its effect on nodes, its output and its exit codes.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, NamedTuple, TypeAlias

import pytest
from aiohttp import ClientSession, ClientWebSocketResponse, CookieJar, WSMsgType, web

from aiohttp_session_ws import __version__
from aiohttp_session_ws._logging import fingerprint
from aiohttp_session_ws.cli import commands
from aiohttp_session_ws.cli.arguments import URL
from aiohttp_session_ws.cli.output import span
from aiohttp_session_ws.cli.watching import screen
from aiohttp_session_ws.redis import RedisSessionWSRegistry
from aiohttp_session_ws.results import ClusterStats, Snapshot, Stats
from tests.support import PATIENCE, AiohttpClient, converse, expect_close, until, user_of
from tests.support.node_process import NodeProcess
from tests.support.nodes import StartNode, acquaint, log_in, node_app, nowhere, refused, socket
from tests.support.processes import ROOT
from tests.support.redis_servers import RedisServer

CODES = [commands.DONE, commands.UNSURE, commands.USAGE, commands.NO_REDIS, commands.INTERRUPTED]
MODULE = [sys.executable, "-W", "error", "-m", "aiohttp_session_ws"]


class Done(NamedTuple):
    """The result of a command."""

    code: int
    out: str
    err: str

    @property
    def body(self) -> dict[str, Any]:
        """The output as JSON."""
        body: dict[str, Any] = json.loads(self.out)
        return body


Run: TypeAlias = Callable[..., Awaitable[Done]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command line as a process would, with the URL in the environment."""

    async def run(url: str, *argv: str) -> Done:
        monkeypatch.setenv(URL, url)
        try:
            code = await asyncio.to_thread(commands.main, argv)
        except SystemExit as exc:
            code = int(str(exc.code))
        return Done(code, *capsys.readouterr())

    return run


async def told(run: Run, url: str, *argv: str) -> Done:
    """Repeat a command while Redis or a process doesn't answer in time."""
    done = None
    try:
        async with asyncio.timeout(PATIENCE):
            while done is None or done.code == 3 or "not all processes answered" in done.err:
                done = await run(url, *argv)
    except TimeoutError:
        pytest.fail(f"within {PATIENCE:g} s {argv} came to no more than {done}")
    return done


async def obeyed(run: Run, url: str, *argv: str) -> Done:
    """Repeat an order until it is given, before which it closes nothing; wait for all reports."""
    done = await told(run, url, *argv, "--wait", f"{PATIENCE}")
    assert done.code == 0, done
    return done


class Cluster(NamedTuple):
    """Two processes with sockets: Ann's on both, in one session, and Bob's on the second."""

    redis: RedisServer
    nodes: list[NodeProcess]
    sockets: list[ClientWebSocketResponse]
    hellos: list[dict[str, Any]]
    ann: ClientSession


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    """Two nodes, as processes of their own, and a Redis with a password."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        redis = await enter(RedisServer(password="s3cret"))
        nodes = [NodeProcess(name, redis=redis.url) for name in ("a", "b")]
        await asyncio.gather(*[enter(node) for node in nodes])
        jars = CookieJar(unsafe=True), CookieJar(unsafe=True)
        ann, bob = [await enter(ClientSession(cookie_jar=jar)) for jar in jars]
        sockets = []
        for browser, user, node in ((ann, "ann", 0), (ann, None, 1), (bob, "bob", 1)):
            url = nodes[node].url
            if user is not None:
                await browser.get(f"{url}/login?user={user}")
            sockets.append(await enter(browser.ws_connect(f"{url}/ws")))
        hellos = [await ws.receive_json(timeout=PATIENCE) for ws in sockets]
        yield Cluster(redis, nodes, sockets, hellos, ann)


async def open_again(cluster: Cluster, node: int) -> int | None:
    """Reconnect as Ann; return the close code if she is refused."""
    async with cluster.ann.ws_connect(f"{cluster.nodes[node].url}/ws") as ws:
        message = await ws.receive(timeout=PATIENCE)
        return int(message.data) if message.type is WSMsgType.CLOSE else None


class TestProcesses:
    async def test_look(self, cluster: Cluster, run: Run) -> None:
        """Processes and sockets are listed with hashes; ids are shown with ``--show-ids``."""
        url, id_ = cluster.redis.url, cluster.hellos[0]["id"]
        nodes, count = await told(run, url, "nodes"), await told(run, url, "count")
        found = await told(run, url, "connections", "--identity", "ann")
        shown = await told(run, url, "--json", "connections", "--show-ids", "--session", id_)

        assert [re.split(" +", line) for line in nodes.out.splitlines()] == [
            ["NODE", "SOCKETS", "SESSIONS", "HANDSHAKES"],
            ["a", "1", "1", "0"],
            ["b", "2", "2", "0"],
        ]
        assert count == (0, "3\n", "")
        assert found.out.count(f"{fingerprint(id_)}  {fingerprint('ann')}  ") == 2
        assert id_ not in found.out
        assert [(c["node"], c["session"], c["identity"]) for c in shown.body["connections"]] == [
            ("a", id_, "ann"),
            ("b", id_, "ann"),
        ]
        assert {nodes.code, count.code, found.code, shown.code} == {0}

    async def test_look_as_json(self, cluster: Cluster, run: Run) -> None:
        """``--json`` prints the same facts as JSON, without session ids."""
        url = cluster.redis.url
        bodies = [
            (await told(run, url, *argv)).body
            for argv in (["count", "--json"], ["--json", "nodes"], ["connections", "--json"])
        ]

        assert bodies[0] == {"sockets": 3, "complete": True}
        assert [node["sockets"] for node in bodies[1]["nodes"]] == [1, 2]
        assert [c["identity_hash"] for c in bodies[2]["connections"]] == [
            fingerprint(user) for user in ("ann", "ann", "bob")
        ]
        assert "session" not in bodies[2]["connections"][0]

    async def test_end_by_hash(self, cluster: Cluster, run: Run) -> None:
        """A session is ended by the hash in the table, on all nodes, and its cookie is refused."""
        url = cluster.redis.url
        shown = await told(run, url, "connections", "--identity", fingerprint("ann"))
        hash_ = shown.out.splitlines()[1].split()[0]
        done = await obeyed(run, url, "end", "--session", hash_, "--json")
        codes = [await expect_close(ws) for ws in cluster.sockets[:2]]

        assert (done.code, codes) == (0, [4401, 4401])
        assert done.body["sockets"] == done.body["nodes_answered"] == 2
        assert done.body["stored"]
        assert [await open_again(cluster, node) for node in (0, 1)] == [4401, 4401]
        await cluster.sockets[2].send_str("still here")
        assert await cluster.sockets[2].receive_str(timeout=PATIENCE) == "still here"

    @pytest.mark.parametrize(
        ("verb", "close", "then"), [("end", 4401, 4401), ("close", 4403, None)]
    )
    async def test_identity(
        self, cluster: Cluster, run: Run, verb: str, close: int, then: int | None
    ) -> None:
        """An order closes all sockets of a user, who may reconnect unless it was ``end``."""
        done = await obeyed(run, cluster.redis.url, verb, "--identity", "ann")
        codes = [await expect_close(ws) for ws in cluster.sockets[:2]]

        assert (done.code, codes) == (0, [close, close])
        assert done.out.startswith("2 sockets ")
        assert done.out.endswith("2 of 2 processes answered\n")
        assert [await open_again(cluster, node) for node in (0, 1)] == [then, then]
        assert not cluster.sockets[2].closed

    async def test_silent_process(self, cluster: Cluster, run: Run) -> None:
        """A process that doesn't answer makes the exit code 1, and obeys when it resumes."""
        cluster.nodes[1].freeze()
        ended = await run(cluster.redis.url, "--wait", "0.5", "end", "--identity", "bob")
        count = await run(cluster.redis.url, "count", "--json")
        cluster.nodes[1].thaw()

        assert (ended.code, count.code) == (1, 1)
        assert "1 of 2 processes didn't answer within 0.5 s" in ended.err
        assert count.body["complete"] is False
        assert await expect_close(cluster.sockets[2]) == 4401

    async def test_hash_of_a_silent_process(self, cluster: Cluster, run: Run) -> None:
        """A hash isn't taken for an id while a process that may know it doesn't answer."""
        hash_ = fingerprint(cluster.hellos[2]["id"])
        cluster.nodes[1].freeze()
        unsure = await run(cluster.redis.url, "end", "--session", hash_, "--wait", "0.1")
        cluster.nodes[1].thaw()
        sure = await obeyed(run, cluster.redis.url, "end", "--session", hash_)

        assert (unsure.code, unsure.out) == (1, "")
        assert "nothing was ordered" in unsure.err
        assert not await cluster.redis.holds(f"*{hash_}*", 1)
        assert (sure.code, await expect_close(cluster.sockets[2])) == (0, 4401)

    async def test_one_socket(self, cluster: Cluster, run: Run) -> None:
        """``close --socket`` closes the socket with this id, and no other."""
        url = cluster.redis.url
        found = (await told(run, url, "connections", "--identity", "bob", "--json")).body
        done = await obeyed(run, url, "close", "--socket", found["connections"][0]["socket"])
        again = await run(url, "close", "--socket", "0123456789ab")

        assert (done.code, await expect_close(cluster.sockets[2])) == (0, 4403)
        assert done.out.startswith("1 socket told to reconnect")
        assert (again.code, "no open socket has this id" in again.err) == (1, True)
        assert not cluster.sockets[0].closed

    async def test_socket_of_a_silent_process(self, cluster: Cluster, run: Run) -> None:
        """A socket isn't reported as missing while a process doesn't answer."""
        cluster.nodes[1].freeze()
        argv = ["close", "--socket", "0123456789ab", "--wait", "0.2"]
        done = await run(cluster.redis.url, *argv)
        cluster.nodes[1].thaw()

        assert done.code == 1
        assert "1 of 2 processes didn't answer within 0.2 s" in done.err
        assert "no open socket" not in done.err

    async def test_stats(self, cluster: Cluster, run: Run) -> None:
        """``stats`` shows the counters of each process, and how sockets have ended."""
        url = cluster.redis.url
        await obeyed(run, url, "end", "--identity", "bob", "--by", "admin:7")
        assert await expect_close(cluster.sockets[2]) == 4401
        table = await told(run, url, "stats")
        body = (await told(run, url, "stats", "--json")).body

        lines = [re.split("  +", line) for line in table.out.splitlines()]
        assert [line[:2] for line in lines[:3]] == [["NODE", "OPEN"], ["a", "1"], ["b", "1"]]
        assert ["order", "4401", "1"] in lines
        assert [node["closes"] for node in body["nodes"]] == [{}, {"order": {"4401": 1}}]
        assert (table.code, body["complete"]) == (0, True)

    async def test_watch(self, cluster: Cluster, run: Run) -> None:
        """``watch`` repeats the table, and shows what has happened since the last one."""
        ending = asyncio.create_task(cluster.sockets[0].close())
        argv = ["watch", "--times", "3", "--every", "0.1"]
        shown = await told(run, cluster.redis.url, *argv)
        as_json = await run(cluster.redis.url, "watch", "--times", "2", "--every", "0.1", "--json")
        await ending

        assert (shown.code, shown.err, shown.out.count("NODE ")) == (0, "", 3)
        assert shown.out.count("WITHIN 0.1 S") == 2
        assert "\x1b" not in shown.out  # the output is no terminal
        looks = [json.loads(line) for line in as_json.out.splitlines()]
        assert [len(look["nodes"]) for look in looks] == [2, 2]

    async def test_as_a_program(self, cluster: Cluster) -> None:
        """The module runs as a program; a closed output pipe is no error."""
        environ = {URL: cluster.redis.url, "PYTHONPATH": str(ROOT)}
        done = await asyncio.to_thread(
            subprocess.run, [*MODULE, "count"], capture_output=True, env=environ, timeout=PATIENCE
        )
        reader, writer = os.pipe()
        os.close(reader)
        program = await asyncio.create_subprocess_exec(
            *MODULE, "nodes", stdout=writer, stderr=subprocess.PIPE, env=environ
        )
        os.close(writer)
        _, err = await program.communicate()

        assert (done.returncode, done.stdout, done.stderr) == (0, b"3\n", b"")
        assert (program.returncode, err) == (0, b"")


class TestWhom:
    async def test_number(
        self, redis_server: RedisServer, start_node: StartNode, run: Run
    ) -> None:
        """``--identity 42`` finds the number 42; with ``--json-ids`` the id is read as JSON."""
        client = await start_node(redis_server.url, identify=lambda request: 42)
        cookie = await log_in(client)
        whose = [["42"], ["42", "--json-ids"], ['"42"', "--json-ids"]]
        async with socket(client, cookie) as ws:
            found = [
                len(
                    (await run(redis_server.url, "connections", "--json", "--identity", *w)).body[
                        "connections"
                    ]
                )
                for w in whose
            ]
            done = await obeyed(run, redis_server.url, "end", "--identity", "42")

            assert await expect_close(ws) == 4401
        assert (done.code, found) == (0, [1, 1, 0])
        assert await refused(client, cookie) == 4401

    async def test_text_that_is_a_number(
        self, redis_server: RedisServer, start_node: StartNode, run: Run
    ) -> None:
        """An identity that is a text of digits is found by these digits."""
        client = await start_node(redis_server.url)
        cookie = await log_in(client, "42")
        async with socket(client, cookie) as ws:
            await obeyed(run, redis_server.url, "end", "--identity", "42")

            assert await expect_close(ws) == 4401

    async def test_hash_of_nobody(
        self, redis_server: RedisServer, start_node: StartNode, run: Run
    ) -> None:
        """A value that looks like a hash, but is unknown, is taken literally, with a warning."""
        client = await start_node(redis_server.url)
        cookie = await log_in(client, "123456789012")
        unsure = await run(redis_server.url, "end", "--identity", "123456789012", "--json")
        sure = await run(redis_server.url, "end", "--json-ids", "--identity", '"123456789012"')

        assert (unsure.code, unsure.body["known"], sure.code) == (1, False, 0)
        assert "no open socket has this hash" in unsure.err
        assert await refused(client, cookie) == 4401
        looked = await run(redis_server.url, "connections", "--identity", "123456789012")
        assert looked.code == 1
        assert "no open socket has this hash" in looked.err

    @pytest.mark.parametrize("who", ["ann", fingerprint("ann")])
    async def test_without_identify(
        self, redis_server: RedisServer, start_node: StartNode, run: Run, who: str
    ) -> None:
        """A result is incomplete if a process doesn't know the identities of its sockets."""
        client = await start_node(redis_server.url, "a")
        await start_node(redis_server.url, "b", identify=None)
        async with socket(client, await log_in(client)):
            done = await run(redis_server.url, "connections", "--json", "--identity", who)

        assert len(done.body["connections"]) == 1
        assert (done.code, done.body["complete"]) == (1, False)

    @pytest.mark.parametrize(
        ("argv", "option"),
        [
            (("end", "--label", "device=phone"), "labels="),
            (("end", "--identity", "ann"), "identify="),
        ],
    )
    async def test_an_order_without_identify(
        self,
        redis_server: RedisServer,
        start_node: StartNode,
        run: Run,
        argv: tuple[str, ...],
        option: str,
    ) -> None:
        """The warning names the option without which a process can't answer."""
        with_labels = await start_node(redis_server.url, "a", labels=lambda request: {})
        without = await start_node(redis_server.url, "b", identify=None)
        await acquaint(with_labels, without)
        done = await run(redis_server.url, *argv, "--wait", f"{PATIENCE}")
        looked = await run(redis_server.url, "connections", *argv[1:])

        assert (done.code, looked.code) == (1, 1)
        assert "1 of 2 processes answered" in done.out
        assert f", or can't without {option}; they" in done.err
        assert f"in time, or can't without {option}:" in looked.err

    async def test_hash_while_redis_is_away(
        self, redis_server: RedisServer, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A lookup that is incomplete at once is repeated after other tasks have run."""
        back: list[bool] = []

        async def connections(_: RedisSessionWSRegistry) -> Snapshot:
            asyncio.get_running_loop().call_soon(back.append, True)
            return Snapshot((), complete=bool(back))

        monkeypatch.setattr(RedisSessionWSRegistry, "connections", connections)
        argv = ["end", "--identity", "123456789012", "--wait", "0.5"]
        done = await run(redis_server.url, *argv)

        assert "no open socket has this hash" in done.err

    async def test_id_like_a_hash(
        self, redis_server: RedisServer, start_node: StartNode, run: Run
    ) -> None:
        """An identity that looks like a hash, and has a socket, is accepted with exit code 0."""
        client = await start_node(redis_server.url)
        cookie = await log_in(client, "123456789012")
        async with socket(client, cookie) as ws:
            done = await obeyed(run, redis_server.url, "close", "--identity", "123456789012")

            assert (done.code, await expect_close(ws)) == (0, 4403)

    async def test_nobody_there(self, redis_server: RedisServer, run: Run) -> None:
        """A command exits with 1 if no process runs, and names the prefix, which may be wrong."""
        watch = ["watch", "--times", "1"]
        close = ["close", "--socket", "x"]
        for argv in (
            ["count"],
            ["nodes"],
            ["connections"],
            ["stats"],
            watch,
            close,
            ["end", "--session", "x"],
        ):
            done = await run(redis_server.url, *argv, "--prefix", "wrong")

            assert done.code == 1
            assert "with this Redis and the prefix 'wrong'\n" in done.err

    async def test_remembered_for(self, redis_server: RedisServer, run: Run) -> None:
        """The end of a session is stored for the number of days given with ``--keep``."""
        await run(redis_server.url, "end", "--session", "x", "--keep", "400")

        ttl = await redis_server.cli("TTL", '{aiohttp_session_ws}:end:id:"x"')
        assert 399 * 86400 < ttl <= 400 * 86400

    @pytest.mark.parametrize("keep", [[], ["--keep", "1"]])
    async def test_sessions_that_last(
        self, redis_server: RedisServer, run: Run, keep: list[str]
    ) -> None:
        """An end is stored for as long as the processes need it, even if ``--keep`` is shorter."""
        await redis_server.cli("SET", "{aiohttp_session_ws}:ttl", 90 * 86400)
        await run(redis_server.url, "end", "--session", "x", *keep)

        ttl = await redis_server.cli("TTL", '{aiohttp_session_ws}:end:id:"x"')
        assert 89 * 86400 < ttl <= 90 * 86400


async def labels_of(request: web.Request) -> dict[str, str | None]:
    """Label a session by its user."""
    return {"user": await user_of(request)}


class TestLabels:
    async def test_label(self, redis_server: RedisServer, start_node: StartNode, run: Run) -> None:
        """Sockets are found, and sessions ended, by a label, whose value may be a number."""
        client = await start_node(redis_server.url, labels=lambda request: {"device": 7})
        cookie, url = await log_in(client), redis_server.url
        async with socket(client, cookie) as ws:
            found = await told(run, url, "connections", "--label", "device=7", "--json")
            other = await told(run, url, "connections", "--label", "device=8", "--json")
            done = await obeyed(run, url, "end", "--label", "device=7", "--json")

            assert await expect_close(ws) == 4401
        assert len(found.body["connections"]) == 1
        assert other.body["connections"] == []
        assert (done.code, done.body["sockets"]) == (0, 1)
        assert await refused(client, cookie) == 4401

    async def test_two_nodes(
        self, redis_server: RedisServer, start_node: StartNode, run: Run
    ) -> None:
        """Commands for a label apply to all nodes."""
        nodes = [await start_node(redis_server.url, name, labels=labels_of) for name in ("a", "b")]
        await acquaint(*nodes)
        url, cookies = redis_server.url, [await log_in(node) for node in nodes]
        async with socket(nodes[0], cookies[0]) as here, socket(nodes[1], cookies[1]) as there:
            found = await told(run, url, "connections", "--label", "user=ann", "--json")
            closed = await obeyed(run, url, "close", "--label", "user=ann", "--json")
            assert (await expect_close(here), await expect_close(there)) == (4403, 4403)
        async with socket(nodes[0], cookies[0]) as here, socket(nodes[1], cookies[1]) as there:
            done = await obeyed(run, url, "end", "--label", "user=ann", "--json")
            assert (await expect_close(here), await expect_close(there)) == (4401, 4401)

        assert {info["node"] for info in found.body["connections"]} == {"a", "b"}
        assert [one.body["sockets"] for one in (closed, done)] == [2, 2]
        assert [await refused(nodes[1], cookie) for cookie in cookies] == [4401, 4401]

    async def test_close(self, redis_server: RedisServer, start_node: StartNode, run: Run) -> None:
        """``close --label`` with ``--json-ids`` closes a socket with 4403."""
        client = await start_node(redis_server.url, labels=lambda request: {"device": 7})
        cookie = await log_in(client)
        async with socket(client, cookie) as ws:
            argv = ["--label", "device=7", "--json-ids"]
            done = await obeyed(run, redis_server.url, "close", *argv)

            assert (done.code, await expect_close(ws)) == (0, 4403)


class TestTrouble:
    async def test_no_redis(self, run: Run) -> None:
        """The error without Redis asks whether it is running, and doesn't contain the password."""
        done = await run(nowhere().replace("//", "//:s3cret@"), "count")

        assert done.code == 3
        assert "is it running, and is the URL right?" in done.err
        assert "s3cret" not in done.err

    async def test_wrong_password(self, run: Run) -> None:
        """The error for a wrong password says so, and doesn't contain the password."""
        async with RedisServer(password="s3cret") as server:
            done = await run(server.url.replace("s3cret", "t0psecret"), "end", "--session", "x")

        assert done.code == 3
        assert "password" in done.err
        assert "t0psecret" not in done.err

    @pytest.mark.parametrize(
        "argv",
        [
            ["--redis", "http://:s3cret@localhost", "count"],
            ["--redis", "s3cret", "count"],
            ["redis://:s3cret@localhost", "count"],
            ["count", "redis://:s3cret@localhost"],
        ],
    )
    async def test_wrong_url(self, run: Run, argv: list[str]) -> None:
        """A URL that is invalid or misplaced is a usage error, and isn't printed."""
        done = await run("", *argv)

        assert (done.code, done.out) == (2, "")
        if "--redis" in argv:
            assert "use redis://, rediss:// or unix://" in done.err
        assert "s3cret" not in done.err

    async def test_no_url(self, run: Run) -> None:
        """A command without a URL is a usage error that names the environment variable."""
        done = await run("", "count")

        assert done.code == 2
        assert f"set the environment variable {URL}" in done.err

    @pytest.mark.parametrize(
        ("argv", "why"),
        [
            (["end"], "required"),
            (["end", "--session", ""], "if it comes from a variable, check that it is set"),
            (["end", "--session", "x", "--identity", "y"], "not allowed with"),
            (["end", "--session", "x", "--wait", "0"], "a number > 0"),
            (["close", "--socket", "x", "--by", "me"], "--by is not for --socket"),
            (["end", "--label", "device"], "NAME=VALUE"),
            (["end", "--label", "device=7", "--session", "x"], "not allowed with"),
            (["watch", "--times", "0"], "a whole number > 0"),
            (["end", "--session", "x", "--keep", "long"], "a number > 0"),
            (["end", "--session", "{}", "--json-ids"], "with --json-ids an id is JSON"),
            (["end", "--identity", "ann", "--json-ids"], "with --json-ids an id is JSON"),
            (["end", "--identity", "null", "--json-ids"], "with --json-ids an id is JSON"),
            (["end", "--identity", "1.5", "--json-ids"], "with --json-ids an id is JSON"),
        ],
    )
    async def test_wrong_options(
        self, redis_server: RedisServer, run: Run, argv: list[str], why: str
    ) -> None:
        """Wrong options are a usage error that names the reason, and nothing is ordered."""
        done = await run(redis_server.url, *argv)

        assert (done.code, done.out) == (2, "")
        assert why in done.err
        assert await redis_server.cli("KEYS", "*:end:*") == []

    @pytest.mark.parametrize("missing", ["redis", "hiredis"])
    def test_without_the_extra(self, missing: str) -> None:
        """The error without redis-py or hiredis says what to install."""
        code = (
            f"import sys; sys.modules['{missing}'] = None;"
            "from aiohttp_session_ws.__main__ import main; sys.exit(main())"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

        assert done.returncode == 2
        assert "pip install 'aiohttp-session-ws[redis]'" in done.stderr

    async def test_redis_goes(
        self, redis_server: RedisServer, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An order that Redis hasn't confirmed ends with exit code 1."""
        resolve = commands.resolve

        def kill_first(*args: Any) -> Any:
            redis_server.kill()
            return resolve(*args)

        monkeypatch.setattr(commands, "resolve", kill_first)
        done = await run(redis_server.url, "end", "--session", "x", "--wait", "0.5")

        assert done.code == 1
        assert "Redis hasn't confirmed the order" in done.err

    async def test_interrupted(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ctrl+C ends a command with exit code 130, and ``watch`` with 0."""

        async def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(commands, "run", interrupt)

        assert (await run(nowhere(), "count")).code == 130
        assert (await run(nowhere(), "watch")).code == 0


class TestPrinting:
    async def test_hostile_path(
        self, redis_server: RedisServer, aiohttp_client: AiohttpClient, run: Run
    ) -> None:
        """Control characters in a path are escaped, and lines stay below 200 characters."""
        app = node_app(redis_server.url)
        app.router.add_get("/any/{path}", converse)
        client = await aiohttp_client(app)
        async with client.ws_connect("/any/%1b[2J%0a" + "x" * 100):
            registry = app["aiohttp_session_ws_registry"]
            await until(lambda: len(registry))
            done = await run(redis_server.url, "connections")

        assert "/any/\\x1b[2J\\nxxx" in done.out
        assert len(done.out.splitlines()) == 2
        assert max(map(len, done.out.splitlines())) < 200

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [(-1, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (200_000, "2 d")],
    )
    def test_span(self, seconds: float, text: str) -> None:
        """A duration is printed in whole seconds, minutes, hours or days."""
        assert span(seconds) == text

    async def test_screen(
        self,
        redis_server: RedisServer,
        start_node: StartNode,
        run: Run,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """``watch`` clears a terminal for each table, which is no larger than the screen."""
        monkeypatch.setenv("COLUMNS", "40")
        monkeypatch.setenv("LINES", "5")
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        await start_node(redis_server.url)
        done = await run(redis_server.url, "watch", "--times", "2", "--every", "0.05")
        screens = done.out.split("\x1b[H\x1b[2J")

        assert [len(screen.splitlines()) for screen in screens] == [0, 4, 4]
        assert max(len(line) for screen in screens for line in screen.splitlines()) <= 40
        assert " 0 open, 0 opening, 1 process\n" in screens[1]

    @pytest.mark.parametrize(("complete", "orders"), [(True, "10"), (False, "1")])
    def test_silent_before(self, complete: bool, orders: str) -> None:
        """The counts of a process that the previous, incomplete result lacked aren't shown."""
        before = ClusterStats([Stats("a", orders_given=7)], complete=complete)
        now = ClusterStats([Stats("a", orders_given=8), Stats("b", orders_given=9)])

        assert re.split("  +", screen(now, before, 2.0)[-1]) == ["orders", orders]

    def test_gone_since(self) -> None:
        """The new counts of a process are shown if another one is missing from the result."""
        before = ClusterStats([Stats("a", orders_given=7), Stats("b", orders_given=9)])
        now = ClusterStats([Stats("a", orders_given=8)])

        assert re.split("  +", screen(now, before, 2.0)[-1]) == ["orders", "1"]

    async def test_version(self, run: Run) -> None:
        """``--version`` prints the version."""
        assert await run("", "--version") == (0, f"{__version__}\n", "")

    async def test_help(self, run: Run) -> None:
        """The help names the environment variable for the URL, and each exit code."""
        done = await run("", "--help")

        assert done.code == 0
        assert URL in done.out
        assert all(re.search(rf"^  {code}  ", done.out, re.MULTILINE) for code in CODES)
