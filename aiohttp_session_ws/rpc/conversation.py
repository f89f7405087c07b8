"""
Base of the conversations in both dialects: beginning and end of a session, and pending requests
to its client.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

from .._logging import log
from .._tasks import is_cancelled
from ..connections.connection import Connection
from ..exceptions import InvalidIdentity, NotSetUp
from ..handlers.websocket import WebSocket
from ..registry.registry import SessionWSRegistry
from . import registry_access
from .call import Dialect
from .calls import Calls
from .errors import RUNTIME_ERROR, RPCError, SessionGone
from .host import Host
from .lifecycle import Step, enter_generator, run_steps, wait_until_done
from .performing import Performer
from .realm import Realm
from .sending import Sender
from .session import Session, set_current_session

__all__ = ["Conversation", "PendingRequests"]

_YIELD_EVERY: Final = 32  # messages after which control returns to the event loop


class PendingRequests:
    """
    Pending requests to a client, by number.

    Args:
        first: The number of the first request.
        step: The increment from one number to the next.
    """

    __slots__ = ("_numbers", "_pending")

    def __init__(self, first: int, step: int) -> None:
        self._numbers = itertools.count(first, step)
        self._pending: dict[int, asyncio.Future[Any]] = {}

    async def request(
        self,
        send: Callable[[int], Awaitable[None]],
        interrupt: Callable[[int], None],
        timeout: float | None,
    ) -> Any:
        """
        Send a request to the client and wait for its answer.

        Args:
            send: Sends the request with the given number.
            interrupt: Notifies the client that the answer to a number is no longer awaited.
            timeout: Seconds to wait.

        Raises:
            TimeoutError: If there is no answer in time.
            RemoteError: If the answer is an error.
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

    def resolve(self, number: int, result: Any = None, error: BaseException | None = None) -> None:
        """
        Complete the pending request that an answer is for; late and unknown answers are dropped.
        """
        answer = self._pending.get(number)
        if answer is None or answer.done():
            return
        if error is None:
            answer.set_result(result)
        else:
            answer.set_exception(error)
            answer.exception()  # retrieved: the caller may have been cancelled just now

    def fail_all(self) -> None:
        """
        Fail all pending requests with :class:`SessionGone`.
        """
        for number in self._pending:
            self.resolve(number, error=SessionGone("the session is over"))
        self._pending.clear()


class Conversation:
    """
    One connection, which may serve several sessions, one after another.

    Args:
        host: The application.
        registry: The registry of the socket.
        ws: The socket, open.
        binary: Whether its frames are binary ones.

    Attributes:
        connection: The registry's entry for the socket.
        numbers: The number of our first request, and the increment to the next.
    """

    numbers = (1, 1)

    __slots__ = (
        "_calls", "_exit_steps", "_host", "_pending_requests", "_proven", "_received", "_registry",
        "_sender", "_session", "_ws", "connection",
    )  # fmt: skip

    def __init__(
        self, host: Host, registry: SessionWSRegistry, ws: WebSocket, *, binary: bool
    ) -> None:
        self._host = host
        self._registry = registry
        self._ws = ws
        self._sender = Sender(ws, binary, host.limits)
        self._session: Session | None = None  # set together with _pending_requests and _calls
        self._exit_steps: list[Step] = []  # second halves of state handlers
        self._proven = False
        self._received = 0  # messages received
        self.connection: Connection = ws.connection

    async def _begin_session(self, session: Session, realm: Realm, dialect: Dialect) -> None:
        """
        Begin a session: authenticate it, and run the first halves of its state handlers.

        Raises:
            RPCError: If it is refused, or a state handler fails.
        """
        host, sender, since = self._host, self._sender, self._registry.now()
        scope = host.scope(realm)
        session.identity, proven = await realm.authentication.identify(session, self._challenge)
        if proven or session.identity != self.connection.identity:
            await self._prove(session.identity, since)
        self._pending_requests = PendingRequests(*self.numbers)
        self._session = session
        performer = Performer(session, scope, host, sender, dialect)
        self._calls = Calls(performer, sender, host.limits)
        set_current_session(session)
        host.sessions.add(session)
        try:
            for signature in host.state_handlers_of(realm):
                generator = scope.call(signature, session)
                self._exit_steps.append(await enter_generator(signature.name, generator))
        except (RPCError, SessionGone):
            raise
        except (Exception, asyncio.CancelledError) as exc:
            if is_cancelled():
                raise
            log.exception("a session state handler failed")
            raise RPCError(RUNTIME_ERROR) from exc

    async def _challenge(self, method: str, extra: Mapping[str, Any]) -> str:
        """
        Challenge the peer by a method that it supports, and return its answer.
        """
        raise NotImplementedError

    async def _prove(self, identity: Any, since: Any) -> None:
        """
        File the connection under an identity, so that a log-out of the identity closes it.
        """
        if identity is None:
            return
        try:
            await self._registry.prove(self.connection, identity, since=since)
            self._proven = True
        except NotSetUp:
            pass  # without identify, the registry can't end identities
        except (InvalidIdentity, TypeError) as exc:
            msg = "the identity of a session can't be filed, so a log-out won't close it: %s"
            log.warning(msg, exc)

    def _interrupt_all(self, session: Session) -> None:
        """
        Mark a session closed, cancel its calls, fail its requests; :meth:`_end_session` follows.
        """
        session.closed = True
        self._calls.interrupt()
        self._pending_requests.fail_all()

    async def _end_session(self) -> None:
        """
        End the session, if there is one: its calls, its objects and its state handlers.
        """
        session, self._session = self._session, None
        if session is None:
            return
        self._host.sessions.discard(session)
        self._interrupt_all(session)
        grace = registry_access.timeouts(self._registry).handler_grace
        # In a task of its own: the server cancels handlers that don't return in time, which would
        # interrupt a second half. The steps have a time limit, so this is over soon.
        ending = run_steps(self._end_steps(grace), grace)
        task = asyncio.create_task(ending, name="end of a session")
        set_current_session(None)  # for the next session's authenticators
        await wait_until_done(task)

    def _end_steps(self, grace: float) -> Iterator[Step]:
        """
        Return the steps that end a session, in this order.
        """
        exit_steps, self._exit_steps = self._exit_steps, []
        yield partial(self._calls.stop, grace / 2)
        yield from self._dialect_end_steps()
        yield self._calls.performer.close_objects
        yield from reversed(exit_steps)
        if self._proven:
            self._proven = False
            self._registry.disprove(self.connection)

    def _dialect_end_steps(self) -> Iterator[Step]:
        """
        Return those of the steps that depend on the dialect.
        """
        raise NotImplementedError

    async def _yield_to_loop(self) -> None:
        """
        Return control to the event loop now and then: a frame or a packet may hold many messages.
        """
        self._received += 1
        if not self._received % _YIELD_EVERY:
            await asyncio.sleep(0)

    def _expect_session(self) -> Session:
        if self._session is None or self._session.closed:
            raise SessionGone("the session is over")
        return self._session
