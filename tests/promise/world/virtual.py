"""
An event loop in virtual time, and the clocks that go with it.

Nothing in a world sleeps: when all tasks wait, the time jumps to the next timer. Half a minute of
grace costs only the timers that fire in it, and the same seed gives the same run.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import selectors
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any, TypeVar
from unittest import mock

import hiredis

T = TypeVar("T")

EPOCH = float(int(time.time()))  # the wall clock when a world begins
UPTIME = 1_000.0  # the monotonic clock when a world begins
TICK = 1e-6  # seconds that a turn of the event loop takes
SILENCE = 60.0  # real seconds to wait for a server outside of the world
INCOMPLETE = object()  # what a parser returns until a message is complete
CLOCKS = (time.time, time.monotonic)
PATCHED = ("aiohttp_session_ws", "aiohttp_session", "tests.")  # packages whose clocks are virtual


class VirtualTime:
    """The clocks of a world.

    Attributes:
        elapsed: Seconds since the world began.
        wall_offset: Seconds by which the wall clock has been set.
    """

    def __init__(self) -> None:
        self.elapsed = 0.0
        self.wall_offset = 0.0

    def monotonic(self) -> float:
        """Replace ``time.monotonic``."""
        return UPTIME + self.elapsed

    def time(self) -> float:
        """Replace ``time.time``."""
        return EPOCH + self.elapsed + self.wall_offset


class Owed:
    """The number of replies that Redis still owes on a connection.

    Attributes:
        answers: The number of outstanding replies.
    """

    def __init__(self) -> None:
        self.answers = 0
        self._commands = hiredis.Reader(notEnoughData=INCOMPLETE)
        self._answers = hiredis.Reader(notEnoughData=INCOMPLETE)

    def sent(self, data: bytes) -> None:
        """Count the replies that the sent commands require."""
        self._commands.feed(data)
        while (command := self._commands.gets()) is not INCOMPLETE:
            # Each channel is confirmed separately.
            subscribing = command[0].upper() in (b"SUBSCRIBE", b"PSUBSCRIBE")
            self.answers += len(command) - 1 if subscribing else 1

    def received(self, data: bytes) -> None:
        """Subtract received replies; publications are unrequested, so the count stops at 0."""
        self._answers.feed(data)
        while self._answers.gets() is not INCOMPLETE:
            self.answers = max(0, self.answers - 1)


class VirtualSelector(selectors.BaseSelector):
    """A selector that advances virtual time instead of waiting.

    Args:
        clock: The clock to advance.

    Attributes:
        outside: Connections to a server outside of the world whose reply is outstanding.
        patience: Real seconds to wait for outside data before the loop counts as idle.
        idle: Callbacks, each called once when the loop is idle; time doesn't jump then.
    """

    def __init__(self, clock: VirtualTime) -> None:
        self._clock = clock
        self._real = selectors.DefaultSelector()
        self.outside: set[object] = set()
        self.patience = 0.0
        self.idle: list[Callable[[], None]] = []

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return the events that are ready; if there are none, jump to the next timer."""
        self._clock.elapsed += TICK  # or code that polls for a moment would poll for ever
        events = self._real.select(0)
        if events or (timeout is not None and timeout <= 0):
            return events
        if self.outside:
            events = self._real.select(SILENCE)
            assert events, "a server outside of the world doesn't answer"
            return events
        if self.patience and (events := self._real.select(self.patience)):
            return events
        if self.idle:
            waiting, self.idle = self.idle, []
            for callback in waiting:
                callback()
        elif timeout is None:
            raise RuntimeError("everything in this world waits for something that can't happen")
        else:
            self._clock.elapsed += timeout
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Register with the real selector."""
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """Unregister from the real selector."""
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Modify the registration with the real selector."""
        return self._real.modify(fileobj, events, data)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """Return the map of the real selector."""
        return self._real.get_map()

    def close(self) -> None:
        """Close the real selector."""
        self._real.close()


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that runs in virtual time."""

    def __init__(self, clock: VirtualTime) -> None:
        self.clock = clock
        self.virtual_selector = VirtualSelector(clock)
        super().__init__(self.virtual_selector)
        self._lost: dict[str, bool] = {}  # unreachable addresses, and whether silently
        self._links: list[tuple[str, asyncio.Transport]] = []

    def lose(self, address: str, *, silent: bool) -> None:
        """Make a server outside of the world unreachable by this address.

        Args:
            address: An address of the loopback interface.
            silent: Whether sent data is lost without an error; otherwise connections are cut.
        """
        self._lost[address] = silent
        if not silent:
            self._cut(address)

    def reach(self, address: str) -> None:
        """Make an outside server reachable again."""
        if self._lost.pop(address, False):
            self._cut(address)  # lost data can't be recovered: reconnect

    def _cut(self, address: str) -> None:
        for host, transport in self._links:
            if host == address:
                transport.abort()
        self._links = [link for link in self._links if link[0] != address]

    def time(self) -> float:
        """Return the virtual time."""
        return self.clock.monotonic()

    async def create_connection(self, protocol_factory: Any, *args: Any, **options: Any) -> Any:
        """Connect to an outside server; no time passes while a reply is outstanding."""
        address = str(args[0] if args else options.get("host"))
        if address in self._lost:
            if self._lost[address]:
                await asyncio.sleep(3600)
            raise ConnectionRefusedError(f"nobody reaches {address}")
        if address != "127.0.0.1":
            port = args[1] if args else options["port"]
            args = "127.0.0.1", port
            options = {name: v for name, v in options.items() if name not in ("host", "port")}
        outside, key = self.virtual_selector.outside, object()
        outside.add(key)
        try:
            connected: tuple[Any, Any] = await super().create_connection(
                protocol_factory, *args, **options
            )
        finally:
            outside.discard(key)
        transport, protocol = connected
        write, set_protocol = transport.write, transport.set_protocol
        self._links.append((address, transport))
        owed = Owed()

        def write_and_wait(data: bytes) -> None:
            if address not in self._lost:
                owed.sent(data)
                outside.add(key)
                write(data)

        def watch(protocol: Any) -> None:
            received, lost = protocol.data_received, protocol.connection_lost

            def receive(data: bytes) -> None:
                owed.received(data)
                if not owed.answers:
                    outside.discard(key)
                if address not in self._lost:
                    received(data)

            def lose(exc: Exception | None) -> None:
                outside.discard(key)
                lost(exc)

            protocol.data_received, protocol.connection_lost = receive, lose

        def watch_and_set(protocol: Any) -> None:
            watch(protocol)
            set_protocol(protocol)

        transport.write, transport.set_protocol = write_and_wait, watch_and_set
        transport.writelines = lambda data: write_and_wait(b"".join(data))
        watch(protocol)
        return transport, protocol

    async def quiet(self) -> None:
        """Wait until all tasks wait; no time passes."""
        idle = asyncio.Event()
        self.virtual_selector.idle.append(idle.set)
        await idle.wait()


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run *main* in an event loop of virtual time."""
    clock = VirtualTime()
    with patched_clocks(clock), asyncio.Runner(loop_factory=lambda: VirtualLoop(clock)) as runner:
        return runner.run(main())


