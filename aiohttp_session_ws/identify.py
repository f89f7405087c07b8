"""
Whom a request comes from, and whether its session was ended with all others of that identity.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Hashable
from typing import NamedTuple, TypeAlias

import aiohttp_session
from aiohttp import web

from .closing import SESSION_ENDED
from .exceptions import IdentifyFailed, NotSetUp, WrongLoop
from .identity import EndedIdentity, usable_identity
from .ids import DEFAULT_ID_FACTORY, DEFAULT_SESSION_KEY, IdFactory, SessionWSIds, stamp_key
from .revocation import Expiry, Kind
from .visit import put_session, session_of, visit_of

__all__ = ["Identify"]

Identify: TypeAlias = Callable[[web.Request], Hashable | Awaitable[Hashable | None] | None]


class Death(NamedTuple):
    """
    How an id died, and how many seconds ago.
    """

    kind: Kind
    age: float


class SessionWSIdentities(SessionWSIds):
    """
    The part of the registry that knows whom a session belongs to.
    """

    def __init__(
        self,
        *,
        id_factory: IdFactory = DEFAULT_ID_FACTORY,
        session_key: str = DEFAULT_SESSION_KEY,
        identify: Identify | None = None,
        expiry: Expiry | None = None,
    ) -> None:
        super().__init__(id_factory=id_factory, session_key=session_key)
        self.identify = identify
        self.expiry = Expiry() if expiry is None else expiry
        self._loop: asyncio.AbstractEventLoop | None = None  # the application's, while it runs
        self._max_ages: set[int | None] = set()  # of the storages that were seen

    def _usable_identity(self, identity: Hashable) -> Hashable:
        """
        Return *identity* if it can be one here.
        """
        return usable_identity(identity)

    def _ended_identity(
        self,
        session_ws_id: Hashable,
        identity: Hashable | None,
        session: aiohttp_session.Session | None,
    ) -> EndedIdentity | None:
        """
        Return the record that ends a session of *identity*, if there is one.
        """
        record = None if identity is None else self._identities.get(identity)
        if record is None or session is None:
            return None
        if not self._revocations.family(session_ws_id).isdisjoint(record.left_out):
            return None
        minted = session.get(stamp_key(self.session_key))
        return record if record.ends(minted, self._identities.now()) else None

    def _death(self, session_ws_id: Hashable) -> Death | None:
        """
        Return how an id died, if it is dead.
        """
        record = self._revocations.get(session_ws_id)
        return None if record is None else Death(record.kind, self._revocations.age(record))

    async def _ended_meanwhile(self, request: web.Request) -> bool:
        """
        Tell whether the identity that *request* came with was ended while it was handled.
        """
        visit = visit_of(request)
        if visit.session_ws_id is None or visit.close is SESSION_ENDED:
            return False
        if visit.ends == self._revocations.ends or not self._identities:
            return False
        identity, session = await self._arrived(request, visit.session_ws_id)
        ended = self._ended_identity(visit.session_ws_id, identity, session)
        return ended is not None and ended.number > visit.ends and ended.number != visit.own_end

    async def _arrived(
        self, request: web.Request, session_ws_id: Hashable | None
    ) -> tuple[Hashable | None, aiohttp_session.Session | None]:
        """
        Return whom *request* came from, though its handler may have logged them in or out.

        Args:
            request: The request.
            session_ws_id: The id it came with; nobody, if the session was ended then.
        """
        cached = session_of(request)
        put_session(request, None)
        try:
            if await self.get_id(request) != session_ws_id:
                return None, None
            return await self._identify(request), session_of(request)
        finally:
            put_session(request, cached)

    async def _identify(self, request: web.Request) -> Hashable | None:
        """
        Return whom *request* comes from.

        Raises:
            IdentifyFailed: If ``identify`` raised anything but an HTTP answer.
            InvalidIdentity: If it returned something that can't be hashed.
        """
        if self.identify is None:
            return None
        try:
            identity = self.identify(request)
            if inspect.isawaitable(identity):
                identity = await identity
        except web.HTTPException:
            raise
        except Exception as exc:
            msg = (
                f"identify {self.identify!r} raised {type(exc).__name__}; it is called with the"
                " request and must return a hashable identity, or None for nobody"
            )
            raise IdentifyFailed(msg) from exc
        return None if identity is None else self._usable_identity(identity)

    def _saw(self, request: web.Request) -> None:
        """
        Note for how long sessions live.
        """
        storage = request.get(aiohttp_session.STORAGE_KEY)
        self._max_ages.add(None if storage is None else storage.max_age)

    def _ttl(self) -> float:
        return max(map(self.expiry.ttl, self._max_ages or {None}))

    def _expect_identify(self) -> None:
        if self.identify is None:
            msg = "nobody can be identified: create SessionWSRegistry(identify=...)"
            raise NotSetUp(msg)

    def _expect_loop(self) -> None:
        """
        Raise :class:`WrongLoop` in a thread or event loop that isn't the application's.
        """
        if self._loop is None:
            return
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            here = False
        if not here:
            raise WrongLoop(
                "the registry belongs to the event loop of its application; from another thread"
                " call asyncio.run_coroutine_threadsafe(registry.end_session(id), loop), with"
                " any of its coroutines and the loop of the application"
            )
