"""Progress of a shard: videos/s, frames/s and time left; in place on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO


class Progress:
    """Counts `total` videos (None: nobody knows), `done` of them finished before this process began."""

    def __init__(self, name: str, total: int | None, done: int, stream: TextIO | None = None) -> None:
        self.name, self.total, self.already = name, total, done
        self.videos, self.rows = done, 0
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._start = self._last = time.monotonic()

    def add(self, *, rows: int = 0, videos: int = 0) -> None:
        """Some more is done; prints when it is time."""
        self.rows += rows
        self.videos += videos
        now = time.monotonic()
        if now - self._last >= (0.2 if self._live else 10.0):
            self._last = now
            self._print(now)

    def close(self) -> None:
        """The last line."""
        self._print(time.monotonic())
        if self._live:
            print(file=self._stream)

    def _print(self, now: float) -> None:
        seconds = max(now - self._start, 1e-6)
        rate = (self.videos - self.already) / seconds
        text = f"{self.name}: {self.videos}{'' if self.total is None else f'/{self.total}'} videos, {rate:.1f} videos/s"
        text += f", {self.rows / seconds:.0f} frames/s" if self.rows else ""
        if self.total is not None:
            text += f", {(self.total - self.videos) / rate:.0f} s left" if rate > 0 else ", ? s left"
        print(f"\r{text:<79}" if self._live else text, end="" if self._live else "\n", file=self._stream, flush=True)
