"""
The commands of the operator's command line, run by a registry without an application.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
from collections.abc import Callable, Coroutine, Hashable, Iterable, Sequence
from typing import Any, Final, TypeAlias

from .._logging import fingerprint
from ..exceptions import InvalidIdentity, InvalidSessionWSId, RedisUnavailable
from ..options import Expiry
from ..redis import RedisSessionWSRegistry
from ..results import CloseReport, ClusterStats, ConnectionInfo, Nodes, Snapshot
from ..sessions.encoding import decode
from .arguments import Options, parse
from .output import Answer, of_connections, of_count, of_nodes, of_order, of_stats, show
from .watching import watch

__all__: list[str] = []

DONE: Final = 0
UNSURE: Final = 1
USAGE: Final = 2
NO_REDIS: Final = 3
INTERRUPTED: Final = 130  # the exit code that shells report for a process ended by SIGINT

Give: TypeAlias = Callable[..., Coroutine[Any, Any, CloseReport]]


class HashNotFound(Exception):
    """
    No process that answered knows the hash, and not all processes answered.
    """


RETRY_PAUSE: Final = 0.1  # seconds before the processes are asked again
HASH: Final = re.compile(r"[0-9a-f]{12}")  # as fingerprint() makes them
NUMBER: Final = re.compile(r"0|-?[1-9][0-9]{0,18}")


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run the command line; return the exit code.
    """
    logging.basicConfig(format="aiohttp_session_ws: %(message)s", level=logging.ERROR)
    options = parse(argv)
    try:
        answer = asyncio.run(run(options))
    except RedisUnavailable as exc:
        _print_error(str(exc))
        return NO_REDIS
    except HashNotFound as exc:
        _print_error(str(exc))
        return UNSURE
    except (ValueError, InvalidSessionWSId, InvalidIdentity) as exc:  # or the URL
        _print_error(str(exc))
        return USAGE
    except BrokenPipeError:
        _discard_output()
        return DONE
    except KeyboardInterrupt:
        if options.command == "watch":
            return DONE  # Ctrl-C is the usual way to end it
        _print_error("interrupted; an order may or may not have been given")
        return INTERRUPTED
    for note in answer.notes:
        _print_error(note)
    try:
        if options.command != "watch":
            show(answer.text(as_json=options.json))
    except BrokenPipeError:
        _discard_output()
    return UNSURE if answer.notes else DONE


def _discard_output() -> None:
    # The reader has closed the pipe. Without this, Python reports another error at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_error(text: str) -> None:
    print(f"aiohttp_session_ws: {text}", file=sys.stderr)  # noqa: T201  that's what it's for


async def run(options: Options) -> Answer:
    """
    Run the command and return its answer, which :func:`main` prints; ``watch`` prints by itself.

    Raises:
        RedisUnavailable: If Redis can't be used.
        HashNotFound: If no process that answered knows the hash, and not all answered.
        ValueError: If the URL is invalid, or an id or an identity can't be one.
        InvalidSessionWSId: If the registry rejects the id.
        InvalidIdentity: If the registry rejects the identity or label.
    """
    expiry = Expiry(revocation_ttl=options.keep * 24 * 3600.0)
    async with RedisSessionWSRegistry(
        options.redis, prefix=options.prefix, expiry=expiry
    ) as registry:
        match options.command:
            case "connections":
                return await _connections(registry, options)
            case "count":
                count, nodes = await asyncio.gather(registry.count(), registry.nodes())
                complete = count.complete and nodes.complete
                return of_count(count, _incomplete(nodes, options, complete=complete))
            case "nodes":
                nodes = await registry.nodes()
                return of_nodes(nodes, _incomplete(nodes, options, complete=nodes.complete))
            case "stats":
                stats = await registry.cluster_stats()
                return of_stats(stats, _incomplete(stats, options, complete=stats.complete))
            case "watch":
                stats = await watch(registry, options)
                return Answer((), {}, _incomplete(stats, options, complete=stats.complete))
        if options.socket is not None:
            return await _close_one(registry, options.socket, options)
        return await _order(registry, options)


async def _connections(registry: RedisSessionWSRegistry, options: Options) -> Answer:
    nodes, everything = await asyncio.gather(registry.nodes(), registry.connections())
    found, known = [everything], True
    if (options.session, options.identity, options.label) != (None, None, None):
        key, subjects, known = resolve(options, everything)
        # Queried, not filtered from all connections: a process that can't tell whose its sockets
        # are, for lack of identify= or labels=, then makes the answer incomplete.
        name = {"session_ws_id": "session"}.get(key, key)
        questions = [registry.connections(**{name: subject}) for subject in subjects]
        found = await asyncio.gather(*questions)
    infos = sorted({info for some in found for info in some}, key=lambda info: info.opened_at)
    complete = nodes.complete and all(some.complete for some in (everything, *found))
    notes = _incomplete(nodes, options, complete=complete)
    if not known:
        notes.append("no open socket has this hash")
    return of_connections(Snapshot(infos), notes, show_ids=options.show_ids)


async def _close_one(registry: RedisSessionWSRegistry, socket: str, options: Options) -> Answer:
    report = await registry.close_connection(socket, wait=options.wait)
    if report.sockets:
        return of_order("close", report, [], known=True)
    report = _sum([report])
    notes = _unanswered(report, options) or ["no open socket has this id"]
    return of_order("close", report, notes, known=False)


