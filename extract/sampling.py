"""Which frames make the rows of a video.

rows(Uniform(n=25), times_us)                    # (25, 1) frame numbers
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from extract.config import Clips, Every, Fps, Segments, Uniform

Frames = npt.NDArray[np.int64]


def rows(sampling: Uniform | Every | Fps | Segments | Clips, times_us: npt.NDArray[np.int64]) -> Frames:
    """(L, T) frame numbers in display order: L rows of T frames, for a video whose F frames show at `times_us` (F,).

    L is 0 where the video is shorter than one sample. Rows ascend by their first frame.
    """
    total = len(times_us)
    if total == 0:
        return np.empty((0, span(sampling)), np.int64)
    match sampling:
        case Uniform():
            return np.unique(equal_intervals(total, sampling.n))[:, None]
        case Every():
            return np.arange(0, total, sampling.k)[:, None]
        case Fps():
            ticks = np.arange(0, (times_us[-1] - times_us[0]) * 1e-6 + 1e-6, 1 / sampling.fps)
            shown = np.searchsorted(times_us - times_us[0], ticks * 1e6 + 0.5, side="right") - 1
            return np.unique(np.clip(shown, 0, None))[:, None]
        case Segments():
            if total < sampling.length:
                return np.empty((0, sampling.length), np.int64)
            starts = np.unique(equal_intervals(total - sampling.length + 1, sampling.n))
            return starts[:, None] + np.arange(sampling.length)
        case Clips():
            covered = (sampling.frames - 1) * sampling.stride + 1
            starts = np.arange(0, max(total - covered, 0) + 1, sampling.hop or sampling.frames * sampling.stride)
            return (starts[:, None] + np.arange(sampling.frames) * sampling.stride) % max(total, 1)


def equal_intervals(total: int, n: int) -> Frames:
    """(n,) floor((j + 0.5) * total / n): attention-cluster test frames, and TSN's middle of each segment."""
    return ((2 * np.arange(n) + 1) * total) // (2 * n)


def span(sampling: Uniform | Every | Fps | Segments | Clips) -> int:
    """T, the frames of a row."""
    match sampling:
        case Segments():
            return sampling.length
        case Clips():
            return sampling.frames
        case _:
            return 1
