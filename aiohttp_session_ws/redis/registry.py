"""
``RedisSessionWSRegistry``: the registry for many processes that share a Redis.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypedDict, Unpack

from ..exceptions import RedisUnavailable
from ..options import Expiry, Limits, PushQueue, Timeouts
from ..registry.cluster import Cluster
from ..registry.registry import SessionWSRegistry
from ..registry.settings import expect, option
from ..results import Nodes
from ..signals import Signal
from ..typing import Authorize, Identify, IdFactory, Labels, Origins
from .cluster import RedisCluster
from .health import State
from .io.connect import MakeClient, client_maker

__all__ = ["RedisSessionWSRegistry", "RegistryOptions", "State"]


class RegistryOptions(TypedDict, total=False):
    """
    The options of :class:`~aiohttp_session_ws.SessionWSRegistry`.
    """

    id_factory: IdFactory
    session_key: str
    identify: Identify | None
    labels: Labels | None
    authorize: Authorize | None
    origins: Origins
    limits: Limits | None
    expiry: Expiry | None
    push_queue: PushQueue | None
    timeouts: Timeouts | None
    journal: str | Path | None
    handle_key: str | bytes | None


class RedisSessionWSRegistry(SessionWSRegistry):
    """
    A registry whose orders reach the sockets of all processes that use the same Redis.

    It is used like a :class:`~aiohttp_session_ws.SessionWSRegistry`. Sockets of this process are
    closed at once; an order is recorded in Redis and published to the other processes, and retried
    until Redis has recorded it. A handshake asks Redis once whether its session has ended. As a
    mapping the registry contains the sockets of this process;
    :class:`~aiohttp_session_ws.Limits` count these, or with ``scope="cluster"`` those of all.

    Outside of an application, in jobs and scripts, it is an async context manager::

        async with RedisSessionWSRegistry("redis://localhost") as registry:
            await registry.end_identity("ann", wait=2)

    Ids, identities and labels are published as JSON: they must be ``str``, ``int`` or tuples of
    these.

    Args:
        redis: A URL (``redis://``, ``rediss://`` or ``unix://``) of Redis >= 6.2 or
            Valkey, or a callable that makes a ``redis.asyncio`` client: a ``Redis``, a
            ``RedisCluster`` or what a ``Sentinel`` returns. It is called for each connection
            that is needed; the clients that it has made are closed by the registry.
        prefix: The beginning of all keys and channels; the same for all nodes that belong
            together. Its keys are in one slot of a Redis Cluster.
        node: The name of this process for operators; by default its host and process id. It need
            not be unique: each process adds a random part for internal use.
        on_outage: What happens to handshakes while Redis is away: ``"refuse"`` answers 503
            with ``Retry-After``; ``"accept"`` accepts them by what this process knows, and
            closes those that should have been refused when Redis is back.
        **options: Those of ``SessionWSRegistry``.

    Attributes:
        on_state_change: Signal; :attr:`state` has changed. Receivers are called with the new
            state.

    Raises:
        TypeError: If an option is of a wrong type.
        ValueError: If the URL is invalid, or an option has an invalid value.
    """

    def __init__(
        self,
        redis: str | MakeClient,
        *,
        prefix: str = "aiohttp_session_ws",
        node: str | None = None,
        on_outage: Literal["refuse", "accept"] = "refuse",
        **options: Unpack[RegistryOptions],
    ) -> None:
        if on_outage not in ("refuse", "accept"):
            raise ValueError(f"on_outage is 'refuse' or 'accept', not {on_outage!r}")
        _ = expect(prefix, str, "prefix")
        if node is not None:
            _ = expect(node, str, "node")
        if not prefix or "{" in prefix or "}" in prefix:
            raise ValueError(f"prefix is a non-empty text without braces, not {prefix!r}")
        self.prefix: str = prefix
        self.node: str = f"{socket.gethostname()}:{os.getpid()}" if node is None else node
        self.on_outage: Literal["refuse", "accept"] = on_outage
        self.on_state_change: Signal[State] = Signal(self)
        self._redis = RedisCluster(
            client_maker(redis),
            prefix,
            self.node,
            on_outage=on_outage,
            resolves=_resolves(options),
            journaled=options.get("journal") is not None,
            patience=option(options.get("timeouts"), Timeouts, "timeouts").outbox,
            grace=option(options.get("expiry"), Expiry, "expiry").renewal_grace,
            changed=self._state_changed,
        )
        super().__init__(**options)

    def _make_cluster(self, *, journaled: bool) -> Cluster:
        return self._redis

    def _state_changed(self, state: State) -> None:
        _ = self._core.tasks.spawn(self.on_state_change.send(state), "send on_state_change")

    @property
    def state(self) -> State:
        """
        ``"connected"``, or ``"degraded"`` while Redis doesn't answer, some kind of operation on
        it fails, or the journal can't be written.
        """
        return "degraded" if super().state == "degraded" else self._redis.state

    async def nodes(self) -> Nodes:
        """
        Return the processes that serve sockets, by a request to all of them.
        """
        self._core.expect_loop()
        return await self._redis.nodes()

    async def __aenter__(self) -> Self:
        """
        Connect, without an application.

        Raises:
            NotSetUp: If the registry is in use.
            RedisUnavailable: If Redis can't be reached.
        """
        self._serve(False)
        try:
            await self._core.start()
        except BaseException:
            self._serve(True)
            raise
        if self._redis.connected:
            return self
        why = self._redis.why
        await self._leave()
        raise RedisUnavailable(f"Redis can't be used: {why}; is it running, and is the URL right?")

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """
        Wait until Redis has recorded all orders, ``timeouts.outbox`` seconds at most.
        """
        await self._leave()

    async def _leave(self) -> None:
        await self._core.stop()
        self._serve(True)

    def _serve(self, serves: bool) -> None:
        """
        Switch between an application and a script, which needs no ``identify``.
        """
        self._redis.serves = serves
        self._core.identifier.optional = not serves


def _resolves(options: RegistryOptions) -> frozenset[str]:
    """
    Return the kinds of subjects by which a registry finds its sockets.
    """
    kinds = {"id"}
    if options.get("identify") is not None:
        kinds.add("identity")
    if options.get("labels") is not None:
        kinds.add("label")
    return frozenset(kinds)