def virtual_loop() -> VirtualLoop:
    """Return the running loop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop), "only inside of run()"
    return loop


@contextlib.contextmanager
def patched_clocks(clock: VirtualTime) -> Iterator[None]:
    """Make all code read *clock*, including default arguments that hold the real functions."""
    pairs = [(time.time, clock.time), (time.monotonic, clock.monotonic)]

    def virtual(value: Any) -> Any:
        return next((fake for real, fake in pairs if value is real), value)

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(time, "time", clock.time))
        stack.enter_context(mock.patch.object(time, "monotonic", clock.monotonic))
        for function in functions_with_clocks(len(sys.modules)):
            positional, named = function.__defaults__, function.__kwdefaults__
            stack.callback(set_defaults, function, positional, named)
            set_defaults(
                function,
                positional and tuple(map(virtual, positional)),
                named and {name: virtual(value) for name, value in named.items()},
            )
        yield


def set_defaults(
    function: FunctionType, positional: tuple[Any, ...] | None, named: dict[str, Any] | None
) -> None:
    """Set the default arguments of *function*."""
    function.__defaults__ = positional
    function.__kwdefaults__ = named


@functools.cache
def functions_with_clocks(modules: int) -> list[FunctionType]:
    """Find the functions of the patched packages with a clock as a default argument.

    Args:
        modules: The number of loaded modules; a new number causes a new search.
    """
    ours = [m for name, m in sys.modules.items() if name.startswith(PATCHED)]
    owners: list[ModuleType | type] = list(ours)
    owners += {value for module in ours for value in vars(module).values() if is_ours(value)}
    found = {value for owner in owners for value in vars(owner).values() if keeps_clock(value)}
    return sorted(found, key=lambda function: function.__qualname__)


def is_ours(value: object) -> bool:
    """Return whether *value* is a class of the patched packages."""
    return inspect.isclass(value) and value.__module__.startswith(PATCHED)


def keeps_clock(value: object) -> bool:
    """Return whether *value* is a function with a clock as a default argument."""
    if not inspect.isfunction(value):
        return False
    kept = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    return any(default is clock for default in kept for clock in CLOCKS)
