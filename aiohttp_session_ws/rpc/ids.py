"""
Numbers of WAMP's global scope.
"""

from __future__ import annotations

import secrets

__all__: list[str] = []


def new_id() -> int:
    """
    Return a random number of 1..2^53.
    """
    return secrets.randbelow(2**53) + 1
