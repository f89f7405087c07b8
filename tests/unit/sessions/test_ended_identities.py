"""
The records of ended identities.
"""

from __future__ import annotations

import math

import pytest

from aiohttp_session_ws.identity import EndedIdentities


class TestRecords:
    def test_forgotten(self) -> None:
        """A record is kept for its time, which starts anew when it is met."""
        now = [0.0]
        identities = EndedIdentities(clock=lambda: now[0])
        identities.end("ann", (), 10.0, 1, identities.now())
        now[0] = 9.0
        assert identities.get("ann") is not None
        now[0] = 18.0
        assert identities.get("ann") is not None
        now[0] = 28.0
        assert identities.get("ann") is None

    def test_not_counted(self) -> None:
        """What is forgotten is not counted, so that nobody is asked for in vain."""
        now = [0.0]
        identities = EndedIdentities(clock=lambda: now[0])
        identities.end("ann", (), 10.0, 1, identities.now())
        assert identities
        now[0] = 10.0
        assert not identities

    def test_bounded(self, caplog: pytest.LogCaptureFixture) -> None:
        """The oldest goes, with a warning that names nobody."""
        identities = EndedIdentities(limit=2)
        for name in ("ann", "bob", "cat"):
            identities.end(name, (), 10.0, 1, identities.now())

        assert identities.get("ann") is None
        assert len(identities) == 2
        assert "ended identities" in caplog.text
        assert "ann" not in caplog.text

    @pytest.mark.parametrize(
        ("minted", "ends"),
        [
            *[(99.0, True), (100.0, True), (math.nextafter(100.0, 200.0), False), (101, False)],
            *[(math.nan, True), (-math.inf, True), (None, False), ("99", False), ([99], False)],
        ],
    )
    def test_minted(self, minted: object, ends: bool) -> None:
        """A session ends if its id was minted before; without a time its ids alone count."""
        identities = EndedIdentities(wall=lambda: 100.0)
        identities.end("ann", ("left out",), 10.0, 1, identities.now())
        record = identities.get("ann")

        assert record is not None
        assert record.ends(minted, 200.0) is ends
        assert identities.time() > 100.0

    def test_still_to_come(self) -> None:
        """A time that is still to come is by a clock that was wrong."""
        identities = EndedIdentities(wall=lambda: 100.0)
        identities.end("ann", (), 10.0, 1, identities.now())
        record = identities.get("ann")

        assert record is not None
        assert not record.ends(101.0, 101.0)
        assert record.ends(101.5, 101.0)
