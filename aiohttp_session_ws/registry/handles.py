"""
Handles: names of sessions that may be shown to a page, made as keyed hashes of their ids.

A session ws id is no secret of the storage, but should not be shown to a page either. A handle
means something only to processes that have the key. No table of handles is kept: one is resolved
by hashing the ids of open sockets.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Hashable
from typing import Final

from ..exceptions import NotSetUp
from ..results import Handle
from ..sessions.encoding import decode, encode
from .core import Core
from .questions import WAIT, Body

__all__: list[str] = []

PART: Final = 500  # ids that are hashed in a row
PURPOSE: Final = b"session handle"


class Handles:
    """
    Handles of sessions.
    """

    _core: Core

    def handle(self, session_ws_id: Hashable) -> Handle:
        """
        Return a name of a session that may be shown to a page, the same on all nodes.

        ``end_session()`` takes it in place of the id, as long as the session has an open socket.
        It proves nothing: check whose session it is before you end one for a user.

        Args:
            session_ws_id: The id of the session.

        Raises:
            NotSetUp: If the registry has no ``handle_key``.
            InvalidSessionWSId: If *session_ws_id* can't be an id.
        """
        return handle_of(self._core, self._core.usable_id(session_ws_id))


def handle_of(core: Core, session_ws_id: Hashable) -> Handle:
    """
    Return the handle of an id.
    """
    if core.handle_key is None:
        raise NotSetUp(
            "handles need a secret that all processes share: pass"
            " SessionWSRegistry(handle_key=...)"
        )
    # An id that is sent to no other process may be of any type.
    text = encode(session_ws_id) if core.cluster.remote else repr(session_ws_id)
    key = hashlib.sha256(core.handle_key).digest()
    found = hashlib.blake2b(text.encode(), key=key, digest_size=16, person=PURPOSE)
    return Handle(found.hexdigest())


async def resolve(core: Core, handle: Handle) -> Hashable | None:
    """
    Return the id that has a handle, among the open sockets of all nodes.
    """
    here = await resolve_here(core, handle)
    if here is not None:
        return here
    answers = await core.cluster.ask("resolve", {"handle": str(handle)}, WAIT)
    for body in answers.bodies:
        if "id" in body:
            return decode(body["id"])
    return None


async def resolve_here(core: Core, handle: Handle) -> Hashable | None:
    """
    Return the id that has a handle, among the open sockets of this node.
    """
    ids = list(core.connections.open.keys())
    for start in range(0, len(ids), PART):
        for session_ws_id in ids[start : start + PART]:
            if handle_of(core, session_ws_id) == handle:
                return session_ws_id
        await asyncio.sleep(0)  # other tasks run before the next part
    return None


def add_resolving(core: Core) -> None:
    """
    Let a registry resolve handles for other nodes.
    """

    async def respond(body: Body) -> Body:
        if core.handle_key is None:
            return {"unresolved": True}
        found = await resolve_here(core, Handle(body["handle"]))
        return {} if found is None else {"id": encode(found), "settles": True}

    core.questions.add("resolve", respond)
