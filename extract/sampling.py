"""Which frames make the rows of a video.

rows(Uniform(n=25), times_us)                    # (25, 1) frame numbers
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from extract.samplings import Clips, Every, Fps, Sampling, Segments, Spread, Uniform

Frames = npt.NDArray[np.int64]


def rows(
    sampling: Sampling,
    times_us: npt.NDArray[np.int64],
    frames: int = 1,
    stride: int = 1,
    views: int = 1,
) -> Frames:
    """(L, T) frame numbers in display order: L rows of T frames, for a video whose F frames show at `times_us` (F,).

    A row is `frames` frames, `stride` apart, from the sampled one on. L is 0 where the video is shorter than one
    sample; only `Clips` and `Spread` then repeat the video. Rows ascend by their first frame.

    With several `views` of each row `Spread` gives n rows of however short a video, some of them twice: a head that
    takes one view of each then finds it at equal intervals.
    """
    total, covered = len(times_us), (frames - 1) * stride + 1
    room = total - covered + 1  # frames that a row can start at
    if total == 0 or (room < 1 and not isinstance(sampling, Clips | Spread)):
        return np.empty((0, frames), np.int64)
    match sampling:
        case Uniform() | Segments():
            starts = np.unique(equal_intervals(room, sampling.n))
        case Every():
            starts = np.arange(0, room, sampling.k)
        case Fps():
            usual_us = np.median(np.diff(times_us)) if total > 1 else 0.0
            early_us = max(0.5, min(1000.0, usual_us / 2))  # both ends of a span may be rounded to milliseconds
            ticks = np.arange(0, (times_us[-1] - times_us[0] + early_us) * 1e-6, 1 / sampling.fps)
            shown = np.searchsorted(times_us - times_us[0], ticks * 1e6 + early_us, side="right") - 1
            starts = np.unique(np.clip(shown, 0, None))
            starts = starts[starts < room]
        case Clips():
            starts = np.arange(0, max(room, 1), sampling.hop or frames * stride)
        case Spread():
            starts = ends_included(max(room, 1), sampling.n)
            starts = np.unique(starts) if views == 1 else starts
    return (starts[:, None] + np.arange(frames) * stride) % total


@dataclass(frozen=True)
class Window:
    """Parts of an untrimmed video: one of `span_us` begins every `stride_us`, the last of them reaches the end."""

    span_us: int
    stride_us: int

    def count(self, duration_us: int) -> int:
        """How many a video has: at least one."""
        return 1 + max(0, -(-(duration_us - self.span_us) // self.stride_us))

    def frames(self, times_us: npt.NDArray[np.int64], duration_us: int) -> Iterator[tuple[int, int, int]]:
        """(window, its first frame, the one after its last), for frames that show at `times_us` (F,), ascending."""
        for number in range(self.count(duration_us) if len(times_us) else 0):
            start_us = times_us[0] + number * self.stride_us
            first, last = np.searchsorted(times_us, [start_us, start_us + self.span_us]).tolist()
            if first < last:
                yield number, first, last

    def holding(self, at_us: int, duration_us: int | None) -> range:
        """The windows that hold the moment `at_us` after the start, of those that a video so long has."""
        first = max(0, (at_us - self.span_us) // self.stride_us + 1)
        last = at_us // self.stride_us
        return range(first, min(last + 1, self.count(duration_us)) if duration_us is not None else last + 1)


def equal_intervals(total: int, n: int) -> Frames:
    """(n,) floor((j + 0.5) * total / n): attention-cluster test frames, and TSN's middle of each segment."""
    return ((2 * np.arange(n) + 1) * total) // (2 * n)


def ends_included(total: int, n: int) -> Frames:
    """(n,) of 0 ... total - 1 at equal intervals, first and last among them; the middle for n = 1."""
    return np.array([(total - 1) // 2]) if n == 1 else np.arange(n) * (total - 1) // (n - 1)
