"""
Processes that tests start, listen to and kill by their pid.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]  # of the checkout
PATIENCE: Final = 30.0  # seconds after which nobody waits any longer for a process
KEPT: Final = 5000  # lines


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Process:
    """
    A command whose output is read on, so that it never blocks, and can be waited for.

    Args:
        name: What it is called when something goes wrong.
        command: The command, found without a shell.
    """

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self.command = list(command)
        self.lines: deque[str] = deque(maxlen=KEPT)  # of the last start
        self._count = 0  # lines since the last start
        self._news = threading.Condition()
        self._popen: subprocess.Popen[str] | None = None
        self._ended = True

    @property
    def pid(self) -> int:
        """The id of the process that runs, or ran last."""
        assert self._popen is not None, f"{self.name} was never started"
        return self._popen.pid

    @property
    def running(self) -> bool:
        """Whether it runs, be it frozen."""
        return self._popen is not None and self._popen.poll() is None

    def launch(self) -> None:
        """Start it and don't wait for anything."""
        assert not self.running, f"{self.name} runs"
        with self._news:
            self._popen = None  # what is still to be read from the last one no longer counts
            self.lines.clear()
            self._count, self._ended = 0, False
        self._popen = subprocess.Popen(
            self.command,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        threading.Thread(target=self._read, args=[self._popen], daemon=True).start()

    def _read(self, popen: subprocess.Popen[str]) -> None:
        assert popen.stdout is not None
        with popen.stdout as output:
            for line in output:
                with self._news:
                    if popen is self._popen:
                        self.lines.append(line.rstrip("\n"))
                        self._count += 1
                        self._news.notify_all()
        with self._news:
            if popen is self._popen:
                self._ended = True
                self._news.notify_all()

    @property
    def mark(self) -> int:
        """How much it has said, to wait for what it says after that."""
        return self._count

    async def said(self, text: str, *, after: int = 0, times: int = 1) -> str:
        """
        Wait until it has said something.

        Args:
            text: What a line has to contain.
            after: A ``mark``; only later lines count.
            times: How many lines have to contain it.

        Returns:
            The line.

        Raises:
            AssertionError: If it ends without a word of that, or takes too long.
        """
        return await asyncio.to_thread(self._wait, text, after, times)

    def _wait(self, text: str, after: int, times: int) -> str:
        def found() -> str | None:
            seen = [line for line in self._since(after) if text in line]
            return seen[times - 1] if len(seen) >= times else None

        with self._news:
            self._news.wait_for(lambda: self._ended or found(), PATIENCE)
            line = found()
        assert line is not None, f"{self.name} did not say {text!r}:\n" + self.tail()
        return line

    def _since(self, mark: int) -> Iterator[str]:
        first = self._count - len(self.lines)  # the number of the first line that is kept
        return (line for number, line in enumerate(self.lines, first) if number >= mark)

    def tail(self, count: int = 40) -> str:
        """Return what it said last."""
        return "\n".join(f"{self.name}| {line}" for line in list(self.lines)[-count:])

    def kill(self) -> None:
        """Kill it as ``kill -9`` does, frozen or not; nothing happens if it has ended."""
        if self._popen is not None:
            self._popen.kill()  # by its pid, and only if it hasn't been waited for
            self._popen.wait(PATIENCE)

    def freeze(self) -> None:
        """Let it do nothing while its connections stay open."""
        assert self.running, f"{self.name} has ended"
        assert self._popen is not None
        self._popen.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on; nothing happens if it isn't frozen."""
        if self._popen is not None:
            self._popen.send_signal(signal.SIGCONT)

    async def stop(self) -> None:
        """Ask it to end, wait, and kill it if it doesn't."""
        if self._popen is not None:
            self.thaw()
            self._popen.terminate()
            try:
                await asyncio.to_thread(self._popen.wait, PATIENCE)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
