"""
Our calls to one client.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

from .errors import SessionGone

__all__ = ["Asking"]


class Asking:
    """
    What a client has been asked and has not answered.

    Args:
        first: The number of the first request.
        step: From one number to the next.
    """

    __slots__ = ("_numbers", "_pending")

    def __init__(self, first: int, step: int) -> None:
        self._numbers = itertools.count(first, step)
        self._pending: dict[int, asyncio.Future[Any]] = {}

    async def ask(
        self,
        send: Callable[[int], Awaitable[None]],
        interrupt: Callable[[int], None],
        timeout: float | None,
    ) -> Any:
        """
        Ask the client, and wait for its answer.

        Args:
            send: Sends the request of that number.
            interrupt: Tells the client that nobody waits for its answer any more.
            timeout: Seconds to wait.

        Raises:
            TimeoutError: If they are over.
            RemoteError: If that is the answer.
            SessionGone: If the session ends.
        """
        number = next(self._numbers)
        answer = self._pending[number] = asyncio.get_running_loop().create_future()
        sent = False
        try:
            async with asyncio.timeout(timeout):
                await send(number)
                sent = True
                return await answer
        finally:
            known = self._pending.pop(number, None) is not None
            if sent and known and (answer.cancelled() or not answer.done()):
                interrupt(number)

    def answer(self, number: int, result: Any = None, error: BaseException | None = None) -> None:
        """
        Hand an answer to whoever waits for it; late and unknown ones are dropped.
        """
        answer = self._pending.get(number)
        if answer is None or answer.done():
            return
        if error is None:
            answer.set_result(result)
        else:
            answer.set_exception(error)
            answer.exception()  # whoever has asked may have been cancelled in this very turn

    def stop(self) -> None:
        """
        Tell all who wait that the session is over.
        """
        for number in self._pending:
            self.answer(number, error=SessionGone("the session is over"))
        self._pending.clear()
