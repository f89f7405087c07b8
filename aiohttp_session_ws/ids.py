"""
Where the id lives: in the session, unless a subclass of the registry says otherwise.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Final, TypeAlias

import aiohttp_session
from aiohttp import web

from .exceptions import IdFactoryFailed, InvalidSessionWSId, NotSetUp, SessionEnded
from .identity import EndedIdentities
from .revocation import Kind, Revocations
from .visit import put_session, session_of, visit_of

__all__ = ["DEFAULT_ID_FACTORY", "DEFAULT_SESSION_KEY", "IdFactory"]

log = logging.getLogger("aiohttp_session_ws")

IdFactory: TypeAlias = Callable[[web.Request], Hashable | Awaitable[Hashable]]

DEFAULT_SESSION_KEY: Final = "aiohttp_session_ws_id"

_TOGETHER: Final = 10.0  # seconds in which requests with the same cookie came at once


def DEFAULT_ID_FACTORY(request: web.Request) -> str:
    """
    Return a random id (UUID4).
    """
    return uuid.uuid4().hex


class SessionWSIds:
    """
    The ids of sessions: override ``get_id``, ``set_id`` and ``delete_id`` to keep them
    elsewhere or to derive them from the request.
    """

    def __init__(
        self,
        *,
        id_factory: IdFactory = DEFAULT_ID_FACTORY,
        session_key: str = DEFAULT_SESSION_KEY,
    ) -> None:
        self.id_factory = id_factory
        self.session_key = session_key
        self._own_keys = frozenset({session_key, stamp_key(session_key)})
        self._revocations = Revocations()
        self._identities = EndedIdentities()
        self._adopted: dict[bytes, tuple[Hashable, float]] = {}

    def _usable(self, session_ws_id: Hashable) -> Hashable:
        """
        Return an id if it can be one here.
        """
        return usable(session_ws_id)

    async def generate_id(self, request: web.Request) -> Hashable:
        """
        Return a new id from ``id_factory``.

        Raises:
            IdFactoryFailed: If the factory raised.
            InvalidSessionWSId: If it returned ``None`` or something unhashable.
        """
        try:
            result = self.id_factory(request)
            if inspect.isawaitable(result):
                result = await result
        except Exception as exc:
            msg = (
                f"id_factory {self.id_factory!r} raised {type(exc).__name__}; it is called with"
                " the request and must return a hashable id of its own for every session"
            )
            raise IdFactoryFailed(msg) from exc
        return self._usable(result)

    async def get_id(self, request: web.Request) -> Hashable | None:
        """
        Return the id of the session of *request*, ``None`` if it has none.
        """
        session = await aiohttp_session.get_session(request)
        session_ws_id: Hashable | None = as_tuple(session.get(self.session_key))
        return session_ws_id

    async def set_id(self, request: web.Request, session_ws_id: Hashable) -> None:
        """
        Put *session_ws_id* into the session of *request*, and beside it the time, as
        ``<session_key>_at`` in seconds since the epoch.
        """
        session = await aiohttp_session.get_session(request)
        # A session that is older than the installation was there before its id.
        adopted = not session.new and self.session_key not in session
        now = self._identities.time()
        at = min(session.created, now) if adopted else now
        session[self.session_key] = session_ws_id
        session[stamp_key(self.session_key)] = at

    async def delete_id(self, request: web.Request) -> None:
        """
        Take the id out of the session of *request*, if it has one.

        Behind the middleware this counts as the session's end, if the answer saves it: the
        id is revoked, and its sockets are closed with 4401 when the answer has left. What
        else the session holds is kept, and its next HTTP request is given an id.
        """
        session = await aiohttp_session.get_session(request)
        session.pop(self.session_key, None)
        session.pop(stamp_key(self.session_key), None)

    async def new_id(self, request: web.Request) -> None:
        """
        Give the session of *request* a new id.

        Behind the middleware the old one is revoked, if the answer saves the new one, and
        its sockets are closed with 4403 when the answer has left.

        Raises:
            SessionEnded: If the session has been ended meanwhile. Nothing is changed.
        """
        current = await self.get_id(request)
        record = None if current is None else self._revocations.get(self._usable(current))
        ended = record is not None and record.kind is Kind.ENDED
        if ended or await self._ended_meanwhile(request):
            raise SessionEnded("the session was ended while this request was handled")
        session_ws_id = await self.generate_id(request)
        visit_of(request).minted = session_ws_id  # and not saved yet
        if session_ws_id != current and self._lift_id(session_ws_id):
            log.warning(
                "id_factory returned an id that was revoked, which takes the revocation back:"
                " ids that are not made for one session only can be closed, but not ended"
            )
        await self.set_id(request, session_ws_id)

    def _lift_id(self, session_ws_id: Hashable) -> bool:
        """
        Take back the revocation of an id; tell whether there was one.
        """
        return self._revocations.lift(session_ws_id)

    async def _ended_meanwhile(self, request: web.Request) -> bool:
        """
        Tell whether the identity of *request* was ended while it was handled.
        """
        return False

    async def ensure_id(self, request: web.Request) -> None:
        """
        Give the session of *request* an id if it has none.
        """
        if await self.get_id(request) is None:
            await self.new_id(request)

    async def _load_id(self, request: web.Request) -> Hashable | None:
        """
        Return the id that *request* came with, with an error that helps.
        """
        try:
            session_ws_id = await self.get_id(request)
        except RuntimeError as exc:
            if aiohttp_session.STORAGE_KEY in request:
                raise
            msg = (
                "no session: put session_ws_middleware inside aiohttp_session's, as in"
                " web.Application(middlewares=[aiohttp_session.session_middleware(storage),"
                " session_ws_middleware])"
            )
            raise NotSetUp(msg) from exc
        return None if session_ws_id is None else self._usable(session_ws_id)

    async def _mint(self, request: web.Request) -> None:
        """
        Give the session of *request*, which has no id, a new one.

        A session that is older than the installation may come with several requests at
        once. They must be given the same id, or all but one would be orphans.
        """
        session = session_of(request)
        storage = request.get(aiohttp_session.STORAGE_KEY)
        cookie = None if storage is None else request.cookies.get(storage.cookie_name)
        if not session or cookie is None:
            await self.new_id(request)
            return
        key = hashlib.blake2b(cookie.encode(), digest_size=16).digest()
        now = time.monotonic()
        while self._adopted and next(iter(self._adopted.values()))[1] < now - _TOGETHER:
            del self._adopted[next(iter(self._adopted))]
        known = self._adopted.get(key)
        if known is not None and self._revocations.get(known[0]) is None:
            visit_of(request).minted = known[0]
            await self.set_id(request, known[0])
            return
        await self.new_id(request)
        self._adopted[key] = self._usable(await self.get_id(request)), now

    async def _reload_id(
        self, request: web.Request
    ) -> tuple[Hashable | None, aiohttp_session.Session | None]:
        """
        Return id and session as the storage has them now; *request* keeps its own.
        """
        cached = session_of(request)
        put_session(request, None)
        try:
            return await self._load_id(request), session_of(request)
        finally:
            put_session(request, cached)


def stamp_key(session_key: str) -> str:
    return session_key + "_at"


def as_tuple(value: Any) -> Any:
    """
    Return *value* as it was before it was JSON, which makes a list of a tuple.
    """
    return tuple(map(as_tuple, value)) if isinstance(value, list) else value


def usable(session_ws_id: Hashable) -> Hashable:
    """
    Return *session_ws_id* if it can be the key of a dictionary.

    Raises:
        InvalidSessionWSId: If it can't, or is ``None``.
    """
    try:
        hash(session_ws_id)
    except TypeError:
        session_ws_id = None
        msg = "a session ws id must be hashable: return a str, an int or a tuple of such"
        raise InvalidSessionWSId(msg) from None
    if session_ws_id is None:
        raise InvalidSessionWSId("a session ws id can't be None: return a str or an int")
    return session_ws_id
