"""
Whom a request comes from, and whether its session was ended with all others of that identity.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Hashable
from typing import NamedTuple, TypeAlias

import aiohttp_session
from aiohttp import web

from .exceptions import IdentifyFailed
from .identity import EndedIdentity, usable_identity
from .ids import DEFAULT_ID_FACTORY, DEFAULT_SESSION_KEY, IdFactory, SessionWSIds, stamp_key
from .revocation import Expiry, Kind
from .visit import session_of, visit_of

__all__ = ["Identify"]

log = logging.getLogger("aiohttp_session_ws")

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
        self._max_ages: set[int | None] = set()  # of the storages that were seen

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
        minted = None if session is None else session.get(stamp_key(self.session_key))
        return record if record is not None and record.ends(session_ws_id, minted) else None

    def _death(self, session_ws_id: Hashable) -> Death | None:
        """
        Return how an id died, if it is dead.
        """
        record = self._revocations.get(session_ws_id)
        return None if record is None else Death(record.kind, self._revocations.age(record))

    async def _death_of_identity(
        self, request: web.Request, session_ws_id: Hashable
    ) -> Death | None:
        """
        Return how the session of an HTTP request died, if with all others of its identity.
        """
        try:
            identity = await self._identify(request)
        except Exception as exc:  # noqa: BLE001  the application's
            # Nobody knows whose page this is; its sockets will be refused for the same reason.
            log.warning("a request could not be identified: %s", type(exc).__name__)
            return None
        ended = self._ended_identity(session_ws_id, identity, session_of(request))
        if ended is None:
            return None
        self._revocations.end(session_ws_id, self._ttl())
        return Death(Kind.ENDED, self._identities.age(ended))

    async def _ended_meanwhile(self, request: web.Request, session_ws_id: Hashable) -> bool:
        """
        Tell whether the identity of *request* was ended while it was handled.
        """
        visit = visit_of(request)
        if not visit.noted or visit.ends == self._revocations.ends or not self._identities:
            return False
        identity = await self._identify(request)
        ended = self._ended_identity(session_ws_id, identity, session_of(request))
        return ended is not None and ended.number > visit.ends

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
        return None if identity is None else usable_identity(identity)

    def _saw(self, request: web.Request) -> None:
        """
        Note for how long sessions live.
        """
        storage = request.get(aiohttp_session.STORAGE_KEY)
        self._max_ages.add(None if storage is None else storage.max_age)

    def _ttl(self) -> float:
        return max(map(self.expiry.ttl, self._max_ages or {None}))