async def _order(registry: RedisSessionWSRegistry, options: Options) -> Answer:
    key, subjects, known = await _find(registry, options)
    report = await _give(registry, options, key, subjects)
    notes = []
    if not known:
        notes.append(
            "no open socket has this hash; it was taken as the id or identity itself: use"
            " --json-ids to state that"
        )
    if not report.stored:
        notes.append("Redis hasn't confirmed the order; try again")
    notes += _unanswered(report, options)
    return of_order(options.command, report, notes, known=known)


def _unanswered(report: CloseReport, options: Options) -> list[str]:
    if not report.nodes_expected:
        return [_no_process(options)]
    if report.complete:
        return []
    missing = report.nodes_expected - report.nodes_answered
    return [
        f"{missing} of {report.nodes_expected} processes didn't answer within {options.wait:g} s"
        f"{_or_unable(options)}; they apply the order when they can, check with `connections`"
    ]


def _or_unable(options: Options) -> str:
    """
    Return why a process may be unable to answer at all, as part of a message.
    """
    if options.label is not None:
        return ", or can't without labels="
    return "" if options.identity is None else ", or can't without identify="


async def _give(
    registry: RedisSessionWSRegistry, options: Options, key: str, subjects: Sequence[Any]
) -> CloseReport:
    orders_of: dict[tuple[str, str], Give] = {
        ("close", "session_ws_id"): registry.close_all_session,
        ("close", "identity"): registry.close_all_identity,
        ("close", "label"): registry.close_all_label,
        ("end", "session_ws_id"): registry.end_session,
        ("end", "identity"): registry.end_identity,
        ("end", "label"): registry.end_label,
    }
    give = orders_of[options.command, key]
    whom = subjects if key == "label" else [(subject,) for subject in subjects]
    orders = [give(*subject, wait=options.wait, by=options.by) for subject in whom]
    return _sum(await asyncio.gather(*orders))


def _sum(reports: Sequence[CloseReport]) -> CloseReport:
    """
    Combine reports into one that doesn't count this process, which has no sockets.
    """
    return CloseReport(
        sockets=sum(report.sockets for report in reports),
        aborted=sum(report.aborted for report in reports),
        cancelled=sum(report.cancelled for report in reports),
        handshakes=sum(report.handshakes for report in reports),
        nodes_expected=max(report.nodes_expected for report in reports) - 1,
        nodes_answered=min(report.nodes_answered for report in reports) - 1,
        stored=all(report.stored for report in reports),
    )


def _incomplete(nodes: Nodes | ClusterStats, options: Options, *, complete: bool) -> list[str]:
    if not complete:
        return [f"not all processes answered in time{_or_unable(options)}: there may be more"]
    return [] if nodes else [_no_process(options)]


def _no_process(options: Options) -> str:
    return (
        "no process has sent a heartbeat within 15 seconds: check that they run, with this"
        f" Redis and the prefix {options.prefix!r}"
    )


# Resolving ids, identities and hashes


async def _find(registry: RedisSessionWSRegistry, options: Options) -> tuple[str, list[Any], bool]:
    text = options.session if options.session is not None else options.identity
    if options.json_ids or not HASH.fullmatch(text or ""):
        return resolve(options, ())
    loop = asyncio.get_running_loop()
    deadline = loop.time() + options.wait
    while True:
        live = await registry.connections()
        key, subjects, known = resolve(options, live)
        if known or live.complete:
            return key, subjects, known
        if loop.time() > deadline:
            raise HashNotFound(
                f"not all processes answered within {options.wait:g} s, and none knows this hash:"
                " nothing was ordered; try again, with a longer --wait, or the id and --json-ids"
            )
        await asyncio.sleep(RETRY_PAUSE)  # without Redis, connections() returns at once


def resolve(options: Options, live: Iterable[ConnectionInfo]) -> tuple[str, list[Any], bool]:
    """
    Resolve the id, identity, label or hash on the command line.

    Args:
        options: The command line.
        live: The open sockets, among which a hash is looked up.

    Returns:
        The attribute of a ``ConnectionInfo`` to compare, or ``"label"``; its possible values; and
        whether they are certain: false for what looks like a hash and matches no open socket.

    Raises:
        ValueError: If ``--json-ids`` is given and the text is not the JSON of an id.
    """
    if options.label is not None:
        name, text = options.label
        values = [_decode_json(text)] if options.json_ids else _literals(text)
        return "label", [(name, value) for value in values], True
    key = "identity" if options.session is None else "session_ws_id"
    text = str(options.identity if options.session is None else options.session)
    if options.json_ids:
        return key, [_decode_json(text)], True
    literals = _literals(text)
    if not HASH.fullmatch(text):
        return key, literals, True
    there = {getattr(info, key) for info in live} - {None}
    hashed = [subject for subject in there if fingerprint(subject) == text]
    return key, hashed or literals, bool(hashed) or not there.isdisjoint(literals)


def _literals(text: str) -> list[Hashable]:
    """
    Return the possible values of a text on the command line: itself, and an integer.
    """
    return [text, int(text)] if NUMBER.fullmatch(text) else [text]


def _decode_json(text: str) -> Hashable:
    try:
        return decode(text)
    except (ValueError, RecursionError):
        msg = """with --json-ids an id is JSON: 42, '"42"' or '["ann", 7]'; mind the shell"""
        raise ValueError(msg) from None
