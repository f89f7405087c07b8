"""
The short way of arrival, for the request of a living session: a few look-ups, and no await.
"""

from __future__ import annotations

import math
from typing import Final

from aiohttp import web
from aiohttp_session import Session

from .._lineage import Lineage, Subject
from ..sessions.context import HANDLING, RequestContext
from ..sessions.records import LineageRenewed
from ..sessions.session import content_of
from ..sessions.status import effective_began
from .core import Core

__all__: list[str] = []

OWN_KEYS: Final = 2  # the id and the lineage


def arrive_at_once(
    core: Core, request: web.Request, session: Session, arrived: float, started: float
) -> RequestContext | None:
    """
    Judge a request whose session is loaded, carries all it needs, and is of no interest to
    any record; ``None`` if there is more to do.
    """
    try:  # quicker than get()
        session_ws_id, lineage = session[core.keys.id], Lineage.parse(session[core.keys.lineage])
    except KeyError:
        return None
    if lineage is None or type(session_ws_id) is not str or core.overrides.ids:
        return None
    records = core.records
    if core.cluster.remote and core.cluster.check_due(lineage.token):
        return None
    if (
        lineage.generation or records.has_subjects or records.knows(lineage.token)
    ) and not _is_unremarkable(core, lineage, session_ws_id):
        return None
    context = RequestContext(request, arrived, started)
    context.lineage, context.session_ws_id = lineage, session_ws_id
    context.newest, context.carried = lineage.generation, True
    context.epoch = records.epoch
    context.held_data = len(session) > OWN_KEYS
    context.session, context.stage = session, HANDLING
    if core.identifier.asks:
        context.content = content_of(session, core.keys)
    return context


def _is_unremarkable(core: Core, lineage: Lineage, session_ws_id: str) -> bool:
    """
    Tell whether no record but that of its own newest generation may concern a session.
    """
    records = core.records
    if records.knows(lineage.token):
        record = records.lineage(lineage.token)
        if (
            not isinstance(record, LineageRenewed)
            or record.generation != lineage.generation
            or not record.seen
        ):
            return False
    elif lineage.generation:
        return False
    if not records.has_subjects:
        return True
    if records.ended_before(Subject("id", session_ws_id)) > -math.inf:
        return False
    if not core.identifier.asks:
        return True
    return records.latest_owner_end < effective_began(lineage, core.clock.now())
