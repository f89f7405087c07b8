"""
The registry's methods that push messages: to a session, an identity, a label, or all sockets.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from aiohttp.typedefs import JSONEncoder

from .._lineage import Subject
from ..connections.connection import Connection
from ..results import Delivery
from ..typing import Data
from .core import Core
from .relay import RelayHandler

__all__: list[str] = []

R = TypeVar("R", bound=RelayHandler)


class Pushes:
    """
    Pushes. A message reaches a socket at most once, and in the order of the calls.

    A push never waits for a peer: what can't be written at once is put into a bounded queue of
    the connection, and a peer that doesn't keep up misses messages before it is closed.
    """

    _core: Core

    async def send_session(
        self,
        session_ws_id: Hashable,
        data: Data,
        *,
        except_: Connection | None = None,
        wait: float = 0.0,
    ) -> Delivery:
        """
        Push *data* to the open sockets of a session.

        Args:
            session_ws_id: The id of the session.
            data: A string for a text message, or bytes for a binary one; they are copied.
            except_: A connection to leave out.
            wait: Seconds to wait for the reports of other nodes, if there are any. With 0 they
                don't report: the push reaches their sockets, but these aren't counted.

        Raises:
            InvalidSessionWSId: If *session_ws_id* can't be an id.
            TypeError: If *data* is neither a string nor bytes, *except_* not a connection, or
                *wait* not a number.
        """
        self._core.expect_loop()
        subject = Subject("id", self._core.usable_id(session_ws_id))
        return await self._push(subject, data, except_, wait)

    async def send_identity(
        self,
        identity: Hashable,
        data: Data,
        *,
        except_: Connection | None = None,
        wait: float = 0.0,
    ) -> Delivery:
        """
        Push *data* to the open sockets of all sessions of an identity.

        Args:
            identity: The identity whose sockets to push to.
            data: As for :meth:`send_session`.
            except_: A connection to leave out.
            wait: As for :meth:`send_session`.

        Raises:
            NotSetUp: If the registry has no ``identify``.
            InvalidIdentity: If *identity* is ``None`` or can't be hashed.
            TypeError: If *data* is neither a string nor bytes, *except_* not a connection, or
                *wait* not a number.
        """
        core = self._core
        core.expect_loop()
        return await self._push(core.identifier.subject_of(identity), data, except_, wait)

    async def send_label(
        self,
        name: str,
        value: Hashable,
        data: Data,
        *,
        except_: Connection | None = None,
        wait: float = 0.0,
    ) -> Delivery:
        """
        Push *data* to the open sockets of all sessions with a label.

        Args:
            name: The name of the label, as ``labels`` returns it.
            value: Its value.
            data: As for :meth:`send_session`.
            except_: A connection to leave out.
            wait: As for :meth:`send_session`.

        Raises:
            NotSetUp: If the registry has no ``labels``.
            InvalidIdentity: If *name* or *value* can't be used for a label.
            TypeError: If *data* is neither a string nor bytes, *except_* not a connection, or
                *wait* not a number.
        """
        core = self._core
        core.expect_loop()
        subject = core.identifier.subject_of_label(name, value)
        return await self._push(subject, data, except_, wait)

    async def broadcast(
        self, data: Data, *, except_: Connection | None = None, wait: float = 0.0
    ) -> Delivery:
        """
        Push *data* to all open sockets.

        Args:
            data: As for :meth:`send_session`.
            except_: A connection to leave out.
            wait: As for :meth:`send_session`.

        Raises:
            TypeError: If *data* is neither a string nor bytes, *except_* not a connection, or
                *wait* not a number.
        """
        self._core.expect_loop()
        return await self._push(None, data, except_, wait)

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

    def on_relay(self, name: str) -> Callable[[R], R]:
        """
        Register an async function for messages that other nodes :meth:`relay` to *name*.

        A decorator, which may be used at any time. The function is called with the bytes of one
        message at a time.

        Raises:
            ValueError: If *name* already has a handler.
        """

        def add(handler: R) -> R:
            self._core.relays.add(name, handler)
            return handler

        return add

    async def relay(self, name: str, data: bytes) -> Delivery:
        """
        Send a message to the same endpoint on all other nodes: at most once, in order per sender.

        Waits until Redis has accepted the message, for 1 s at most.

        Args:
            name: The name that its handlers were registered for with :meth:`on_relay`.
            data: The message, 64 KiB at most.

        Returns:
            How many nodes it was sent to; incomplete if Redis hasn't accepted it. Whether a node
            was disconnected from Redis at that moment is not known.

        Raises:
            TypeError: If *data* isn't bytes.
            ValueError: If *data* is too large.
        """
        self._core.expect_loop()
        self._core.relays.check(data)
        return await self._core.cluster.relay(name, data)

    async def _push(
        self, subject: Subject | None, data: Data, except_: Connection | None, wait: float
    ) -> Delivery:
        self._core.expect_arguments(None, wait, except_)
        here = await self._core.push_here(subject, data, except_)
        return await self._core.cluster.push(subject, data, here, wait=wait)
