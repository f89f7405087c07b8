"""
Run the demo: ``python -m demo``.
"""

from __future__ import annotations

import argparse
import socket
import sys

from aiohttp import web

from .app import make_app


def listen(host: str, port: int) -> socket.socket:
    """
    Return a listening socket, or end the program with one line that says why not.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as exc:
        reason = str(exc.strerror).partition(" (")[0]  # without the address once more
    except OverflowError:
        reason = "a port is a number from 0 to 65535"
    sys.exit(f"demo: can't listen on {host} port {port}: {reason}; choose another with --port")


def make_shared_app(url: str) -> web.Application:
    """
    Return the application with what it shares with others, or end the program with one line.
    """
    try:
        from .shared import NoRedis, make_registry, shared_key
    except ModuleNotFoundError:
        sys.exit("demo: --redis needs redis-py: pip install -e '.[demo,redis]'")
    try:
        return make_app(make_registry(url), shared_key(url))
    except NoRedis as exc:
        sys.exit(f"demo: {exc}")
    except ValueError:
        sys.exit("demo: --redis is a URL, as redis://localhost:6379/0")


def main() -> None:
    """
    Serve the demo until Ctrl+C.
    """
    parser = argparse.ArgumentParser(prog="python -m demo", description="Serve the demo.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", default=8080, type=int, help="0 takes a free one (%(default)s)")
    parser.add_argument("--redis", metavar="URL", help="share sessions and sockets with others")
    args = parser.parse_args()
    app = make_app() if args.redis is None else make_shared_app(args.redis)

    sock = listen(args.host, args.port)
    host = f"[{args.host}]" if ":" in args.host else args.host
    print(f"Open http://{host}:{sock.getsockname()[1]}/ in two tabs. Ctrl+C ends.", flush=True)
    web.run_app(app, sock=sock, print=None)


if __name__ == "__main__":
    main()
