"""
Environments of the alternatives (Python or Node.js), created when first needed.

They are in the user's cache folder, and later runs reuse them. Those with aiohttp get the
version that is installed here, so that nothing else differs.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from .processes import progress

FOLDER: Final = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
CACHE: Final = FOLDER / "aiohttp-session-ws-benchmarks"
PROGRAMS: Final = Path(__file__).parent  # ``python -m programs.NAME`` is run here


class Unavailable(Exception):
    """
    Something that a measurement needs is not available on this machine.
    """


@dataclass(frozen=True, slots=True)
class Interpreter:
    """
    An interpreter that runs a program.

    Attributes:
        command: The beginning of the command line.
        variables: Environment variables in addition to this process's own.
    """

    command: tuple[str, ...]
    variables: tuple[tuple[str, str], ...] = ()


def _same(*names: str) -> list[str]:
    return [f"{name}=={importlib.metadata.version(name)}" for name in names]


def _requirements(name: str) -> list[str]:
    match name:
        case "predecessor":
            ours = _same("aiohttp", "aiohttp-session")
            return [*ours, "aiohttp-session-ws==1.1.1", "redis[hiredis]>=8"]
        case "python-socketio":
            return [*_same("aiohttp"), "python-socketio==5.18.1", "redis[hiredis]>=8"]
        case "serverwamp" | "wsrpc":
            other = "serverwamp==2.0.0" if name == "serverwamp" else "wsrpc-aiohttp==4.1.1"
            return [*_same("aiohttp"), other]
        case "channels":
            return [
                *("channels==4.3.2", "channels-redis==4.3.0", "hiredis"),
                *("starlette==1.3.1", "uvicorn[standard]==0.51.0"),
            ]
        case "plot":
            return ["matplotlib>=3.9"]
        case "socketio":
            return ["socket.io@4.8.4", "@socket.io/redis-adapter@8.3.0", "redis@6"]
    raise ValueError(name)


def library(folder: Path | None = None) -> Interpreter:
    """
    Return this Python with the package in *folder*, by default with the one it imports.
    """
    if folder is None:
        spec = importlib.util.find_spec("aiohttp_session_ws")
        if spec is None or spec.origin is None:
            raise Unavailable("aiohttp_session_ws can't be imported")
        folder = Path(spec.origin).parents[1]
    elif not (folder / "aiohttp_session_ws").is_dir():
        raise Unavailable(f"there is no aiohttp_session_ws in {folder}")
    return Interpreter((sys.executable,), (("PYTHONPATH", str(folder.resolve())),))


@cache
def environment(name: str) -> Interpreter:
    """
    Return the interpreter of an environment, which is created if it doesn't exist.

    Raises:
        Unavailable: If it can't be created.
    """
    wanted = _requirements(name)
    key = hashlib.sha256(" ".join([sys.version, *wanted]).encode()).hexdigest()[:12]
    folder = CACHE / f"{name}-{key}"
    ready = folder / "ready"
    if not ready.exists():
        progress(f"making an environment with {', '.join(wanted)}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if name == "socketio":
            _make_node(folder, wanted)
        else:
            python = str(folder / "bin" / "python")
            _run(sys.executable, "-m", "venv", str(folder))
            _run(python, "-m", "pip", "install", "--quiet", *wanted)
        ready.touch()
    if name == "socketio":
        modules = str(folder / "node_modules")
        variables = (("NODE_PATH", modules), ("NODE_ENV", "production"))
        return Interpreter(("node", "--expose-gc"), variables)
    return Interpreter((str(folder / "bin" / "python"),))


def _make_node(folder: Path, packages: list[str]) -> None:
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise Unavailable("there is no node")
    _run(
        "npm", "install", "--silent", "--no-fund", "--no-audit", "--prefix", str(folder), *packages
    )


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[-500:]}")
