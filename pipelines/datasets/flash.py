"""Flash-MNIST and the noisy digits that its CNN learns from: videos that are made frame by frame as they are read.

"Attention Clusters" (CVPR 2018), §4.1, after the authors' generator (longxiang92/Flash-MNIST) where paper and code
differ. Every frame is noise, each pixel drawn from MNIST's own grey levels; a digit appears for one frame, as the
maximum of noise and picture. A video's class is the set of digits in it: 1,024 classes.

- `flash_digits`: as many videos of each class; each digit of it flashes once or twice, at random, in frames of their
  own (with ``allow_collisions`` in any frames). Of 25 frames up to 20 have a digit.
- `noisy_digits`: single frames in 11 classes: every picture `copies` times, each on fresh noise, and noise alone.

The training videos are made of the training pictures, the test videos of the test pictures. A video follows from the
seed and its id, whatever was made before it.

    source = FlashDigits(format="flash_digits", digits="scikit-learn")
    made(source).frames("test/0011/0004")                       # (25, 28, 28, 1) uint8: digits 0, 1 and 3
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Final, Literal, assert_never

import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveInt

from features.recipe import Config
from features.videolist import Video, VideoList
from pipelines.datasets import digits
from pipelines.datasets.digits import SIDE_PX, SIDES, Uint8, Where

NUMERICS: Final = 1  # bumped by hand with every change of what is made
SHAPE: Final = (SIDE_PX, SIDE_PX, 1)
NOISE: Final = "noise"
NONE: Final = "none"
_LEVELS: Final = 1 << 16  # steps of the grey levels' distribution


class Made(Config):
    """What both have."""

    rows: ClassVar[int]

    digits: Where = Field("DEFAULT", description="scikit-learn, DEFAULT (torchvision downloads MNIST), or a path to it")
    kinds: int = Field(10, ge=2, le=10, description="digits from 0 that are used")
    histogram: Literal["train", "all"] = Field("train", description="pictures whose grey levels the noise follows")
    seed: int = Field(1234, ge=0)


class FlashDigits(Made):
    """Videos of flashing digits: a class is a set of digits."""

    format: Literal["flash_digits"]
    length: int = Field(25, ge=20, description="frames")
    train: PositiveInt = Field(100, description="training videos a class")
    test: PositiveInt = Field(10, description="test videos a class")
    allow_collisions: bool = Field(False, description="whether a frame may have several digits")


class NoisyDigits(Made):
    """Single frames: a digit in noise, or noise alone."""

    format: Literal["noisy_digits"]
    copies: PositiveInt = Field(5, description="times that each training picture occurs")
    test_copies: PositiveInt = 1
    noise: PositiveInt = Field(30_000, description="training frames without a digit")
    test_noise: PositiveInt = 1000


Source = FlashDigits | NoisyDigits


def recipe(source: Source) -> dict[str, Any]:
    """All that the frames follow from."""
    return {**source.recipe(), "digits": digits.identity(source.digits), "numerics": NUMERICS}


def videolist(source: Source) -> VideoList:
    """The videos, with the split "1"; nothing of them is on disk."""
    match source:
        case FlashDigits():
            return _flashes(source)
        case NoisyDigits():
            return _noisy(source)
        case _:
            assert_never(source)


def made(source: Source) -> Maker:
    """What makes the frames."""
    return Maker(source)


def digits_in(mask: int) -> list[int]:
    """Digit i is in a class whose number has bit i."""
    return [digit for digit in range(10) if mask >> digit & 1]


@dataclass(frozen=True)
class Maker:
    """The frames of every video of a source."""

    source: Source

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a frame."""
        return SHAPE

    @property
    def length(self) -> int:
        """Frames of a video."""
        return self.source.length if isinstance(self.source, FlashDigits) else 1

    def frames(self, video: str) -> Uint8:
        """(L, 28, 28, 1) of the video with this id."""
        side, first, last = video.split("/")
        number, take = int(first), int(last)
        rng = np.random.default_rng([self.source.seed, SIDES.index(side), number, take])
        frames = self._grey_levels[rng.integers(_LEVELS, size=(self.length, *SHAPE[:2]), dtype=np.uint16)]
        if isinstance(self.source, FlashDigits):
            self._flash(rng, frames, side, number)
        elif number < self.source.kinds:
            frames[0] = np.maximum(frames[0], self._pictures[side][number][take // self._copies(side)])
        return frames[..., None]

    def _flash(self, rng: np.random.Generator, frames: Uint8, side: str, mask: int) -> None:
        shown = []
        for digit in digits_in(mask):
            pool = self._pictures[side][digit]
            shown += [pool[rng.integers(len(pool))] for _ in range(rng.integers(1, 3))]
        if isinstance(self.source, FlashDigits) and self.source.allow_collisions:
            places = rng.integers(len(frames), size=len(shown))
        else:
            places = rng.permutation(len(frames))[: len(shown)]
        for place, picture in zip(places.tolist(), shown, strict=True):
            frames[place] = np.maximum(frames[place], picture)

    def _copies(self, side: str) -> int:
        source = self.source
        return 1 if isinstance(source, FlashDigits) else source.copies if side == "train" else source.test_copies

    @cached_property
    def _pictures(self) -> dict[str, list[Uint8]]:
        return digits.load(self.source.digits)

    @cached_property
    def _grey_levels(self) -> Uint8:
        """(65536,): the grey level at each step of their distribution."""
        sides = SIDES if self.source.histogram == "all" else SIDES[:1]
        counts = np.zeros(256)
        for side in sides:
            for pictures in self._pictures[side]:
                counts += np.bincount(pictures.ravel(), minlength=256)
        ends = np.rint(np.cumsum(counts) / counts.sum() * _LEVELS)
        levels: npt.NDArray[np.uint8] = np.searchsorted(ends, np.arange(_LEVELS), side="right").astype(np.uint8)
        return levels


def _flashes(source: FlashDigits) -> VideoList:
    names = tuple("+".join(map(str, digits_in(mask))) or NONE for mask in range(1 << source.kinds))
    takes = {"train": source.train, "test": source.test}
    videos = tuple(
        _video(side, mask, take) for side in SIDES for mask in range(len(names)) for take in range(takes[side])
    )
    return VideoList(videos=videos, classes=names, splits=("1",))


def _noisy(source: NoisyDigits) -> VideoList:
    copies = {"train": source.copies, "test": source.test_copies}
    noise = {"train": source.noise, "test": source.test_noise}
    videos = []
    for side, numbers in digits.labels(source.digits).items():
        counts = np.bincount(numbers, minlength=10)[: source.kinds] * copies[side]
        for kind, count in enumerate([*counts.tolist(), noise[side]]):
            videos += [_video(side, kind, take) for take in range(count)]
    names = (*map(str, range(source.kinds)), NOISE)
    return VideoList(videos=tuple(videos), classes=names, splits=("1",))


def _video(side: str, label: int, take: int) -> Video:
    id = f"{side}/{label:04d}/{take:04d}"
    return Video(id=id, path=id, labels=(label,), splits=(side,), group="")
