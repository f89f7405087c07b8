"""
``RedisSessionWSRegistry``: the registry of many processes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Hashable, Iterable
from types import TracebackType
from typing import Any, Final, Literal, Self, TypedDict, Unpack

from aiohttp import web

from ..closing import Close, Timeouts
from ..connection import Connection
from ..elsewhere import Told
from ..exceptions import InvalidIdentity, InvalidSessionWSId, NotSetUp, RedisAway
from ..gate import Origins
from ..identify import Identify
from ..identity import EndedIdentities
from ..ids import IdFactory
from ..limits import Limits
from ..outbox import PushQueue
from ..push import Data, Delivery
from ..registry import ANY, Authorize, SessionWSRegistry
from ..revocation import Expiry
from ..signals import Signal
from ..snapshot import Count, Snapshot
from .asking import DATA, Asking
from .client import MakeClient, client_maker
from .hearing import REPORTS, Hearing
from .learning import Learning
from .looking import Looking, Nodes
from .node import Node, default_name
from .telling import Telling
from .wire import as_json
from .writer import ORDERS

__all__ = ["RedisSessionWSRegistry", "RegistryOptions", "State"]

log = logging.getLogger("aiohttp_session_ws")

State = Literal["connected", "degraded"]

DRAIN: Final = 5.0  # seconds that Redis has at the end to take what waits for it


class RegistryOptions(TypedDict, total=False):
    """
    The options of :class:`~aiohttp_session_ws.SessionWSRegistry`.
    """

    id_factory: IdFactory
    session_key: str
    identify: Identify | None
    authorize: Authorize | None
    origins: Origins
    limits: Limits | None
    expiry: Expiry | None
    push_queue: PushQueue | None
    timeouts: Timeouts | None


class RedisSessionWSRegistry(SessionWSRegistry):
    """
    A registry whose orders reach the sockets of all processes that use the same Redis.

    It is used like a :class:`~aiohttp_session_ws.SessionWSRegistry`. Sockets of this
    process are closed at once; an order is recorded in Redis and told to the others, again
    and again until Redis has taken it. A handshake asks Redis once whether its session has
    ended. As a mapping it shows the sockets of this process, and
    :class:`~aiohttp_session_ws.Limits` count these.

    Outside of an application it is an async context manager, for jobs and scripts::

        async with RedisSessionWSRegistry("redis://localhost") as registry:
            await registry.end_identity("ann", wait=2)

    Ids and identities are told as JSON: they must be ``str``, ``int`` or tuples of such.

    Args:
        redis: A URL (``redis://``, ``rediss://`` or ``unix://``) of Redis >= 6.2 or
            Valkey, or a callable that makes a ``redis.asyncio`` client: a ``Redis``, a
            ``RedisCluster`` or what a ``Sentinel`` returns. It is called for each
            connection that is needed, and what it made is closed.
        prefix: What all keys and channels begin with; the same for all that belong
            together.
        node: How this process is called; by default by its host and its number.
        on_outage: What happens to handshakes while Redis is away: ``"refuse"`` answers 503
            with ``Retry-After``; ``"accept"`` lets them open by what this process knows,
            and closes those that should not have been when Redis is back.
        **options: Those of ``SessionWSRegistry``.

    Attributes:
        on_state_change: Signal; :attr:`state` has changed, to what the receivers are given.

    Raises:
        ValueError: If the URL can't be understood, or *on_outage* is something else.
    """

    _elsewhere = True

    def __init__(
        self,
        redis: str | MakeClient,
        *,
        prefix: str = "aiohttp_session_ws",
        node: str | None = None,
        on_outage: Literal["refuse", "accept"] = "refuse",
        **options: Unpack[RegistryOptions],
    ) -> None:
        super().__init__(**options)
        if on_outage not in ("refuse", "accept"):
            raise ValueError(f"on_outage is 'refuse' or 'accept', not {on_outage!r}")
        self._make = client_maker(redis)
        self.prefix = prefix
        self.node = default_name() if node is None else node
        self.on_outage = on_outage
        self.on_state_change: Signal[State] = Signal(self)
        self._state: State = "degraded"
        self._serves = False  # an application, and not a script
        self._begin()

    def _begin(self) -> None:
        """
        Be a new node, with a name of its own.
        """
        self._node = Node(self._make, self.prefix, self.node, self._found, self._changed)
        self._identities = EndedIdentities(wall=self._node.earliest, latest=self._node.latest)
        self._asking = Asking(self._node)
        self._telling = Telling(self, self._node, self._asking)
        self._hearing = Hearing(self, self._node, self._asking, self._telling)
        self._learning = Learning(self, self._node, self._telling, self._hearing)
        self._looking = Looking(self, self._node, self._asking)

    @property
    def state(self) -> State:
        """
        ``"connected"``, or ``"degraded"`` while Redis doesn't answer or can't be heard.
        """
        return self._state

    async def nodes(self) -> Nodes:
        """
        Return the processes that serve sockets.
        """
        self._expect_loop()
        return await self._looking.nodes()

    # What the registry of one process leaves out

    def _usable(self, session_ws_id: Hashable) -> Hashable:
        session_ws_id = super()._usable(session_ws_id)
        try:
            as_json(session_ws_id)
        except TypeError as exc:
            raise InvalidSessionWSId(str(exc)) from None
        return session_ws_id

    def _usable_identity(self, identity: Hashable) -> Hashable:
        identity = super()._usable_identity(identity)
        try:
            as_json(identity)
        except TypeError as exc:
            raise InvalidIdentity(str(exc)) from None
        return identity

    def _expect_identify(self) -> None:
        if self._serves:  # a script needn't know how sessions are identified
            super()._expect_identify()

    def _lift_id(self, session_ws_id: Hashable) -> bool:
        lifted = super()._lift_id(session_ws_id)
        if lifted:
            self._telling.lift(session_ws_id)
        return lifted

    def _store(
        self, ids: Iterable[Hashable], close: Close, *, identity: Hashable | None = None
    ) -> None:
        self._telling.store(ids, identity)

    def _tell(
        self,
        ids: Iterable[Hashable],
        close: Close,
        wait: float = 0.0,
        *,
        identity: Hashable | None = None,
    ) -> Told | None:
        return self._telling.tell(ids, close, wait, identity)

    def _tell_identity(self, identity: Hashable, close: Close, wait: float) -> Told | None:
        return self._telling.tell_identity(identity, close, wait)

    async def _look_up(self, connection: Connection) -> None:
        await self._learning.look_up(connection)

    async def _meet(self, request: web.Request, session_ws_id: Hashable) -> None:
        await self._learning.meet(request, session_ws_id)

    def _found(self, order: Any, old: bytes) -> None:
        self._hearing.found(order, old)

    def _changed(self) -> None:
        self._learning.forget()
        state: State = "connected" if self._node.connected else "degraded"
        if state != self._state:
            self._state = state
            log.info("the websocket registry is %s", state)
            _ = self._sockets.spawn(self.on_state_change.send(state), "tell the state")

    # Looking and pushing

    async def connections(
        self, *, session: Hashable | None = ANY, identity: Hashable | None = ANY
    ) -> Snapshot:
        """
        Return what is open at this moment, on all processes; all are asked.

        Args:
            session: Only sockets of the session with this id; ``None`` is no session.
            identity: Only sockets of this identity; ``None`` is nobody.
        """
        self._expect_loop()
        return await self._looking.connections(session, identity)

    async def count(self) -> Count:
        """
        Return how many sockets are open, on all processes; all are asked.
        """
        self._expect_loop()
        return await self._looking.count()

    async def send_session(self, session_ws_id: Hashable, data: Data) -> Delivery:
        """
        Push *data* to the open sockets of a session, on all processes.

        Sockets of this process are sent to at once; then the others are waited for, one
        second at most. Arguments and errors are those of ``SessionWSRegistry``.
        """
        here = await super().send_session(session_ws_id, data)
        return await self._looking.push(["session", session_ws_id], data, here)

    async def send_identity(self, identity: Hashable, data: Data) -> Delivery:
        """
        Push *data* to the open sockets of all sessions of an identity, on all processes.

        Waits as :meth:`send_session` does.
        """
        here = await super().send_identity(identity, data)
        return await self._looking.push(["identity", identity], data, here)

    async def broadcast(self, data: Data) -> Delivery:
        """
        Push *data* to all open sockets of all processes.

        Waits as :meth:`send_session` does.
        """
        here = await super().broadcast(data)
        return await self._looking.push(["all"], data, here)

    async def _push_here(self, to: tuple[Any, ...], data: Data) -> Delivery:
        """
        Push for another process.
        """
        match to:
            case ("session", session_ws_id):
                return await super().send_session(session_ws_id, data)
            case ("identity", identity):
                return await super().send_identity(identity, data)
            case ("all",):
                return await super().broadcast(data)
        raise ValueError("a push to nobody we know")

    # Its life

    async def __aenter__(self) -> Self:
        """
        Connect, without an application.

        Raises:
            RedisAway: If Redis can't be reached.
        """
        self._loop = asyncio.get_running_loop()
        await self._start(serves=False)
        if self._node.connected:
            return self
        why = self._node.why
        await self._stop()
        raise RedisAway(f"Redis can't be used: {why}; is it running, and is the URL right?")

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """
        Wait until Redis has taken all orders, five seconds at most, and let go of it.
        """
        await self._stop()

    async def _join(self) -> None:
        await self._start(serves=True)

    async def _part(self) -> None:
        await self._stop()

    async def _start(self, *, serves: bool) -> None:
        if self._node.running:
            raise NotSetUp(
                "this registry is in use: let each application have its own, and enter it"
                " as a context manager once at a time"
            )
        self._serves = serves
        instance = self._node.instance
        control: dict[str, Any] = {f"{REPORTS}:{instance}": self._asking.hear}
        data: dict[str, Any] = {f"{DATA}:{instance}": self._asking.hear}
        if serves:
            control[ORDERS] = self._hearing.hear
            data[DATA] = self._looking.hear
        try:
            await self._node.start(control, data, self._learning.reconcile, member=serves)
        except BaseException:  # it is cancelled
            await self._stop()
            raise
        if serves and not self._node.connected:
            log.warning(
                "Redis can't be used (%s): the application starts without it", self._node.why
            )

    async def _stop(self) -> None:
        await self._node.stop(DRAIN)
        self._loop, self._state = None, "degraded"
        self._begin()
