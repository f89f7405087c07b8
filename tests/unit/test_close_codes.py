"""
Close codes and reasons, and their validation.
"""

from __future__ import annotations

import pytest

from aiohttp_session_ws import close_codes
from aiohttp_session_ws.close_codes import RECONNECT, SESSION_ENDED, Close, as_close


class TestClose:
    @pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 2999, 5000])
    def test_a_code_that_no_frame_can_carry_is_an_error(self, code: int) -> None:
        """A code that may not be sent in a close frame (RFC 6455, 7.4) raises a ValueError."""
        with pytest.raises(ValueError, match="3000 to 4999"):
            Close(code)

    def test_a_reason_has_room_for_123_bytes(self) -> None:
        """A reason may have 123 bytes: a control frame holds 125, and the code takes two."""
        Close(4000, "é" * 61)
        with pytest.raises(ValueError, match="123 bytes"):
            Close(4000, "é" * 62)

    @pytest.mark.parametrize("code", ["4401", None, 4401.0, True])
    def test_a_code_is_a_number(self, code: object) -> None:
        """A code that isn't an int, or is a bool, raises a TypeError that shows the code."""
        with pytest.raises(TypeError, match=f"a close code is a number, not {code!r}"):
            Close(code)  # type: ignore[arg-type]  # that's the test

    def test_a_reason_is_a_text(self) -> None:
        """A reason of bytes raises a TypeError that shows the reason."""
        with pytest.raises(TypeError, match="a text, not b'bye'"):
            Close(4401, b"bye")  # type: ignore[arg-type]  # that's the test

    def test_replace(self) -> None:
        """``replace()`` replaces code and reason by those given; None keeps the old one."""
        assert SESSION_ENDED.replace(None, None) is SESSION_ENDED
        assert SESSION_ENDED.replace(4000, None) == Close(4000, "session ended")
        assert SESSION_ENDED.replace(None, "") == Close(4401)

    def test_named_ones(self) -> None:
        """The named closes differ in code or reason, and ``__all__`` lists each of them."""
        named = {
            name: value for name, value in vars(close_codes).items() if isinstance(value, Close)
        }

        assert len(set(named.values())) == len(named) == 11
        assert set(named) | {"Close", "as_close"} == set(close_codes.__all__)


class TestAsClose:
    @pytest.mark.parametrize(
        ("close", "reason", "meant"),
        [
            (None, None, RECONNECT),
            (None, "why", Close(4403, "why")),
            (Close(4000, "mine"), None, Close(4000, "mine")),
            (Close(4000, "mine"), "why", Close(4000, "why")),
            (4000, None, Close(4000)),
            (4000, "why", Close(4000, "why")),
            (4403, None, RECONNECT),
            (4403, "", Close(4403)),
        ],
    )
    def test_meant(self, close: Close | int | None, reason: str | None, meant: Close) -> None:
        """``as_close()`` accepts a close, a code or None, each with or without a reason."""
        assert as_close(close, reason, RECONNECT) == meant

    @pytest.mark.parametrize("close", ["4401", 4401.0, (4401, "why"), True])
    def test_something_else(self, close: object) -> None:
        """A value that is neither a close nor a code nor None raises a TypeError."""
        with pytest.raises(TypeError):
            as_close(close, None, RECONNECT)  # type: ignore[arg-type]  # that's the test

    def test_what_no_frame_carries(self) -> None:
        """A code that may not be sent in a close frame raises a ValueError."""
        with pytest.raises(ValueError, match="3000 to 4999"):
            as_close(1006, None, RECONNECT)
