"""
Ids, identities and labels as JSON: how they travel to other processes and to the disk.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from json.encoder import encode_basestring_ascii as quote

__all__: list[str] = []


def encode(subject: Hashable) -> str:
    """
    Return *subject* as JSON, in ASCII: the same text for what is equal in Python.

    Raises:
        TypeError: If it is anything else than a str, an int, or a tuple of such; it names the
            type.
    """
    if type(subject) is str:  # most are
        return quote(subject)
    return json.dumps(_plain(subject), separators=(",", ":"))


def decode(text: str | bytes) -> Hashable:
    """
    Return what :func:`encode` was given, with tuples as tuples.

    Raises:
        ValueError: If *text* isn't JSON of that kind.
    """
    return _subject(json.loads(text))


def _plain(subject: object) -> object:
    """
    Return what JSON writes for *subject*. Subclasses lose their class: an enum's member is
    equal to its value, and True to 1.
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


def _subject(value: object) -> Hashable:
    if isinstance(value, str | int):
        return value
    if isinstance(value, list):
        return tuple([_subject(part) for part in value])
    raise ValueError(f"a {type(value).__name__} is no id, identity or label")
