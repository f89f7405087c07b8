"""
What a handler did to the session that its request came with.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from aiohttp import web
from aiohttp_session import Session

from ..sessions.context import NO_ORDERS, RequestContext
from ..sessions.session import id_in
from .core import Core
from .identify import NOBODY, Owner

__all__: list[str] = []


class Outcome(NamedTuple):
    """
    What a handler did to the session that its request came with.

    Attributes:
        anew: It was replaced or emptied, or its derived id went away or changed.
        owner: Whom the session belongs to now.
        previous: Whom it belonged to.
        renewed: It goes on under another id.
        removed: Its id was taken away, and nothing tells whether somebody has logged out.
    """

    anew: bool
    owner: Owner
    previous: Owner
    renewed: bool
    removed: bool

    @property
    def changed_hands(self) -> bool:
        """
        Whether the session belongs to somebody else, or to nobody any more.
        """
        return not self.anew and self.owner.identity != self.previous.identity

    @property
    def logged_in(self) -> bool:
        """
        Whether an anonymous visitor has logged in.
        """
        return self.changed_hands and self.previous.identity is None


UNCHANGED: Final = Outcome(anew=False, owner=NOBODY, previous=NOBODY, renewed=False, removed=False)


async def compare(
    core: Core, request: web.Request, context: RequestContext, session: Session
) -> Outcome:
    """
    Classify how the handler of *request* changed its session.

    Args:
        core: The registry's parts.
        request: The request.
        context: What it came with.
        session: The session that it has now.
    """
    if _is_as_given(core, context, session):
        return UNCHANGED
    came = None if context.fresh else context.session_ws_id
    anew = session is not context.session or _was_emptied(core, context, session)
    owner = previous = NOBODY
    if core.overrides.ids:
        now = await core.current_id(request)
        if now != came and not context.orders.renewed:
            # A derived id tells whose session it is, where nothing else does.
            owner, previous = Owner(now), Owner(came)
            anew = anew or (core.identifier.identify is not None and came is not None)
    else:
        now = id_in(session, core.keys.id)
    renewed = context.orders.renewed or (not core.overrides.ids and now not in (None, came))
    removed = not core.overrides.ids and now is None and came is not None
    if core.identifier.identify is not None:
        owner = await core.identifier.of(request)
        previous = await _previous_owner(core, request, context)
        renewed, removed = renewed or removed, False
    return Outcome(anew, owner, previous, renewed and not anew, removed and not anew)


def _is_as_given(core: Core, context: RequestContext, session: Session) -> bool:
    """
    Tell whether the only changes are those that were made on arrival.
    """
    return (
        context.given
        and session is context.session
        and context.orders is NO_ORDERS
        and not core.overrides.ids
        and dict(session) == context.content
    )


def _was_emptied(core: Core, context: RequestContext, session: Session) -> bool:
    if context.carried:
        return core.keys.lineage not in session
    return context.held_data and session.empty


async def _previous_owner(core: Core, request: web.Request, context: RequestContext) -> Owner:
    if context.fresh or context.session is None or not context.content:
        return NOBODY
    return await core.identifier.of_content(request, context.session, context.content)
