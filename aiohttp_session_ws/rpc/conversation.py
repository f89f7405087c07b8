"""
What the conversations of both dialects have in common: how a session begins and ends, and what its
client is asked.
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
from . import ground
from .call import Dialect
from .calls import Calls
from .errors import RUNTIME_ERROR, RPCError, SessionGone
from .halves import Step, first_half, outlast, run_all
from .host import Host
from .performing import Performer
from .realm import Realm
from .sending import Sender
from .session import Session, enter

__all__ = ["Asking", "Conversation"]

_TURN: Final = 32  # messages after which others have their turn


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


class Conversation:
    """
    One connection, which may have one session after another.

    Args:
        host: The application.
        registry: Whose socket it is.
        ws: The socket, open.
        binary: Whether its frames are binary ones.

    Attributes:
        connection: The socket, as the registry knows it.
        numbers: The first number of a request of ours, and the step to the next.
    """

    numbers = (1, 1)

    __slots__ = (
        "_asking", "_calls", "_entered", "_host", "_proven", "_registry", "_sender",
        "_session", "_taken", "_ws", "connection",
    )  # fmt: skip

    def __init__(
        self, host: Host, registry: SessionWSRegistry, ws: WebSocket, *, binary: bool
    ) -> None:
        self._host = host
        self._registry = registry
        self._ws = ws
        self._sender = Sender(ws, binary, host.limits)
        self._session: Session | None = None  # with it come _asking and _calls
        self._entered: list[Step] = []  # state handlers
        self._proven = False
        self._taken = 0  # messages
        self.connection: Connection = ws.connection

    async def _begin(self, session: Session, realm: Realm, dialect: Dialect) -> None:
        """
        Let a session begin, if its realm lets it.

        Raises:
            RPCError: If not.
        """
        host, sender, since = self._host, self._sender, self._registry.now()
        scope = host.scope(realm)
        session.identity, proven = await realm.authentication.identify(session, self._challenge)
        if proven or session.identity != self.connection.identity:
            await self._prove(session.identity, since)
        self._asking = Asking(*self.numbers)
        self._session = session
        performer = Performer(session, scope, host, sender, dialect)
        self._calls = Calls(performer, sender, host.limits)
        enter(session)
        host.sessions.add(session)
        try:
            for signature in host.state_handlers_of(realm):
                generator = scope.call(signature, session)
                self._entered.append(await first_half(signature.name, generator))
        except (RPCError, SessionGone):
            raise
        except (Exception, asyncio.CancelledError) as exc:
            if is_cancelled():
                raise
            log.exception("a session state handler failed")
            raise RPCError(RUNTIME_ERROR) from exc

    async def _challenge(self, method: str, extra: Mapping[str, Any]) -> str:
        """
        Challenge the peer by a method that it can, and return its answer.
        """
        raise NotImplementedError

    async def _prove(self, identity: Any, since: Any) -> None:
        """
        Let log-outs of an identity find this connection.
        """
        if identity is None:
            return
        try:
            await self._registry.prove(self.connection, identity, since=since)
            self._proven = True
        except NotSetUp:
            pass  # without identify, nobody can be logged out by it
        except (InvalidIdentity, TypeError) as exc:
            log.warning("no log-out will find the identity of a session: %s", exc)

    def _interrupt_all(self, session: Session) -> None:
        """
        Cancel what a session is doing, at once; the rest follows when its client has answered.
        """
        session.closed = True
        self._calls.interrupt()
        self._asking.stop()

    async def _leave(self) -> None:
        """
        End the session, if there is one: what it runs, what it has, and its state handlers.
        """
        session, self._session = self._session, None
        if session is None:
            return
        self._host.sessions.discard(session)
        self._interrupt_all(session)
        grace = ground.timeouts(self._registry).handler_grace
        # In a task of its own: the server cancels handlers that linger, and would cut short the
        # second half that happens to run. Each has its time, so this is over soon.
        ending = run_all(self._endings(grace), grace)
        task = asyncio.create_task(ending, name="end of a session")
        enter(None)  # for the next session's authenticators
        await outlast(task)

    def _endings(self, grace: float) -> Iterator[Step]:
        """
        Return what is to be done at the end of a session, in this order.
        """
        entered, self._entered = self._entered, []
        yield partial(self._calls.stop, grace / 2)
        yield from self._own_endings()
        yield self._calls.performer.close_objects
        yield from reversed(entered)
        if self._proven:
            self._proven = False
            self._registry.disprove(self.connection)

    def _own_endings(self) -> Iterator[Step]:
        """
        Return what is to be done in this dialect.
        """
        raise NotImplementedError

    async def _turn(self) -> None:
        """
        Let others have their turn, of however many messages a frame or a packet is.
        """
        self._taken += 1
        if not self._taken % _TURN:
            await asyncio.sleep(0)

    def _expect_session(self) -> Session:
        if self._session is None or self._session.closed:
            raise SessionGone("the session is over")
        return self._session
