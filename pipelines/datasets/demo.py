"""The demo's clips: three factors, each in one modality, so that no single modality can name the class.

A class is ``<digit>-<motion>-<sound>``, as in ``3-left-low``: 3 x 3 x 3 = 27 classes, 9 clips each (6 train, 3 test).

- The digit (scikit-learn's bundled handwriting, another image in every clip) is drawn in colour at constant brightness,
  and jumps: brightness, all that optical flow looks at, does not hold it.
- The motion is that of a noise field, which is all the brightness there is: no single frame shows where it goes.
- The sound is a tone in noise.

Every frame is coded by itself at a fixed quantiser, brightness apart from colour, so that coding carries nothing from
one to the other. The same clip gives the same bytes.

    render(Path("work/demo/videos"), 243, workers=2)
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from fractions import Fraction
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import av
import numpy as np
import numpy.typing as npt

from extract.decoders import children
from features.atomic import make_folder, write_bytes, write_json
from features.errors import UserError
from features.videolist import Video, VideoList

NUMERICS: Final = 1  # bumped by hand with every change of what is rendered: then all clips are rendered again
FULL: Final = 243
DIGITS: Final = ("0", "3", "7")
MOTIONS: Final = {"left": (0, -1), "up": (-1, 0), "down": (1, 0)}  # (dy, dx); a mirrored clip is in no other class
SOUNDS_HZ: Final = {"low": 300.0, "mid": 700.0, "high": 1600.0}
CLASSES: Final = tuple("-".join(parts) for parts in product(DIGITS, MOTIONS, SOUNDS_HZ))
FACTORS: Final = ("digit", "motion", "sound")

SIDE_PX: Final = 96
FPS: Final = 24
RATE_HZ: Final = 22050
HOLD_FRAMES: Final = 6  # the digit stays that long before it jumps
# Noise faint enough, and colours near enough, for a small network to learn the digit from 54 images; every colour lies
# inside of RGB, so that none is clipped and the grey of an RGB frame is its brightness.
LUMA_MEAN, LUMA_STD, LUMA_RANGE = 130.0, 12.0, (90, 170)
CHROMA: Final = 44.0
HUE: Final = (1.6, 2.4)  # radians in the (U, V) plane: red to orange
X264: Final = {
    "preset": "veryfast",
    "qp": "20",
    "g": "1",
    "threads": "1",
    "x264-params": "aq-mode=0:subme=1:trellis=0:psy=0",
}

Uint8 = npt.NDArray[np.uint8]


class Clip(NamedTuple):
    """One clip, before it is rendered. `image` counts the images of its digit; no two clips share one."""

    id: str
    label: str
    split: str
    image: int
    seed: int
    duration_s: float

    @property
    def digit(self) -> str:
        return self.label.split("-")[0]

    @property
    def motion(self) -> str:
        return self.label.split("-")[1]

    @property
    def sound(self) -> str:
        return self.label.split("-")[2]


def clips(count: int) -> list[Clip]:
    """The first `count` of the 243 clips; more of them only adds at the end.

    Six clips are of three classes, in which every digit, motion and sound occurs, a training and a test clip each. So
    on to 54 clips, two of every class; each 27 more add one a class. Of nine, six are for training and three for test.
    """
    if not 1 <= count <= FULL:
        raise UserError("no such number of clips", where="demo", expected=f"1 to {FULL}", got=count)
    found, images = [], dict.fromkeys(DIGITS, 0)
    for label, take in _order():
        digit = label.split("-")[0]
        rng = np.random.default_rng([NUMERICS, CLASSES.index(label), take])
        frames = int(rng.integers(2 * FPS, 3 * FPS + 1))
        seed = int(rng.integers(2**32))
        split = "test" if take % 3 == 1 else "train"
        found.append(Clip(f"{label}/{label}_{take + 1}", label, split, images[digit], seed, frames / FPS))
        images[digit] += 1
    return found[:count]


def videolist(count: int) -> VideoList:
    """The clips as a video list with the split "1". Each is a group of its own, as no digit image occurs twice."""
    chosen = clips(count)
    found = {clip.label for clip in chosen}
    classes = tuple(label for label in CLASSES if label in found)
    videos = tuple(
        Video(
            id=clip.id,
            path=f"{clip.id}.mp4",
            labels=(classes.index(clip.label),),
            splits=(clip.split,),
            group=f"digit-{clip.digit}-{clip.image:03d}",
        )
        for clip in chosen
    )
    return VideoList(videos=videos, classes=classes, splits=("1",), multi_label=False)


class Named(Protocol):
    """A clip, as far as rendering has to know it."""

    @property
    def id(self) -> str:
        """Its path under the root, without the suffix."""


C = TypeVar("C", bound=Named)


def render(root: Path, count: int, *, workers: int = 1, log: Callable[[str], object] = print) -> None:
    """Write the clips that are missing or damaged below `root`; what is there and whole is left alone."""
    render_clips(root, clips(count), encoded, NUMERICS, name="demo", workers=workers, log=log)


def encoded(clip: Clip) -> bytes:
    """The file of `clip`."""
    return encode(picture(clip), tone(clip))


def render_clips(
    root: Path,
    wanted: Sequence[C],
    make: Callable[[C], bytes],
    numerics: int,
    *,
    name: str,
    workers: int,
    log: Callable[[str], object],
) -> None:
    """Write what `make` gives for each of the `wanted` clips, where it is missing or damaged.

    ``root/rendered.json`` holds the sha256 of each clip and the renderer's version. It is written last.
    """
    started, record = time.monotonic(), root / "rendered.json"
    known = _record(record, numerics)
    missing = [clip for clip in wanted if not _whole(_path(root, clip), known.get(clip.id))]
    for folder in {_path(root, clip).parent for clip in missing}:
        make_folder(folder)
    lacking = {clip.id for clip in missing}
    digests = {clip.id: known[clip.id] for clip in wanted if clip.id not in lacking}
    log(f"{name}: {len(wanted) - len(missing)} of {len(wanted)} clips are there, {len(missing)} to render")
    parallel = workers > 1 and len(missing) > 1
    with children(workers) if parallel else nullcontext() as pool:
        done = (pool.map if pool else map)(partial(_render, root, make), missing)
        for number, (clip, digest) in enumerate(zip(missing, done, strict=True), 1):
            digests[clip.id] = digest
            if number % 50 == 0 or number == len(missing):
                rate = number / (time.monotonic() - started)
                log(f"{name}: {number} of {len(missing)} clips rendered, {rate:.0f} a second")
    if missing or not record.exists():
        write_json(record, {"numerics": numerics, "sha256": known | digests})


def picture(clip: Clip) -> Iterator[tuple[Uint8, Uint8, Uint8]]:
    """The frames of `clip` as (Y (S, S), U (S/2, S/2), V (S/2, S/2))."""
    rng = np.random.default_rng([clip.seed, 0])
    field = noise(rng)
    dy, dx = MOTIONS[clip.motion]
    speed_px = int(rng.integers(2, 4))
    angle = rng.uniform(*HUE)
    shape = enlarged(digit_image(clip.digit, clip.image), int(rng.integers(20, 29)))  # (s, s) of 0 .. 1
    y = x = 0
    for frame in range(round(clip.duration_s * FPS)):
        if frame % HOLD_FRAMES == 0:
            y, x = (int(n) for n in rng.integers(0, SIDE_PX // 2 - len(shape) + 1, size=2))
        colour = np.zeros((SIDE_PX // 2, SIDE_PX // 2))
        colour[y : y + len(shape), x : x + len(shape)] = CHROMA * shape
        u, v = (uint8(128 + part(angle) * colour) for part in (np.cos, np.sin))
        yield np.roll(field, (dy * speed_px * frame, dx * speed_px * frame), axis=(0, 1)), u, v


def tone(clip: Clip) -> npt.NDArray[np.float32]:
    """The sound of `clip`: (samples,) of -1 .. 1."""
    rng = np.random.default_rng([clip.seed, 1])
    time_s = np.arange(round(clip.duration_s * RATE_HZ)) / RATE_HZ
    pitch_hz = SOUNDS_HZ[clip.sound] * rng.uniform(0.94, 1.06)
    swell = 1 + 0.5 * np.sin(2 * np.pi * rng.uniform(1, 3) * time_s + rng.uniform(0, 2 * np.pi))
    wave = np.sin(2 * np.pi * pitch_hz * time_s + rng.uniform(0, 2 * np.pi))
    return (rng.uniform(0.1, 0.3) * swell * wave + 0.02 * rng.standard_normal(len(time_s))).astype(np.float32)


def encode(frames: Iterator[tuple[Uint8, Uint8, Uint8]], sound: npt.NDArray[np.float32]) -> bytes:
    """H.264 and AAC in MP4, the same bytes each time."""
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format="mp4", options={"fflags": "+bitexact"}) as container:
        video = container.add_stream("libx264", rate=FPS, options=X264)
        video.width = video.height = SIDE_PX
        video.pix_fmt = "yuv420p"
        video.codec_context.thread_count = 1
        video.codec_context.flags |= av.codec.context.Flags.bitexact
        audio = container.add_stream("aac", rate=RATE_HZ, layout="mono")
        audio.bit_rate = 48_000
        audio.codec_context.flags |= av.codec.context.Flags.bitexact
        for number, (y, u, v) in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(
                np.concatenate([y.ravel(), u.ravel(), v.ravel()]).reshape(-1, SIDE_PX), "yuv420p"
            )
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for start in range(0, len(sound), 1024):
            block = av.AudioFrame.from_ndarray(sound[None, start : start + 1024], format="fltp", layout="mono")
            block.sample_rate, block.pts, block.time_base = RATE_HZ, start, Fraction(1, RATE_HZ)
            container.mux(audio.encode(block))
        container.mux(audio.encode(None))
    return buffer.getvalue()


def _order() -> Iterator[tuple[str, int]]:
    """(class, take) of all the clips. Three classes that follow one another share no digit, no motion and no sound."""
    mixed = [
        (a, b, (a + b + k) % 3) for k in range(3) for shift in range(3) for a in range(3) for b in [(a + shift) % 3]
    ]
    names = ["-".join((DIGITS[a], list(MOTIONS)[b], list(SOUNDS_HZ)[c])) for a, b, c in mixed]
    for start in range(0, len(names), 3):
        yield from product(names[start : start + 3], range(2))
    for take in range(2, 9):
        yield from ((name, take) for name in names)


def _path(root: Path, clip: Named) -> Path:
    return root / f"{clip.id}.mp4"


def _record(path: Path, numerics: int) -> dict[str, str]:
    try:
        value = json.loads(path.read_text())
        return dict(value["sha256"]) if value["numerics"] == numerics else {}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}


def _whole(path: Path, sha256: str | None) -> bool:
    return sha256 is not None and path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def _render(root: Path, make: Callable[[C], bytes], clip: C) -> str:
    data = make(clip)
    write_bytes(_path(root, clip), data)
    return hashlib.sha256(data).hexdigest()


def noise(rng: np.random.Generator) -> Uint8:
    """(S, S) of endless noise, the same in all directions, with detail at two scales."""
    across = np.fft.fftfreq(SIDE_PX)
    square = across[:, None] ** 2 + across[None, :] ** 2
    total = np.zeros((SIDE_PX, SIDE_PX))
    for sigma_px in (1.2, 4.0):
        blur = np.exp(-2 * np.pi**2 * sigma_px**2 * square)
        part = np.fft.ifft2(np.fft.fft2(rng.standard_normal((SIDE_PX, SIDE_PX))) * blur).real
        total += (part - part.mean()) / part.std()
    return uint8(np.clip(LUMA_MEAN + LUMA_STD * total / total.std(), *LUMA_RANGE))


@cache
def _digit_images() -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    from sklearn.datasets import load_digits  # takes a second: not while a Snakefile parses

    bunch = load_digits()
    return bunch.images / 16.0, bunch.target


def digit_image(digit: str, number: int) -> npt.NDArray[np.float64]:
    """(8, 8) of 0 .. 1: an image of `digit`."""
    images, target = _digit_images()
    chosen: npt.NDArray[np.float64] = images[np.flatnonzero(target == int(digit))[number]]
    return chosen


def enlarged(image: npt.NDArray[np.float64], side_px: int) -> npt.NDArray[np.float64]:
    """`image` (h, h) drawn smoothly on (side_px, side_px)."""
    at = np.clip((np.arange(side_px) + 0.5) * len(image) / side_px - 0.5, 0, len(image) - 1)
    weights = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(len(image))))  # (side_px, h): linear
    drawn: npt.NDArray[np.float64] = weights @ image @ weights.T
    return drawn


def uint8(values: npt.NDArray[np.float64]) -> Uint8:
    """Rounded."""
    return np.rint(values).astype(np.uint8)
