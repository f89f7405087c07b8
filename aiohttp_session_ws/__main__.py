"""
The operator's command line: ``python -m aiohttp_session_ws --help``.

It needs the extra ``redis``: ``pip install 'aiohttp-session-ws[redis]'``.
"""

from __future__ import annotations

import sys

__all__: list[str] = []


def main() -> int:
    """
    Run the command line; return its exit code.
    """
    try:
        from .cli.commands import main as command
    except ModuleNotFoundError as exc:
        if exc.name not in ("redis", "hiredis"):
            raise
        print(f"aiohttp_session_ws: {exc.msg}", file=sys.stderr)  # noqa: T201  a command line prints
        return 2
    return command()


if __name__ == "__main__":
    sys.exit(main())
