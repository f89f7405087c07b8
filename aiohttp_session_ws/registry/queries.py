"""
The registry's methods that list and count open connections.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

from .._lineage import Subject
from ..results import Count, Snapshot
from .core import Core

__all__: list[str] = []

ANY: Final = object()  # the default of arguments for which None has a meaning of its own


class Queries:
    """
    Queries for open connections, answered at the time of the call.
    """

    _core: Core

    async def connections(
        self,
        *,
        session: Hashable | None = ANY,
        identity: Hashable | None = ANY,
        label: tuple[str, Hashable] | None = None,
    ) -> Snapshot:
        """
        Return the connections that are open now, on all nodes.

        Args:
            session: Only sockets of the session with this id; for ``None`` the result is empty.
            identity: Only sockets of this identity; for ``None`` the result is empty.
            label: Only sockets of sessions with this label, a pair of its name and its value.

        Raises:
            NotSetUp: If *identity* is given and the registry has no ``identify``, or *label*
                and it has no ``labels``.
            InvalidSessionWSId: If *session* can't be an id.
            InvalidIdentity: If *identity* or *label* can't be used as one.
            TypeError: If *label* is not a pair.
        """
        core = self._core
        core.expect_loop()
        subjects = []
        if identity is not ANY:
            core.identifier.expect()
        if session is None or identity is None:
            return Snapshot(())
        if session is not ANY:
            subjects.append(Subject("id", core.usable_id(session)))
        if identity is not ANY:
            subjects.append(core.identifier.subject_of(identity))
        if label is not None:
            core.identifier.expect_labels()
            if not isinstance(label, tuple) or len(label) != 2:  # type: ignore[redundant-expr]
                raise TypeError(f"label is a pair of a name and a value, not {label!r}")
            subjects.append(core.identifier.subject_of_label(*label))
        first, *others = [await self._of(subject) for subject in subjects or (None,)]
        for other in others:
            known = {(info.node, info.id) for info in other}
            found = (info for info in first if (info.node, info.id) in known)
            first = Snapshot(found, complete=first.complete and other.complete)
        return first

    async def _of(self, subject: Subject | None) -> Snapshot:
        return await self._core.cluster.connections(subject, self._core.snapshot(subject))

    async def count(self) -> Count:
        """
        Return how many sockets are open on all nodes, as an ``int`` with ``.complete``.
        """
        self._core.expect_loop()
        return await self._core.cluster.count(self._core.connections.open.size)
