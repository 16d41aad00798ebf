"""Small pictures of videos at given times, for the report: decoded again, or made again where videos are made.

pictures = thumbnails(root, generator)("Archery/v_Archery_g01_c01", "Archery/v_Archery_g01_c01.avi", times_us)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from extract.config import Limits
from extract.media import Decoded, MediaError, decode
from extract.scaler import Scaler
from extract.shard import FRAME_US, Generator

SIDE_PX: Final = 56
Pictures = list[npt.NDArray[Any] | None]
Thumbnails = Callable[[str, str, npt.NDArray[np.int64]], Pictures]


def thumbnails(root: Path, generator: Generator | None) -> Thumbnails:
    """What makes (L) pictures (56, 56, 3) uint8 of a video's id, its path below `root`, and times (L,) in microseconds:
    for each time the frame that is nearest; None where the video does not decode any more."""

    def made(video: str, _: str, times_us: npt.NDArray[np.int64]) -> Pictures:
        frames = generator.frames(video)  # type: ignore[union-attr]
        return [np.repeat(frames[min(t // FRAME_US, len(frames) - 1)], 3, axis=2) for t in times_us.tolist()]

    def decoded(_: str, path: str, times_us: npt.NDArray[np.int64]) -> Pictures:
        found: Pictures = [None] * len(times_us)
        distance = np.full(len(times_us), np.iinfo(np.int64).max)
        scale = Scaler(SIDE_PX, SIDE_PX, "bilinear", "rgb24")
        try:
            for _number, time_us, frame in decode(root / path, Limits(), Decoded(), None):
                nearer = np.flatnonzero(np.abs(times_us - time_us) < distance)
                if len(nearer):
                    picture = scale(frame).copy()
                    for k in nearer.tolist():
                        found[k], distance[k] = picture, abs(int(times_us[k]) - time_us)
        except MediaError:
            pass
        return found

    return made if generator is not None else decoded
