"""
The facet of a registry that tells who is connected.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

from .._lineage import Subject
from ..results import Count, Snapshot
from .core import Core

__all__: list[str] = []

ANY: Final = object()  # where None stands for an anonymous session


class Queries:
    """
    Who is connected, at the moment of the question.
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
        Return what is open at this moment.

        Args:
            session: Only sockets of the session with this id; ``None`` is no session.
            identity: Only sockets of this identity; ``None`` is nobody's.
            label: Only sockets of sessions with this label, a pair of its name and its value.

        Raises:
            NotSetUp: If *identity* is given and the registry has no ``identify``, or *label*
                and it has no ``labels``.
            InvalidSessionWSId: If *session* can't be an id.
            InvalidIdentity: If *identity* can't be one, or no label can be called so.
            TypeError: If *label* is no pair.
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
        Return how many sockets are open, as an ``int`` that tells whether it is complete.
        """
        self._core.expect_loop()
        return await self._core.cluster.count(self._core.connections.open.size)
