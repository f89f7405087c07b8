"""
Objects that an application registers by hand, and the sessions that they belong to.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from .._lineage import LAST_GENERATION, Lineage
from ..connections.connection import NO_LINEAGE
from ..sessions.context import current_request
from .core import Core
from .identify import Owner

__all__: list[str] = []


def is_unaffected(core: Core, session_ws_id: str) -> bool:
    """
    Return whether no record can concern an object that is registered under an id, so that it
    needn't be judged.
    """
    if not core.overrides.random_ids or core.records.may_have_id(session_ws_id):
        return False
    context = current_request()  # the lineage of its own request may have ended
    return context is None or context.session_ws_id != session_ws_id


def add_by_hand(core: Core, session_ws_id: Hashable, ws: Any, identity: Hashable | None) -> bool:
    """
    Add an object that is registered by hand; return whether its session is alive.

    One that is in the index already, also a served socket, is filed under *identity* as well.
    """
    known = core.connections.open.get(session_ws_id, ws)
    if known is not None and identity in (None, known.identity):
        return True
    lineage = NO_LINEAGE if known is None else known.lineage
    if core.records.epoch:
        lineage = lineage if lineage.token else _lineage_of(core, session_ws_id)
        if not core.judge(lineage, session_ws_id, Owner(identity)).alive:
            return False
    if known is None:
        _ = core.connections.add_by_hand(session_ws_id, ws, identity, lineage)
    else:
        core.connections.file_proven(known, identity, core.clock.begin_time())
    return True


def remove_by_hand(core: Core, session_ws_id: Hashable, ws: Any) -> None:
    """
    Remove an object registered by hand, even if its session has another id by now.
    """
    connections = core.connections
    if connections.remove_by_hand(session_ws_id, ws):
        return
    note = core.records.note_of(session_ws_id)
    for connection in [] if note is None else connections.of_lineage(note.token):
        if connection.ws is ws:
            _ = connections.remove_by_hand(connection.session_ws_id, ws)


def _lineage_of(core: Core, session_ws_id: Hashable) -> Lineage:
    """
    Return the lineage that an id belongs to, as far as it is known.
    """
    context = current_request()
    if context is not None and context.session_ws_id == session_ws_id and context.lineage:
        return context.lineage
    note = core.records.note_of(session_ws_id)
    if note is not None:
        return Lineage(note.token, LAST_GENERATION, note.began)
    # A derived id may be in use again after it was ended.
    return NO_LINEAGE if core.overrides.random_ids else Lineage("", 0, core.clock.now())
