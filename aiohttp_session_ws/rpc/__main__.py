"""
Command line: ``python -m aiohttp_session_ws.rpc schema|typescript module:application``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence

from .application import Application
from .typescript import typescript_of


def main(argv: Sequence[str] | None = None) -> int:
    """
    Write the JSON Schema or the TypeScript types of an application to the standard output.

    Returns:
        The exit status, 0.

    Raises:
        SystemExit: With status 2 if there is no such application.
    """
    parser = argparse.ArgumentParser(
        prog="python -m aiohttp_session_ws.rpc", description="Print what an application serves."
    )
    parser.add_argument("form", choices=("schema", "typescript"), help="JSON Schema, or a .d.ts")
    parser.add_argument("application", metavar="module:application")
    options = parser.parse_args(argv)
    module, _, name = options.application.partition(":")
    if not (module and name):
        parser.error(f"{options.application!r}: expected module:application, such as shop:calls")
    sys.path.insert(0, os.getcwd())  # as python -m does for its own module
    try:
        application = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as exc:
        parser.error(f"{options.application}: {exc}")
    if not isinstance(application, Application):
        parser.error(f"{options.application} is not an rpc.Application")
    schema = application.schema()
    text = typescript_of(schema) if options.form == "typescript" else json.dumps(schema, indent=2)
    sys.stdout.write(text.rstrip() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
