"""
The facet of a registry that pushes: to a session, to an identity, to everybody.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from typing import Any

from aiohttp.typedefs import JSONEncoder

from .._lineage import Subject
from ..connections.connection import Connection
from ..results import Delivery
from ..typing import Data
from .core import Core

__all__: list[str] = []


class Pushes:
    """
    Pushes. A message reaches a socket at most once, and in the order of the calls.

    A push never waits for a peer: what can't be written at once waits in a bounded queue of
    each connection, and a peer that doesn't keep up misses messages before it is closed.
    """

    _core: Core

    async def send_session(
        self, session_ws_id: Hashable, data: Data, *, except_: Connection | None = None
    ) -> Delivery:
        """
        Push *data* to the open sockets of a session.

        Args:
            session_ws_id: Whose sockets.
            data: A text, or bytes for a binary message; they are copied.
            except_: A connection that isn't sent to.

        Raises:
            InvalidSessionWSId: If *session_ws_id* can't be an id.
            TypeError: If *data* is neither text nor bytes.
        """
        self._core.expect_loop()
        subject = Subject("id", self._core.usable_id(session_ws_id))
        return await self._push(subject, data, except_)

    async def send_identity(
        self, identity: Hashable, data: Data, *, except_: Connection | None = None
    ) -> Delivery:
        """
        Push *data* to the open sockets of all sessions of an identity.

        Args:
            identity: Whose sockets.
            data: As for :meth:`send_session`.
            except_: A connection that isn't sent to.

        Raises:
            NotSetUp: If the registry has no ``identify``.
            InvalidIdentity: If *identity* is ``None`` or can't be hashed.
            TypeError: If *data* is neither text nor bytes.
        """
        core = self._core
        core.expect_loop()
        core.identifier.expect()
        return await self._push(
            Subject("identity", core.identifier.usable(identity)), data, except_
        )

    async def broadcast(self, data: Data, *, except_: Connection | None = None) -> Delivery:
        """
        Push *data* to all open sockets.

        Args:
            data: As for :meth:`send_session`.
            except_: A connection that isn't sent to.

        Raises:
            TypeError: If *data* is neither text nor bytes.
        """
        self._core.expect_loop()
        return await self._push(None, data, except_)

    async def send_session_json(
        self, session_ws_id: Hashable, data: Any, *, dumps: JSONEncoder = json.dumps
    ) -> Delivery:
        """
        Push *data* as JSON to the open sockets of a session.
        """
        return await self.send_session(session_ws_id, dumps(data))

    async def send_identity_json(
        self, identity: Hashable, data: Any, *, dumps: JSONEncoder = json.dumps
    ) -> Delivery:
        """
        Push *data* as JSON to the open sockets of all sessions of an identity.
        """
        return await self.send_identity(identity, dumps(data))

    async def broadcast_json(self, data: Any, *, dumps: JSONEncoder = json.dumps) -> Delivery:
        """
        Push *data* as JSON to all open sockets.
        """
        return await self.broadcast(dumps(data))

    async def _push(
        self, subject: Subject | None, data: Data, except_: Connection | None
    ) -> Delivery:
        here = await self._core.push_here(subject, data, except_)
        return await self._core.cluster.push(subject, data, here)
