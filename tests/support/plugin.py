"""
A pytest plugin: the options and fixtures that all tests share.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import signal
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from aiohttp import TCPConnector, web
from aiohttp.test_utils import BaseTestServer
from aiohttp_session import AbstractStorage
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from .app import make_app
from .clients import AiohttpClient, Client, R, Server, Started
from .processes import free_port
from .redis_servers import RedisCluster, RedisServer, SentinelSetup, redis_executable
from .storages import STORAGES, storage_named


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add options for the number of random worlds and of replays of stale cookies."""
    parser.addoption(
        "--worlds", type=int, default=500, help="how many random worlds test_worlds.py plays"
    )
    parser.addoption(
        "--replays", type=int, default=4_000, help="how often test_replays.py replays a cookie"
    )


@pytest.fixture(scope="session")
def redis_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Run a Redis server for all tests; return its port."""
    port = free_port()
    folder: Path = tmp_path_factory.mktemp("redis")
    command = [redis_executable(), "--port", str(port), "--dir", str(folder), "--save", ""]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        try:
            # It logs a line when it is ready; if it fails, its output ends without that line.
            assert any(b"eady to accept" in line for line in server.stdout), "no Redis server"
            yield port
        finally:
            os.kill(server.pid, signal.SIGTERM)


@pytest.fixture(params=STORAGES)
async def storage(request: pytest.FixtureRequest) -> AsyncIterator[AbstractStorage]:
    """Each storage of aiohttp_session that needs no server but Redis."""
    async with storage_named(
        request.param, lambda: request.getfixturevalue("redis_port")
    ) as storage:
        yield storage


@pytest.fixture
def aiohttp_client(aiohttp_client: AiohttpClient) -> AiohttpClient:
    """Start clients as pytest-aiohttp's fixture does, with servers as ``run_app()`` has them."""

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
async def started() -> AsyncIterator[Started]:
    """Start registries without a server, each in an application of its own."""
    async with AsyncExitStack() as stack:

        async def start(registry: R) -> R:
            runner = web.AppRunner(make_app(registry))
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            return registry

        yield start


@pytest.fixture
def tls(tmp_path: Path) -> ssl.SSLContext:
    """The TLS context of a server, with a self-signed certificate for 127.0.0.1."""
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
    """A Redis server for one test, which may freeze, kill and change it."""
    async with RedisServer() as server:
        yield server


@pytest.fixture
async def redis_cluster() -> AsyncIterator[RedisCluster]:
    """A Redis Cluster of three masters for one test."""
    async with RedisCluster() as cluster:
        yield cluster


@pytest.fixture
async def redis_sentinel() -> AsyncIterator[SentinelSetup]:
    """A primary, a replica and a sentinel for one test."""
    async with SentinelSetup() as setup:
        yield setup
