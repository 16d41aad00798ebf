"""How far a training is, and how long it still takes: a line now and then inside of long epochs, a note on each epoch.

pace = Pace(epochs=30, videos=9537, log=print)
pace.begin(epoch=3, done=0); pace.step(128, loss=0.7); pace.left(epochs_done=4, seconds=81.0)       # "35 min left"
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

EVERY_S: Final = 30.0  # between two lines


@dataclass(kw_only=True)
class Pace:
    """Of a training of `epochs` with so many `videos` each; it may end sooner, so what is left is at most that."""

    epochs: int
    videos: int
    log: Callable[[str], None]
    every_s: float = EVERY_S
    clock: Callable[[], float] = time.monotonic
    _epoch: int = 0
    _done: int = 0
    _since: int = 0
    _began: float = 0.0
    _told: float = field(default=0.0)

    def begin(self, *, epoch: int, done: int) -> None:
        """An epoch (from 0) begins, or goes on after `done` videos."""
        self._epoch, self._done, self._since = epoch, done, done
        self._began = self._told = self.clock()

    def step(self, videos: int, loss: float) -> None:
        """So many videos more."""
        self._done += videos
        now = self.clock()
        if now - self._told < self.every_s or self._done >= self.videos:
            return
        self._told = now
        rate = (self._done - self._since) / max(now - self._began, 1e-9)
        epoch_s = (self.videos - self._done) / rate
        rest_s = epoch_s + (self.epochs - self._epoch - 1) * self.videos / rate
        self.log(
            f"in epoch {self._epoch + 1}/{self.epochs}: {self._done} of {self.videos} videos, loss {loss:.4g}, "
            f"{rate:.3g} videos/s, {duration(epoch_s)} left of the epoch, {duration(rest_s)} of the training"
        )

    def left(self, epochs_done: int, seconds: float) -> str:
        """After an epoch, given the seconds of all: ``, 35 min left``; nothing after the last, or below a minute."""
        rest_s = (self.epochs - epochs_done) * seconds / max(1, epochs_done)
        return f", {duration(rest_s)} left" if rest_s >= 60 else ""


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3.4 h``, ``2.5 days``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
