"""
What the operator's command line understands.
"""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Sequence
from typing import Final, NoReturn

__all__: list[str] = []

PROG: Final = "python -m aiohttp_session_ws"
URL: Final = "AIOHTTP_SESSION_WS_REDIS"  # the environment variable

DESCRIPTION: Final = """\
Look at the websockets of all processes that share a Redis, close them, end sessions.
"""

EPILOG: Final = f"""\
where Redis is:
  Without --redis the URL is taken from the environment variable {URL}.
  A command line can be seen by everybody on the machine: a URL with a password in it belongs
  into the variable. The URL is never printed.

ids and identities:
  ID and WHO are what the application uses, or the hash of it that the logs and the table of
  `connections` show; a hash is understood as long as the session has an open socket.
  `--identity 42` means both the text and the number, since a command line can't tell them
  apart. With --json-ids they are JSON and mean themselves only: 42, '"42"', '["ann", 7]'.
  That is for scripts.

exit codes:
  0  done; all processes have answered, and Redis has taken the order
  1  not sure: a process didn't answer in time, there is none, Redis hasn't confirmed the
     order, or what looks like a hash is the hash of no open socket
  2  the command line is wrong, or redis-py isn't installed
  3  Redis isn't there, doesn't let us in, or isn't a Redis; nothing was done
"""


class Options(argparse.Namespace):
    """
    What was asked for.

    Attributes:
        redis: The URL.
        prefix: What the keys begin with.
        wait: Seconds to wait for the reports.
        keep: Days that the end of a session is remembered.
        json: Whether to print JSON.
        show_ids: Whether to print ids and identities.
        json_ids: Whether those that are given are JSON.
        command: What to do.
        session: An id or its hash.
        identity: An identity or its hash.
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


class Parser(argparse.ArgumentParser):
    """
    A parser whose complaints quote no URL, which may have a password in it.
    """

    def error(self, message: str) -> NoReturn:
        """
        Say what is wrong and end with 2.
        """
        super().error(re.sub(r"[\w+]+://\S*", "<URL>", message))


def parse(argv: Sequence[str] | None = None) -> Options:
    """
    Read the command line, and the URL from the environment.

    Raises:
        SystemExit: If it can't be understood, or asked for help.
    """
    parser = make_parser()
    options = parser.parse_args(argv, namespace=Options())
    options.redis = options.redis or os.environ.get(URL, "")
    if not options.redis:
        parser.error(f"which Redis? put its URL into {URL}, or give --redis")
    return options


def make_parser() -> Parser:
    """
    Return what reads the command line.
    """
    common = Parser(add_help=False, argument_default=argparse.SUPPRESS)
    # Without defaults: those of a command would replace what was given before it.
    add = common.add_argument
    add("--redis", metavar="URL", help=f"where Redis is; better in {URL}")
    add("--prefix", metavar="P", help=f"the registry's prefix ({Options.prefix})")
    wait = f"seconds that `close` and `end` wait for what processes report ({Options.wait:g})"
    add("--wait", metavar="S", type=_positive, help=wait)
    add("--json", action="store_true", help="print JSON")

    parser = Parser(
        prog=PROG,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, text: str) -> Parser:
        return commands.add_parser(
            name, help=text, description=text, parents=[common], allow_abbrev=False
        )

    close = command("close", "close sockets; their sessions may come back")
    end = command("end", "end a session, or all sessions of somebody: nobody comes back")
    connections = command("connections", "list the open sockets")
    command("count", "tell how many sockets are open")
    command("nodes", "list the processes")
    for child in (close, end):
        _whose(child, required=True)
    keep = f"for how long nobody comes back; longer than a session lasts ({Options.keep:g})"
    end.add_argument(
        "--keep", metavar="DAYS", type=_positive, default=argparse.SUPPRESS, help=keep
    )
    _whose(connections, required=False)
    connections.add_argument(
        "--show-ids",
        action="store_true",
        default=argparse.SUPPRESS,
        help="print ids and identities too, not only their hashes",
    )
    return parser


def _whose(parser: Parser, *, required: bool) -> None:
    whose = parser.add_mutually_exclusive_group(required=required)
    for name, metavar, text in (
        ("--session", "ID", "of the session with this id"),
        ("--identity", "WHO", "of all sessions of this identity"),
    ):
        whose.add_argument(
            name, metavar=metavar, type=_given, default=argparse.SUPPRESS, help=text
        )
    parser.add_argument(
        "--json-ids", action="store_true", default=argparse.SUPPRESS, help="ID or WHO is JSON"
    )


def _given(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("it is empty; is a variable of your script not set?")
    return text


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError("it is a number > 0")
    return number
