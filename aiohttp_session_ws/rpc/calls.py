"""
The calls of one session that are running, or wait to be run.

Each call runs in a task of its own and is answered exactly once, by that task, or at once by
whoever cancels it. It counts against the limits until its answer is with the transport and
its task has ended.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
from dataclasses import dataclass, field

from .call import Call
from .errors import CANCELED, TIMEOUT, UNAVAILABLE, RPCError, SessionGone
from .limits import CallLimits
from .performing import Performer
from .sending import Sender

__all__ = ["Calls"]

log = logging.getLogger("aiohttp_session_ws")


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
    _running: set[Call] = field(default_factory=set)
    _waiting: list[Call] = field(default_factory=list)
    _bytes: int = 0  # of what waits
    _returned: int = 0  # how many of them were begun already

    def __post_init__(self) -> None:
        self.sender.on_room = self._go_on

    def __contains__(self, number: int) -> bool:
        return number in self.performer.unanswered

    def take(self, call: Call, timeout: float | None = None) -> bool:
        """
        Run a call now, if there is room; tell whether. If not, :meth:`wait` is for it.

        Args:
            call: A new one, whose number isn't in use.
            timeout: Seconds that the peer gives it.
        """
        self.performer.unanswered[call.number] = call
        if timeout:
            self._set_deadline(call, timeout)
        return self._begin_if_room(call)

    async def wait(self, call: Call) -> None:
        """
        Let a call wait for room, or refuse it.
        """
        limits = self.limits
        if len(self._running) >= limits.calls:
            await asyncio.sleep(0)  # many calls may have come at once, and not had their turn
            if self._begin_if_room(call):
                return
        many = len(self._waiting) >= limits.waiting
        if many or self._bytes + call.size > limits.waiting_bytes:
            await self._refuse(call)
            return
        self._waiting.append(call)
        self._bytes += call.size
        if self.sender.is_full:
            self.sender.watch()

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
        if call.task is None:  # it waits
            self._withdraw(call)
        elif mode == "kill":
            call.interrupt()
        else:
            self.performer.refuse(call, RPCError(CANCELED))
            if mode != "skip":
                call.interrupt()

    def interrupt(self) -> set[asyncio.Task[None]]:
        """
        Cancel all calls but the one that asks for this; they are not answered any more.

        Returns:
            What runs them.
        """
        for call in self._waiting:
            call.answered = True
            if call.deadline is not None:
                call.deadline.cancel()
        self._waiting.clear()
        self.performer.unanswered.clear()
        own, tasks = asyncio.current_task(), set()
        for call in self._running:
            call.answered = True
            if call.task is not None and call.task is not own:
                call.interrupt()
                tasks.add(call.task)
        return tasks

    async def stop(self, grace: float) -> None:
        """
        End all calls.

        Args:
            grace: Seconds to wait for them.
        """
        tasks = self.interrupt()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace)
            for task in late:
                log.warning("a call goes on though its session is over: %s", task.get_coro())

    def _begin_if_room(self, call: Call) -> bool:
        if self._waiting or len(self._running) >= self.limits.calls or self.sender.is_full:
            return False
        self._begin(call)
        return True

    def _begin(self, call: Call) -> None:
        self._running.add(call)
        loop = asyncio.get_running_loop()
        if sys.version_info >= (3, 12):
            call.task = asyncio.Task(self._run(call), loop=loop, name="call", eager_start=True)
        else:
            call.task = asyncio.Task(self._run(call), loop=loop, name="call")

    async def _run(self, call: Call) -> None:
        if call.task is None:  # it was started eagerly
            call.task = asyncio.current_task()
        if self.sender.is_full and not (call.given_up or call.answered):
            self._put_back(call)  # those before it, in this very turn, have filled the queue
            return
        call.begun = True
        try:
            await self.performer.perform(call, self._set_deadline)
        except SessionGone:
            pass  # nobody is there to hear the answer
        finally:
            self._running.discard(call)
            if call.deadline is not None:
                call.deadline.cancel()
            if self._waiting:
                self._go_on()

    def _put_back(self, call: Call) -> None:
        self._running.discard(call)
        call.task = None
        self._waiting.insert(self._returned, call)
        self._returned += 1
        self._bytes += call.size
        self.sender.watch()

    def _go_on(self) -> None:
        """
        Begin what waits, as far as there is room.
        """
        full = self.sender.is_full or self.sender.is_closed  # and the session ends next
        while self._waiting and len(self._running) < self.limits.calls and not full:
            call = self._waiting.pop(0)
            self._bytes -= call.size
            self._returned = max(0, self._returned - 1)
            self._begin(call)
            full = self.sender.is_full
        if self._waiting and self.sender.is_full:
            self.sender.watch()

    def _withdraw(self, call: Call) -> None:
        if call in self._waiting:
            self._returned -= self._waiting.index(call) < self._returned
            self._waiting.remove(call)
            self._bytes -= call.size
        call.given_up = True
        self._begin(call)  # which finds that, and answers

    def _set_deadline(self, call: Call, timeout: float) -> None:
        loop = asyncio.get_running_loop()
        when = loop.time() + timeout
        if call.deadline is not None:
            if call.deadline.when() <= when:
                return
            call.deadline.cancel()
        call.deadline = loop.call_at(when, self._expire, call, context=contextvars.Context())

    def _expire(self, call: Call) -> None:
        if call.answering or call.answered:
            return
        call.expired = True
        if call.task is None:
            self._withdraw(call)
        else:
            self.performer.refuse(call, RPCError(TIMEOUT))
            call.interrupt()

    async def _refuse(self, call: Call) -> None:
        error = RPCError(UNAVAILABLE, "too many calls at once")
        if call.deadline is not None:
            call.deadline.cancel()
        self.performer.refuse(call, error)
        await self.performer.tell_refused(call, error)
