"""Configs of which frames make the rows of a video; `extract.sampling` follows them.

extractors:
  rgb: {kind: rgb, sampling: {kind: uniform, n: 25}, ...}
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from features.recipe import Config


class Uniform(Config):
    """`n` frames at equal intervals: floor((j + 0.5) * F / n) of F frames; a shorter video gives each frame once."""

    kind: Literal["uniform"] = "uniform"
    n: PositiveInt = 25


class Every(Config):
    """Frames 0, k, 2k, ..."""

    kind: Literal["every"]
    k: PositiveInt = 1


class Fps(Config):
    """The frame on screen at 0, 1 / fps, 2 / fps, ... seconds by true time, or due within a millisecond, for some
    containers round to them; no frame twice."""

    kind: Literal["fps"]
    fps: PositiveFloat


class Segments(Config):
    """TSN: the video in `n` equal segments, a snippet of `length` frames in the middle of each (Wang et al. 2016).

    With ``length > 1`` a row is a clip of that many frames.
    """

    kind: Literal["segments"] = "segments"
    n: PositiveInt = 3
    length: PositiveInt = 1


class Clips(Config):
    """Clips of `frames` frames, `stride` apart, one starting every `hop` frames (default: no overlap).

    A last clip that is cut short is dropped unless it is the only one; then its frames repeat from the start.
    """

    kind: Literal["clips"] = "clips"
    frames: PositiveInt = 16
    stride: PositiveInt = 1
    hop: PositiveInt | None = None


class Spread(Config):
    """`n` clips of `frames` frames, `stride` apart: the first begins with the video, the last ends with it, the others
    are at equal intervals. A single one is in the middle; of a video with fewer places to begin each is taken once
    (with several views of each clip as often as it takes, so that all videos have n), and a video that is shorter than
    a clip repeats from the start.
    """

    kind: Literal["spread"]
    n: PositiveInt = 10
    frames: PositiveInt = 32
    stride: PositiveInt = 2


Sampling = Annotated[Uniform | Every | Fps | Segments | Clips | Spread, Field(discriminator="kind")]


def own_frames(sampling: Sampling) -> int:
    """How many frames a row of `sampling` has of itself."""
    if isinstance(sampling, Segments):
        return sampling.length
    return sampling.frames if isinstance(sampling, Clips | Spread) else 1
