"""
Ids, identities and labels as JSON, for other processes and for the journal.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from json.encoder import encode_basestring_ascii as quote
from typing import Any

__all__: list[str] = []


def encode(subject: Hashable) -> str:
    """
    Return *subject* as JSON in ASCII: the same text for values that are equal in Python.

    Raises:
        TypeError: If it is not a str, an int, or a tuple of these; the message names the
            type.
    """
    if type(subject) is str:  # most are
        return quote(subject)
    return json.dumps(_plain(subject), separators=(",", ":"))


def decode(text: str | bytes) -> Hashable:
    """
    Return the value that :func:`encode` was given; arrays become tuples again.

    Raises:
        ValueError: If *text* isn't JSON of that kind.
    """
    return subject_of(json.loads(text))


def as_tuple(value: Any) -> Any:
    """
    Return *value* with its lists as tuples, which JSON had turned into lists.
    """
    return tuple(map(as_tuple, value)) if isinstance(value, list) else value


def _plain(subject: object) -> object:
    """
    Return *subject* as str, int or list. Instances of subclasses are converted, too: an enum's
    member is equal to its value, and True to 1.
    """
    if isinstance(subject, str):
        return str.__str__(subject)
    if isinstance(subject, int):
        return int(subject)
    if isinstance(subject, tuple):
        return [_plain(part) for part in subject]
    raise TypeError(
        f"a {type(subject).__name__} can't be stored or sent to other processes: ids, identities"
        " and labels must be str, int or tuples of these"
    )


def subject_of(value: object) -> Hashable:
    """
    Return the id, identity or label that was read from JSON as *value*.

    Raises:
        ValueError: If *value* can't be one.
    """
    if isinstance(value, str | int):
        return value
    if isinstance(value, list):
        return tuple([subject_of(part) for part in value])
    raise ValueError(f"a {type(value).__name__} is no id, identity or label")
