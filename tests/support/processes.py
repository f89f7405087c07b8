"""
Child processes of tests: started, waited for by their output, and killed by pid.
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
PATIENCE: Final = 30.0  # seconds to wait for a process at most
KEPT: Final = 5000  # lines of output


def free_port() -> int:
    """Return a free TCP port of 127.0.0.1."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Process:
    """
    A command whose output is read in a thread: it never blocks, and tests can wait for lines.

    Args:
        name: Its name in error messages.
        command: The command and its arguments, run without a shell.
    """

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self.command = list(command)
        self.lines: deque[str] = deque(maxlen=KEPT)  # since the last start
        self._count = 0  # lines since the last start
        self._news = threading.Condition()
        self._popen: subprocess.Popen[str] | None = None
        self._ended = True

    @property
    def pid(self) -> int:
        """The id of the process that runs, or that ran last."""
        assert self._popen is not None, f"{self.name} was never started"
        return self._popen.pid

    @property
    def running(self) -> bool:
        """Whether the process runs, frozen or not."""
        return self._popen is not None and self._popen.poll() is None

    def launch(self) -> None:
        """Start the process, without waiting for its output."""
        assert not self.running, f"{self.name} runs"
        with self._news:
            self._popen = None  # ignores unread output of the previous process
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
        """The number of lines so far; pass it to :meth:`said` to wait for a later line."""
        return self._count

    async def said(self, text: str, *, after: int = 0, times: int = 1) -> str:
        """
        Wait for a line of output.

        Args:
            text: The text that the line has to contain.
            after: A ``mark``; only later lines count.
            times: How many lines have to contain it.

        Returns:
            The last of these lines.

        Raises:
            AssertionError: If the process ends without such a line, or takes too long.
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
        """Return the last lines of output, each with the name of the process."""
        return "\n".join(f"{self.name}| {line}" for line in list(self.lines)[-count:])

    def kill(self) -> None:
        """Kill the process as ``kill -9`` does, frozen or not; no effect if it has ended."""
        if self._popen is not None:
            self._popen.kill()  # by pid, and only if it hasn't been waited for
            self._popen.wait(PATIENCE)

    def freeze(self) -> None:
        """Suspend the process (SIGSTOP); its connections stay open."""
        assert self.running, f"{self.name} has ended"
        assert self._popen is not None
        self._popen.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume the process (SIGCONT); no effect if it isn't frozen."""
        if self._popen is not None:
            self._popen.send_signal(signal.SIGCONT)

    async def stop(self) -> None:
        """Send SIGTERM and wait; if the process doesn't end in time, kill it and raise."""
        if self._popen is not None:
            self.thaw()
            self._popen.terminate()
            try:
                await asyncio.to_thread(self._popen.wait, PATIENCE)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
