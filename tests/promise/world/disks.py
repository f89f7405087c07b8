"""
Freeze virtual time while a journal is read from or written to the real disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from aiohttp_session_ws.sessions.journal import Journal
from aiohttp_session_ws.sessions.records import Change

from .virtual import VirtualLoop

APPEND, START, STOP = Journal.append, Journal.start, Journal.stop


@contextlib.contextmanager
def waiting_for_disks(loop: VirtualLoop) -> Iterator[None]:
    """Stop virtual time while a journal is read or written."""
    outside = loop.virtual_selector.outside

    def waited_for(future: asyncio.Future[bool]) -> asyncio.Future[bool]:
        key = object()
        if not future.done():
            outside.add(key)
            future.add_done_callback(lambda _: outside.discard(key))
        return future

    def append(journal: Journal, changes: Iterable[Change]) -> asyncio.Future[bool]:
        return waited_for(APPEND(journal, changes))

    async def start(journal: Journal, *args: Any) -> list[Change]:
        key = object()
        outside.add(key)
        try:
            return await START(journal, *args)
        finally:
            outside.discard(key)

    async def stop(journal: Journal, *args: Any) -> None:
        key = object()
        outside.add(key)
        try:
            await STOP(journal, *args)
        finally:
            outside.discard(key)

    with (
        mock.patch.object(Journal, "append", append),
        mock.patch.object(Journal, "start", start),
        mock.patch.object(Journal, "stop", stop),
    ):
        yield


def copy_journal(path: Path, number: int) -> Path:
    """Copy a journal's files as they are on disk now, as if its process had been killed."""
    copy = path.with_name(f"{number}.db")
    for suffix in ("", "-wal"):
        file = path.with_name(path.name + suffix)
        if file.exists():
            shutil.copy(file, copy.with_name(copy.name + suffix))
    return copy
