"""
The processes of a measurement: started, queried, measured by ``/proc``, and killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final

HOST: Final = "127.0.0.1"
PATIENCE: Final = 300.0  # seconds for one answer
SERVER, CLIENT = 0, 1  # the core that a process is pinned to


def progress(text: str) -> None:
    """
    Print a line of progress to stderr.
    """
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


class Broken(Exception):
    """
    A measurement failed, or a process of it has ended.
    """


class Readings:
    """
    Reads the CPU time and memory of a process from ``/proc``.
    """

    pid: int

    def cpu(self) -> float:
        """
        Return the CPU time of all its threads, in microseconds.
        """
        total = 0
        for thread in Path(f"/proc/{self.pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError):
                total += int((thread / "schedstat").read_text().split()[0])
        return total / 1e3

    def memory(self) -> int:
        """
        Return its resident memory, in bytes.
        """
        for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Rss:"):
                return int(line.split()[1]) * 1024
        raise Broken("no memory in smaps_rollup")

    def pin(self, core: int) -> None:
        """
        Pin it to one core, if there are several.
        """
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(self.pid, {cores[core % len(cores)]})


class Child(Readings):
    """
    A process controlled by JSON lines (see :mod:`tests.benchmarks.programs.control`).

    Args:
        command: The command line.
        variables: Environment variables in addition to ours.
        folder: Its working directory.
    """

    def __init__(self, command: Sequence[str], variables: dict[str, str], folder: Path) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed in stop())
        self._process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONHASHSEED": "0", **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        self.pid = self._process.pid
        self._buffer = b""
        self.port = int(self.answer()["port"])

    def send(self, op: str, **arguments: object) -> None:
        """
        Send a request; :meth:`answer` waits for its answer.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"op": op, **arguments}).encode() + b"\n")
        self._process.stdin.flush()

    def answer(self, timeout: float = PATIENCE) -> dict[str, Any]:
        """
        Return the next answer.

        Raises:
            Broken: If there is none in time, or it reports an error.
        """
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        deadline = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise Broken(f"no answer within {timeout:.0f} s{self._last_words()}")
            data = os.read(fd, 1 << 20)
            if not data:
                raise Broken(f"the process is gone{self._last_words()}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Broken(answer["error"])
        return answer

    def ask(self, op: str, **arguments: object) -> dict[str, Any]:
        """
        Send a request, and return its answer.
        """
        self.send(op, **arguments)
        return self.answer()

    def stop(self) -> None:
        """
        End the process.
        """
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(OSError):
                assert stream is not None
                stream.close()

    def _last_words(self) -> str:
        self._errors.seek(0)
        words = self._errors.read().decode(errors="replace").strip()
        return f": {words[-2000:]}" if words else ""


class RedisServer(Readings):
    """
    A Redis server without persistence.

    Attributes:
        port: The port that it listens on.
    """

    def __init__(self, program: str, folder: str) -> None:
        with socket.socket() as sock:
            sock.bind((HOST, 0))
            self.port = int(sock.getsockname()[1])
        command = [program, "--port", str(self.port), "--bind", HOST, "--save", ""]
        self._process = subprocess.Popen([*command, "--dir", folder], stdout=subprocess.PIPE)
        self.pid = self._process.pid
        assert self._process.stdout is not None
        if not any(b"eady to accept" in line for line in self._process.stdout):
            raise Broken("the Redis server didn't start")

    def flush(self) -> None:
        """
        Delete all data: the records of one peer must not affect the next.
        """
        with socket.create_connection((HOST, self.port)) as sock:
            sock.sendall(b"FLUSHALL\r\n")
            if not sock.recv(100).startswith(b"+OK"):
                raise Broken("Redis didn't forget")

    def stop(self) -> None:
        """
        End the process.
        """
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextlib.contextmanager
def redis_server() -> Iterator[RedisServer | None]:
    """
    Run a Redis server, if one is installed.
    """
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        progress("there is no redis-server: what needs one is left out")
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(program, folder)
        try:
            yield server
        finally:
            server.stop()
