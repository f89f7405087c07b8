"""
The procedures that one client has registered, for us to call.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from . import errors, wamp_messages as wamp
from .errors import NotRegistered, RPCError
from .in_order import InOrder
from .session import new_id

__all__ = ["Registrations"]


@dataclass(slots=True, eq=False)
class Registrations:
    """
    The registrations of one session.

    Args:
        work: What does its requests in order.
    """

    work: InOrder
    _by_name: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.work.handlers[wamp.Register] = self.register
        self.work.handlers[wamp.Unregister] = self.unregister

    def number_of(self, name: str) -> int:
        """
        Return the number of a registration.

        Raises:
            NotRegistered: If there is none.
        """
        if name not in self._by_name:
            raise NotRegistered(
                f"the client has not registered {name!r}: it has to REGISTER what it is asked"
            )
        return self._by_name[name]

    async def register(self, message: wamp.Register) -> None:
        """
        Let the client offer a procedure, if it may.
        """
        name = message.procedure
        await self.work.scope.expect_allowed(self.work.session, "register", name)
        if name in self._by_name:
            raise RPCError(errors.PROCEDURE_ALREADY_EXISTS, "registered already")
        if len(self._by_name) >= self.work.scope.limits.registrations:
            raise RPCError(errors.UNAVAILABLE, "too many registrations")
        self._by_name[name] = number = new_id()
        await self.work.answer(message.request, wamp.registered(message.request, number))

    async def unregister(self, message: wamp.Unregister) -> None:
        """
        Let it take its offer back.
        """
        for name, number in self._by_name.items():
            if number == message.registration:
                del self._by_name[name]
                await self.work.answer(message.request, wamp.unregistered(message.request))
                return
        raise RPCError(errors.NO_SUCH_REGISTRATION, "no such registration")
