"""
The facet of a registry that keeps session ws ids: in the session, unless overridden.
"""

from __future__ import annotations

import uuid
from collections.abc import Hashable
from typing import Any

import aiohttp_session
from aiohttp import web

from .._tasks import maybe_await
from ..exceptions import IdFactoryFailed, SessionEnded
from ..sessions.context import ARRIVING, HANDLING, NO_ORDERS, RequestContext, context_of
from ..sessions.session import digest_of_cookie, id_in
from ..sessions.status import State
from ..typing import IdFactory
from .core import Core
from .deferred import context_for

__all__: list[str] = []


def DEFAULT_ID_FACTORY(request: web.Request) -> str:
    """
    Return a random id (UUID4).
    """
    return uuid.uuid4().hex


class Ids:
    """
    The ids of sessions. Override ``get_id``, ``set_id`` and ``delete_id`` to keep them
    elsewhere, or to derive them from the request.
    """

    _core: Core

    @property
    def id_factory(self) -> IdFactory:
        """
        The callable that makes new ids.
        """
        return self._core.id_factory

    @property
    def session_key(self) -> str:
        """
        The key of the id in a session.
        """
        return self._core.keys.id

    async def generate_id(self, request: web.Request) -> Hashable:
        """
        Return a new id from ``id_factory``.

        Raises:
            IdFactoryFailed: If the factory raised.
            InvalidSessionWSId: If it returned ``None`` or something unhashable.
        """
        try:
            session_ws_id = await maybe_await(self.id_factory(request))
        except Exception as exc:
            msg = (
                f"id_factory {self.id_factory!r} raised {type(exc).__name__}; it is called with"
                " the request and must return a hashable id of its own for every session"
            )
            raise IdFactoryFailed(msg) from exc
        return self._core.usable_id(session_ws_id)

    async def get_id(self, request: web.Request) -> Hashable | None:
        """
        Return the id of the session of *request*, ``None`` if it has none.
        """
        return id_in(await aiohttp_session.get_session(request), self._core.keys.id)

    async def set_id(self, request: web.Request, session_ws_id: Hashable) -> None:
        """
        Put *session_ws_id* into the session of *request*.

        If the response saves it, this renews the session as :meth:`new_id` does.
        """
        session = await aiohttp_session.get_session(request)
        session[self._core.keys.id] = session_ws_id

    async def new_id(self, request: web.Request) -> Any:
        """
        Give the session of *request* a new id.

        If the response saves it, the session is renewed: its sockets are closed with 4403 when
        the response has been sent, and no socket opens with the older cookie.

        Raises:
            SessionEnded: If the session had ended when the request arrived.
        """
        context = await context_for(self._core, request)
        if context.stage is HANDLING:
            _expect_living(context)
        elif context.stage is ARRIVING and self._core.overrides.random_ids:
            # A digest is the same for parallel requests of a session without an id.
            digest = await _digest(request)
            if digest is not None:
                await maybe_await(self.set_id(request, digest))
                return
        session_ws_id = await maybe_await(self.generate_id(request))
        await maybe_await(self.set_id(request, session_ws_id))
        if context.stage is HANDLING:
            context.ordering().renewed = True

    async def delete_id(self, request: web.Request) -> Any:
        """
        Remove the id from the session of *request*, if it has one.

        With ``identify`` this renews the session, if the response saves it. Without, a log-out
        can't be told from a renewal: it ends the session, and what is left in it begins another
        one. Either way its sockets are closed with 4403 when the response has been sent.
        """
        _ = await context_for(self._core, request)  # before it is changed
        (await aiohttp_session.get_session(request)).pop(self._core.keys.id, None)

    async def ensure_id(self, request: web.Request) -> Any:
        """
        Give the session of *request* an id if it has none.
        """
        if await self._core.current_id(request) is not None:
            return
        context = context_of(request)
        orders = NO_ORDERS if context is None else context.orders
        renewed = orders.renewed
        await maybe_await(self.new_id(request))
        context = context_of(request)
        if context is not None:  # giving a missing id is no renewal
            context.orders = orders
            if orders is not NO_ORDERS:
                orders.renewed = renewed


def _expect_living(context: RequestContext) -> None:
    if context.status.state is State.ENDED and not context.fresh:
        raise SessionEnded(
            "the session had ended when this request arrived: redirect the client to the log-in"
            " page"
        )


async def _digest(request: web.Request) -> str | None:
    session = await aiohttp_session.get_session(request)
    return None if session.empty else digest_of_cookie(request, session, "id")
