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
        self, *, session: Hashable | None = ANY, identity: Hashable | None = ANY
    ) -> Snapshot:
        """
        Return what is open at this moment.

        Args:
            session: Only sockets of the session with this id; ``None`` is no session.
            identity: Only sockets of this identity; ``None`` is nobody's.

        Raises:
            NotSetUp: If *identity* is given and the registry has no ``identify``.
        """
        core = self._core
        core.expect_loop()
        if identity is not ANY:
            core.identifier.expect()
        if session is None or identity is None:
            return Snapshot(())
        if session is not ANY:
            found = await self._of(Subject("id", core.usable_id(session)))
            if identity is ANY:
                return found
            of_both = (info for info in found if info.identity == identity)
            return Snapshot(of_both, complete=found.complete)
        if identity is not ANY:
            return await self._of(Subject("identity", core.identifier.usable(identity)))
        return await self._of(None)

    async def _of(self, subject: Subject | None) -> Snapshot:
        return await self._core.cluster.connections(subject, self._core.snapshot(subject))

    async def count(self) -> Count:
        """
        Return how many sockets are open, as an ``int`` that tells whether it is complete.
        """
        self._core.expect_loop()
        return await self._core.cluster.count(self._core.connections.open.size)
