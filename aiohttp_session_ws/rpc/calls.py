"""
The running and queued calls of one session.

Each call has a task of its own and is answered exactly once: by that task, or immediately
when it is cancelled. It counts against the limits until its answer has been passed to the
transport and its task has ended.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from functools import partial

from .._logging import log
from .call import Call
from .errors import CANCELED, UNAVAILABLE, RPCError, SessionGone
from .host import loggable_name
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
        performer: Runs the calls.
        sender: Sends their answers.
        limits: How many may run, and how many may wait.
    """

    performer: Performer
    sender: Sender
    limits: CallLimits
    _accepted: set[Call] = field(default_factory=set)
    _running: int = 0  # how many of these run; the others wait
    # Held by the next call to start.
    _start_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _slot_freed: asyncio.Future[None] | None = None  # awaited by the holder of _start_lock

    def __contains__(self, number: int) -> bool:
        return number in self.performer.unanswered

    async def submit(self, call: Call, timeout: float | None = None) -> None:
        """
        Run a call as soon as there is room for it, or refuse it.

        Args:
            call: A new call, whose number isn't in use.
            timeout: Seconds that the peer allows for it.
        """
        self.performer.unanswered[call.number] = call
        if timeout:
            self.performer.set_deadline(call, timeout)
        if len(self._accepted) >= self.limits.calls:
            await asyncio.sleep(0)  # calls that arrived together may not have run yet
            if not (call.answered or self._fits_queue(call)):
                await self.performer.refuse_new(call, RPCError(UNAVAILABLE, "too many calls"))
                return
        self._accepted.add(call)
        # Its first step stores the task in the call; until then the event loop references it.
        _ = _start(self._run(call), loop=asyncio.get_running_loop())

    def cancel(self, number: int, mode: object) -> None:
        """
        Cancel a call; does nothing if its result is known already, or if there is none.

        Args:
            number: The number of the call.
            mode: ``kill``, ``skip``, or anything else for ``killnowait``.
        """
        call = self.performer.unanswered.get(number)
        if call is None or call.finished:
            return
        if mode != "kill":
            self.performer.answer_error(call, RPCError(CANCELED))
        queued = call.task is not None and call.queued
        if mode != "skip" or queued:
            call.interrupt()

    def interrupt(self) -> None:
        """
        Cancel all calls but the one whose task calls this; none is answered any more.
        """
        own = asyncio.current_task()
        for call in {*self._accepted, *self.performer.unanswered.values()}:
            call.answered = True
            if call.task is not own:
                call.interrupt()
        self.performer.unanswered.clear()

    async def stop(self, grace: float) -> None:
        """
        End all calls.

        Args:
            grace: Seconds to wait for them; after that their cleanup is cancelled too.
        """
        self.interrupt()
        await asyncio.sleep(0)  # a task that was just created takes its first step
        names = {call.task: call.name for call in self._accepted if call.task is not None}
        if names:
            _, late = await asyncio.wait(names, timeout=grace)
            for task in late:
                task.cancel()
                name = loggable_name(names[task])
                log.warning(
                    "a call didn't stop within the grace period after its session ended: %s", name
                )

    def _fits_queue(self, call: Call) -> bool:
        if len(self._accepted) < self.limits.calls:
            return True
        waiting = [one.size for one in self._accepted if one.queued]
        fits = sum(waiting) + call.size <= self.limits.waiting_bytes
        return fits and len(waiting) < self.limits.waiting

    async def _run(self, call: Call) -> None:
        call.task = asyncio.current_task()
        sender = self.sender
        busy = self._running >= self.limits.calls or self._start_lock.locked()
        starts_now = not (busy or sender.is_full or sender.is_closed)
        if starts_now:
            self._begin(call)
        try:
            await self.performer.perform(call, None if starts_now else self._wait_for_slot)
        except SessionGone:
            pass  # the peer is gone: there is no one to answer
        finally:
            self._accepted.discard(call)
            if call.deadline is not None:
                call.deadline.cancel()
            if not call.queued:
                self._running -= 1
                if self._slot_freed is not None and not self._slot_freed.done():
                    self._slot_freed.set_result(None)

    async def _wait_for_slot(self, call: Call) -> None:
        """
        Wait until a call may start; queued calls start one at a time, in the order of arrival.
        """
        async with self._start_lock:
            while self._running >= self.limits.calls:
                self._slot_freed = asyncio.get_running_loop().create_future()
                await self._slot_freed
            await self.sender.drain()
        if self.sender.is_closed:
            raise SessionGone("the socket is closed")
        self._begin(call)

    def _begin(self, call: Call) -> None:
        self._running += 1
        call.queued = False
