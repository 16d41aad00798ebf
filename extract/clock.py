"""One clock for the packets of a track whose container joins pieces with clocks of their own (MPEG, Ogg).

for packet in map(Clock(container), container.demux(stream)): packet.pts
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
from av.format import Flags

AHEAD_S, BACK_S = 10, Fraction(1, 10)  # what times of MPEG may jump by before they are another piece's


def may_jump(container: av.container.InputContainer) -> bool:
    """Whether FFmpeg says that times of the container's format may."""
    return Flags.ts_discont in Flags(container.format.flags)


class Clock:
    """Makes one clock of the times of a track's packets. Where they may jump, they do where FFmpeg's tools think so:
    ahead by more than `AHEAD_S`, or back by more than `BACK_S`."""

    def __init__(self, container: av.container.InputContainer) -> None:
        self._may_jump = may_jump(container)
        self._last: int | None = None
        self._next, self._offset, self._delay = 0, 0, 0  # in the packets' ticks

    def __call__(self, packet: Any) -> Any:
        """`packet`, its times set."""
        if not self._may_jump or not packet.time_base:
            return packet
        if packet.dts is not None:
            at, second = packet.dts + self._offset, 1 / packet.time_base
            if packet.pts is not None:
                if abs(packet.pts - packet.dts) > AHEAD_S * second:  # the first behind a jump, of which one is a guess
                    packet.pts = packet.dts + self._delay
                self._delay = packet.pts - packet.dts
            if self._last is not None and not self._last - BACK_S * second <= at <= self._next + AHEAD_S * second:
                self._offset += self._next - at
                at = self._next
            self._last, self._next = at, at + (packet.duration or 0)
        if self._offset:
            packet.pts = None if packet.pts is None else packet.pts + self._offset
            packet.dts = None if packet.dts is None else packet.dts + self._offset
        return packet
