"""
Whom a request belongs to: calls the application's ``identify``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, Final

from aiohttp import web
from aiohttp_session import Session

from .._expiring import ExpiringDict
from .._lineage import Subject
from .._tasks import maybe_await
from ..exceptions import IdentifyFailed, InvalidIdentity, NotSetUp
from ..sessions.session import copy_of, loaded_session, put_session
from ..typing import Identify

__all__: list[str] = []

REMEMBERED: Final = 100_000  # lineages whose identity is known
REMEMBERED_FOR: Final = 3600.0  # seconds


class Identifier:
    """
    The application's ``identify``, and what it said of lineages lately.

    Args:
        identify: The callable; ``None`` if sessions belong to nobody we know.
        check: Raises ``TypeError`` for what can't be an identity on all nodes.

    Attributes:
        identify: The callable.
        optional: Whether identities may be ended without it: by a script, which has no sockets.
    """

    def __init__(self, identify: Identify | None, check: Callable[[Hashable], None]) -> None:
        self.identify = identify
        self.optional = False
        self._check = check
        self._known: ExpiringDict[str, tuple[Hashable | None]] = ExpiringDict(
            REMEMBERED, REMEMBERED_FOR
        )

    def expect(self) -> None:
        """
        Raise :class:`NotSetUp` if there is no ``identify``.
        """
        if self.identify is None and not self.optional:
            raise NotSetUp("sessions can't be identified: pass SessionWSRegistry(identify=...)")

    def usable(self, identity: Hashable) -> Hashable:
        """
        Return *identity* if it is one.

        Raises:
            InvalidIdentity: If it is ``None``, can't be hashed, or other nodes couldn't be told.
        """
        try:
            hash(identity)
        except TypeError:
            msg = "an identity must be hashable: let identify return a str, an int or a tuple"
            raise InvalidIdentity(msg) from None
        if identity is None:
            raise InvalidIdentity("None is no identity: it stands for an anonymous session")
        try:
            self._check(identity)
        except TypeError as exc:
            raise InvalidIdentity(str(exc)) from None
        return identity

    async def of(self, request: web.Request) -> Hashable | None:
        """
        Return whom *request* belongs to as its session is now, ``None`` if it is anonymous.

        Raises:
            IdentifyFailed: If ``identify`` raised anything but 401 or 403.
            InvalidIdentity: If it returned something that is no identity.
        """
        if self.identify is None:
            return None
        try:
            identity = await maybe_await(self.identify(request))
        except (web.HTTPUnauthorized, web.HTTPForbidden):
            return None
        except Exception as exc:
            msg = (
                f"identify {self.identify!r} raised {type(exc).__name__}; it is called with the"
                " request and must return a hashable identity, or None if it is anonymous"
            )
            raise IdentifyFailed(msg) from exc
        return None if identity is None else self.usable(identity)

    async def of_content(
        self, request: web.Request, session: Session, content: Mapping[str, Any]
    ) -> Hashable | None:
        """
        Return whom *request* belonged to when its session held *content*.
        """
        now = loaded_session(request)
        put_session(request, copy_of(session, content))
        try:
            return await self.of(request)
        finally:
            put_session(request, now)

    async def of_lineage(self, request: web.Request, token: str) -> Hashable | None:
        """
        Return whom *request* belongs to; ``identify`` is asked once per lineage.
        """
        known = self._known.get(token)
        if known is None:
            known = (await self.of(request),)
            self._known.put(token, known)
        return known[0]

    def remember(self, token: str, identity: Hashable | None) -> None:
        """
        Note whom a lineage belongs to.
        """
        self._known.put(token, (identity,))


def subjects_of(session_ws_id: Hashable | None, identity: Hashable | None) -> tuple[Subject, ...]:
    """
    Return the subjects by which a session can be ended.
    """
    found = []
    if session_ws_id is not None:
        found.append(Subject("id", session_ws_id))
    if identity is not None:
        found.append(Subject("identity", identity))
    return tuple(found)
