"""
The calls of one session that are running, or wait to be run.

Each call has a task of its own and is answered exactly once, by that task, or at once by
whoever cancels it. It counts against the limits until its answer is with the transport and
its task has ended.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from functools import partial

from .._logging import log
from .call import Call
from .errors import CANCELED, UNAVAILABLE, RPCError, SessionGone
from .host import in_a_line
from .limits import CallLimits
from .performing import Performer
from .sending import Sender

__all__ = ["Calls"]

if sys.version_info >= (3, 12):
    _start = partial(asyncio.Task, name="call", eager_start=True)
else:
    _start = partial(asyncio.Task, name="call")


@dataclass(slots=True, eq=False)
class Calls:
    """
    The calls of one session.

    Args:
        performer: Runs them.
        sender: Where their answers go.
        limits: How many there may be.
    """

    performer: Performer
    sender: Sender
    limits: CallLimits
    _taken: set[Call] = field(default_factory=set)
    _running: int = 0  # of these; the others wait
    _door: asyncio.Lock = field(default_factory=asyncio.Lock)  # where they wait, in order
    _ended: asyncio.Future[None] | None = None  # what the first of them waits for

    def __contains__(self, number: int) -> bool:
        return number in self.performer.unanswered

    async def take(self, call: Call, timeout: float | None = None) -> None:
        """
        Run a call as soon as there is room for it, or refuse it.

        Args:
            call: A new one, whose number isn't in use.
            timeout: Seconds that the peer gives it.
        """
        self.performer.unanswered[call.number] = call
        if timeout:
            self.performer.set_deadline(call, timeout)
        if len(self._taken) >= self.limits.calls:
            await asyncio.sleep(0)  # many calls may have come at once, and not had their turn
            if not (call.answered or self._may_wait(call)):
                await self.performer.refuse_new(call, RPCError(UNAVAILABLE, "too many calls"))
                return
        self._taken.add(call)
        # Its first step puts the task into the call; until then the loop keeps it.
        _ = _start(self._run(call), loop=asyncio.get_running_loop())

    def cancel(self, number: int, mode: object) -> None:
        """
        Give up a call; nothing happens if it is answered, or unknown.

        Args:
            number: Of the call.
            mode: ``kill``, ``skip``, or anything else for ``killnowait``.
        """
        call = self.performer.unanswered.get(number)
        if call is None or call.answering:
            return
        if mode != "kill":
            self.performer.refuse(call, RPCError(CANCELED))
        in_line = call.task is not None and call.waits
        if mode != "skip" or in_line:
            call.interrupt()

    def interrupt(self) -> None:
        """
        Cancel all calls but the one that asks for this; they are not answered any more.
        """
        own = asyncio.current_task()
        for call in {*self._taken, *self.performer.unanswered.values()}:
            call.answered = True
            if call.task is not own:
                call.interrupt()
        self.performer.unanswered.clear()

    async def stop(self, grace: float) -> None:
        """
        End all calls.

        Args:
            grace: Seconds to wait for them; then what they do at their end is cancelled too.
        """
        self.interrupt()
        await asyncio.sleep(0)  # a task that has just been made takes its first step
        names = {call.task: call.name for call in self._taken if call.task is not None}
        if names:
            _, late = await asyncio.wait(names, timeout=grace)
            for task in late:
                task.cancel()
                name = in_a_line(names[task])
                log.warning("a call goes on though its session is over: %s", name)

    def _may_wait(self, call: Call) -> bool:
        if len(self._taken) < self.limits.calls:
            return True
        waiting = [one.size for one in self._taken if one.waits]
        fits = sum(waiting) + call.size <= self.limits.waiting_bytes
        return fits and len(waiting) < self.limits.waiting

    async def _run(self, call: Call) -> None:
        call.task = asyncio.current_task()
        sender = self.sender
        crowded = self._running >= self.limits.calls or self._door.locked() or sender.is_full
        may_begin = not (crowded or sender.is_closed)
        if may_begin:
            self._begin(call)
        try:
            await self.performer.perform(call, None if may_begin else self._wait)
        except SessionGone:
            pass  # nobody is there to hear the answer
        finally:
            self._taken.discard(call)
            if call.deadline is not None:
                call.deadline.cancel()
            if not call.waits:
                self._running -= 1
                if self._ended is not None and not self._ended.done():
                    self._ended.set_result(None)

    async def _wait(self, call: Call) -> None:
        """
        Wait until a call may begin; where there is little room, one begins after another.
        """
        async with self._door:
            while self._running >= self.limits.calls:
                self._ended = asyncio.get_running_loop().create_future()
                await self._ended
            await self.sender.room()
        if self.sender.is_closed:
            raise SessionGone("the socket is closed")
        self._begin(call)

    def _begin(self, call: Call) -> None:
        self._running += 1
        call.waits = False
