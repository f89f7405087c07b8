"""
The arguments of the operator's command line, and their parser.
"""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from .. import __version__

__all__: list[str] = []

PROG: Final = "python -m aiohttp_session_ws"
URL: Final = "AIOHTTP_SESSION_WS_REDIS"  # the environment variable

DESCRIPTION: Final = """\
List the websockets of all processes that share a Redis, close them, and end sessions.
"""

EPILOG: Final = f"""\
where Redis is:
  Without --redis the URL is taken from the environment variable {URL}.
  Every user of the machine can read a command line: use the variable for a URL that contains a
  password. The URL is never printed.

ids and identities:
  ID, WHO and VALUE are the application's values. An id or an identity may also be given as the
  hash in the logs and in the table of `connections`, while the session has an open socket.
  `--identity 42` applies to both the text and the number, since a command line can't distinguish
  them. With --json-ids (for scripts) they are JSON and taken literally: 42, '"42"', '["ann", 7]'.

exit codes:
  0  done; all processes have answered, and Redis has recorded the order
  1  uncertain: a process didn't answer in time, no process runs, Redis hasn't confirmed the
     order, or no open socket has the given hash
  2  the command line is invalid, or redis-py isn't installed
  3  Redis can't be reached, denies access, or isn't a Redis; nothing was done
  130  interrupted by Ctrl-C; an order may have been given (`watch` exits with 0 then)
"""


class Options(argparse.Namespace):
    """
    The parsed command line.

    Attributes:
        redis: The URL of Redis.
        prefix: The prefix of the keys in Redis.
        wait: Seconds to wait for the reports of the processes.
        keep: Days for which the record of an end is kept at least.
        json: Whether to print JSON.
        show_ids: Whether to print ids and identities.
        json_ids: Whether the ids and identities on the command line are JSON.
        command: The name of the command.
        session: A session ws id or its hash.
        identity: An identity or its hash.
        label: A label's name and its value.
        socket: The id of a single connection.
        by: Who gives the order.
        every: Seconds between two screens of ``watch``.
        times: How many screens to draw; 0 for no limit.
    """

    redis: str = ""
    prefix: str = "aiohttp_session_ws"
    wait: float = 5.0
    keep: float = 30.0
    json: bool = False
    show_ids: bool = False
    json_ids: bool = False
    command: str = ""
    session: str | None = None
    identity: str | None = None
    label: tuple[str, str] | None = None
    socket: str | None = None
    by: str | None = None
    every: float = 2.0
    times: int = 0


class Parser(argparse.ArgumentParser):
    """
    A parser whose error messages never contain a URL, since that may contain a password.
    """

    def error(self, message: str) -> NoReturn:
        """
        Print *message* without URLs and exit with 2.
        """
        super().error(re.sub(r"[\w+]+://\S*", "<URL>", message))


def parse(argv: Sequence[str] | None = None) -> Options:
    """
    Parse the command line; take the URL from the environment if it isn't given.

    Raises:
        SystemExit: If the command line is invalid, or asks for help or the version.
    """
    parser = make_parser()
    options = parser.parse_args(argv, namespace=Options())
    options.redis = options.redis or os.environ.get(URL, "")
    if not options.redis:
        parser.error(f"no Redis URL: set the environment variable {URL}, or give --redis")
    if options.socket is not None and options.by is not None:
        parser.error("--by is not for --socket: closing one socket is no order, and isn't logged")
    return options


def make_parser() -> Parser:
    """
    Return the parser of the command line.
    """
    common = _common()
    parser = Parser(
        prog=PROG,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, text: str) -> Parser:
        return commands.add_parser(
            name, help=text, description=text, parents=[common], allow_abbrev=False
        )

    close = command("close", "close sockets; their clients may reconnect")
    end = command(
        "end",
        "end a session, or all of an identity or a label; not later log-ins",
    )
    connections = command("connections", "list the open sockets")
    command("count", "print the number of open sockets")
    command("nodes", "list the processes")
    command("stats", "print the counters of the processes")
    _add_watching(command("watch", "print the counters at an interval, until Ctrl-C"))
    whose = _add_whose(close, required=True)
    one = "the socket with this id in `connections --json`"
    whose.add_argument("--socket", metavar="ID", default=argparse.SUPPRESS, type=_given, help=one)
    _add_whose(end, required=True)
    for child in (close, end):
        _add(child, "--by", metavar="NAME", help="who gives the order, for the processes' logs")
    keep = f"for how long the end is kept ({Options.keep:g}, or longer if sessions last longer)"
    _add(end, "--keep", metavar="DAYS", type=_positive, help=keep)
    _add_whose(connections, required=False)
    show = "print ids and identities too, not only their hashes"
    _add(connections, "--show-ids", action="store_true", help=show)
    return parser


def _common() -> Parser:
    """
    Return a parser of the options that may stand before or after the name of any command.
    """
    common = Parser(add_help=False, argument_default=argparse.SUPPRESS)
    add = common.add_argument
    add("--redis", metavar="URL", help=f"the URL of Redis; better set {URL}")
    add("--prefix", metavar="P", help=f"the registry's prefix ({Options.prefix})")
    wait = "seconds for `close` and `end` to look up a hash, and to wait for reports"
    add("--wait", metavar="S", type=_positive, help=f"{wait} ({Options.wait:g})")
    add("--json", action="store_true", help="print JSON")
    return common


def _add(parser: argparse.ArgumentParser, name: str, **options: Any) -> None:
    # No default: a subparser's default would overwrite a value given before the command.
    parser.add_argument(name, default=argparse.SUPPRESS, **options)


def _add_watching(parser: Parser) -> None:
    every = f"seconds between two screens ({Options.every:g})"
    _add(parser, "--every", metavar="S", type=_positive, help=every)
    times = "number of screens; by default no limit"
    _add(parser, "--times", metavar="N", type=_number, help=times)


def _add_whose(parser: Parser, *, required: bool) -> Any:
    whose = parser.add_mutually_exclusive_group(required=required)
    for name, metavar, kind, text in (
        ("--session", "ID", _given, "of the session with this id"),
        ("--identity", "WHO", _given, "of all sessions of this identity"),
        ("--label", "NAME=VALUE", _label, "of all sessions with this label"),
    ):
        whose.add_argument(name, metavar=metavar, type=kind, default=argparse.SUPPRESS, help=text)
    _add(parser, "--json-ids", action="store_true", help="ID, WHO or VALUE is JSON")
    return whose


def _given(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError(
            "it is empty; if it comes from a variable, check that it is set"
        )
    return text


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError("it must be a number > 0")
    return number


def _number(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError("it must be a whole number > 0")
    return int(text)


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError("it must be NAME=VALUE, like device=phone")
    return name, value
