"""
Limits over all nodes: takes and reports the places of sockets in Redis.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from .._lineage import Subject
from .._logging import OncePerMinute, log
from ..exceptions import RedisUnavailable
from ..registry.cluster import Held, Place, Taken
from ..sessions.encoding import encode
from .clock import RedisClock
from .entries import Argument
from .io.commands import Commands
from .io.connect import REDIS_ERRORS, reason
from .io.place_scripts import REPORT, TAKE
from .io.scripts import Script

__all__: list[str] = []


class PlaceKeeper:
    """
    Takes and reports the places of this node.

    Args:
        commands: The connection for commands.
        clock: The clock of all nodes.
        instance: The node's own name.
    """

    def __init__(self, commands: Commands, clock: RedisClock, instance: str) -> None:
        self._commands = commands
        self._clock = clock
        self._instance = instance
        self._logged = OncePerMinute()

    async def take(
        self, number: int, limits: Mapping[Subject, int], *, evict: bool
    ) -> Taken | None:
        """
        Take a place for a handshake under each subject in *limits*, or under none.

        Redis runs one script at a time: of two nodes that want the last place one gets it.
        """
        args: list[Argument] = [number, *limits.values()]
        answer = await self._run(TAKE, [*limits], evict=evict, args=args)
        if answer is None:
            return None
        granted, *found = answer
        return Taken(bool(granted), _by_subject([*limits], found))

    async def report(
        self, held: Sequence[Held], *, evict: bool
    ) -> dict[Subject, list[Place]] | None:
        """
        Report all places of this node under some subjects; Redis drops its others there.
        """
        args: list[Argument] = []
        now = self._clock.now()
        for _, limit, ages in held:
            args += [limit, len(ages)]
            for number, age in ages.items():
                args += [number, f"{now - age:.6f}"]
        subjects = [subject for subject, _, _ in held]
        answer = await self._run(REPORT, subjects, evict=evict, args=args)
        return None if answer is None else _by_subject(subjects, answer)

    async def _run(
        self, script: Script, subjects: Sequence[Subject], *, evict: bool, args: Sequence[Argument]
    ) -> list[Any] | None:
        if not self._clock.known:
            return None
        prefix = self._commands.prefix
        keys = [f"{prefix}places:{kind}:{encode(value)}" for kind, value in subjects]
        head: list[Argument] = [1 + len(keys), prefix, *keys, self._instance, int(evict)]
        answer = self._commands.run_script(script, *head, *args)
        _ = await asyncio.wait({answer})  # the script runs on if the caller is cancelled
        try:
            found: list[Any] = answer.result()
        except RedisUnavailable:
            return None
        except REDIS_ERRORS as exc:
            if self._logged.allows("places"):
                log.warning(
                    "limits over all nodes are unavailable (%s): each process counts its own"
                    " sockets for now",
                    reason(exc),
                )
            return None
        return found


def _by_subject(
    subjects: Sequence[Subject], found: Sequence[Sequence[bytes]]
) -> dict[Subject, list[Place]]:
    return {
        subject: [_place(text.decode()) for text in places]
        for subject, places in zip(subjects, found, strict=True)
    }


def _place(text: str) -> Place:
    node, _, number = text.rpartition("#")
    return Place(node, int(number))
