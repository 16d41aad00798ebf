"""Scenes for several labels a video, each at its time: digits, motions and sounds that come and go.

A scene has three tracks of six seconds, and what happens on one tells nothing of the others. On each track happen none,
one or two of its three things, one after the other:

- a digit is shown, in colour at constant brightness (``digit 3``);
- the noise field, which is all the brightness there is, moves (``motion left``) and else stands still;
- a tone sounds in the noise (``sound low``).

So a scene has 0 to 6 of 9 labels. Pictures and sounds are made as those of `pipelines.datasets.demo`. Of three scenes
two are for training. The same scene gives the same bytes.

    render(Path("work/demo-multilabel/videos"), 120, workers=2)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from features.errors import UserError
from features.videolist import Video, VideoList
from pipelines.datasets.demo import (
    CHROMA,
    DIGITS,
    FPS,
    HOLD_FRAMES,
    HUE,
    MOTIONS,
    RATE_HZ,
    SIDE_PX,
    SOUNDS_HZ,
    Uint8,
    digit_image,
    encode,
    enlarged,
    noise,
    render_clips,
    uint8,
)

NUMERICS: Final = 1  # bumped by hand with every change of what is rendered: then all scenes are rendered again
FULL: Final = 240  # more would need more images of a digit than scikit-learn has
FRAMES: Final = 6 * FPS
TRACKS: Final = {"digit": DIGITS, "motion": tuple(MOTIONS), "sound": tuple(SOUNDS_HZ)}
CLASSES: Final = tuple(f"{track} {name}" for track, names in TRACKS.items() for name in names)
LENGTH_FRAMES: Final = (FPS, FRAMES // 2 - FPS // 2)  # of what happens: 1 to 2.5 s


class Event(NamedTuple):
    """What happens from frame `start` up to frame `end`. `image` counts the images of its digit."""

    track: str
    name: str
    start: int
    end: int
    image: int = 0

    @property
    def label(self) -> str:
        return f"{self.track} {self.name}"


class Scene(NamedTuple):
    """One scene, before it is rendered."""

    id: str
    split: str
    seed: int
    events: tuple[Event, ...]

    def happening(self, track: str, frame: int) -> Event | None:
        """What happens on a track."""
        return next((e for e in self.events if e.track == track and e.start <= frame < e.end), None)


def scenes(count: int) -> list[Scene]:
    """The first `count` scenes; more of them only adds at the end."""
    if not 1 <= count <= FULL:
        raise UserError("no such number of scenes", where="scenes", expected=f"1 to {FULL}", got=count)
    found, images = [], dict.fromkeys(DIGITS, 0)
    for number in range(count):
        rng = np.random.default_rng([NUMERICS, number])
        events = []
        for track, names in TRACKS.items():
            for event in _track(rng, track, names):
                if track == "digit":
                    event = event._replace(image=images[event.name])
                    images[event.name] += 1
                events.append(event)
        split = "test" if number % 3 == 2 else "train"
        found.append(Scene(f"scene-{number:03d}", split, int(rng.integers(2**32)), tuple(events)))
    return found


def videolist(count: int) -> VideoList:
    """The scenes as a video list with the split "1", and when each label holds."""
    chosen = scenes(count)
    videos = tuple(
        Video(
            id=scene.id,
            path=f"{scene.id}.mp4",
            labels=tuple(sorted(CLASSES.index(event.label) for event in scene.events)),
            splits=(scene.split,),
            group=scene.id,
        )
        for scene in chosen
    )
    actions = {
        scene.id: tuple((CLASSES.index(e.label), e.start / FPS, e.end / FPS) for e in scene.events) for scene in chosen
    }
    return VideoList(videos=videos, classes=CLASSES, splits=("1",), multi_label=True, actions=actions)


def render(root: Path, count: int, *, workers: int = 1, log: Callable[[str], object] = print) -> None:
    """Write the scenes that are missing or damaged below `root`; what is there and whole is left alone."""
    render_clips(root, scenes(count), encoded, NUMERICS, name="scenes", workers=workers, log=log)


def encoded(scene: Scene) -> bytes:
    """The file of `scene`."""
    return encode(picture(scene), sound(scene))


def picture(scene: Scene) -> Iterator[tuple[Uint8, Uint8, Uint8]]:
    """The frames of `scene` as (Y (S, S), U (S/2, S/2), V (S/2, S/2))."""
    rng = np.random.default_rng([scene.seed, 0])
    field, speed_px = noise(rng), int(rng.integers(2, 4))
    looks = {
        event: (rng.uniform(*HUE), enlarged(digit_image(event.name, event.image), int(rng.integers(20, 29))))
        for event in scene.events
        if event.track == "digit"
    }
    y = x = 0
    for frame in range(FRAMES):
        if (moved := scene.happening("motion", frame)) is not None:
            field = np.roll(field, [speed_px * step for step in MOTIONS[moved.name]], axis=(0, 1))
        colour, angle = np.zeros((SIDE_PX // 2, SIDE_PX // 2)), 0.0
        if (shown := scene.happening("digit", frame)) is not None:
            angle, shape = looks[shown]
            if (frame - shown.start) % HOLD_FRAMES == 0:
                y, x = (int(n) for n in rng.integers(0, SIDE_PX // 2 - len(shape) + 1, size=2))
            colour[y : y + len(shape), x : x + len(shape)] = CHROMA * shape
        yield field, uint8(128 + np.cos(angle) * colour), uint8(128 + np.sin(angle) * colour)


def sound(scene: Scene) -> npt.NDArray[np.float32]:
    """The sound of `scene`: (samples,) of -1 .. 1."""
    rng = np.random.default_rng([scene.seed, 1])
    wave = 0.02 * rng.standard_normal(FRAMES * RATE_HZ // FPS)
    for event in scene.events:
        if event.track == "sound":
            part = slice(event.start * RATE_HZ // FPS, event.end * RATE_HZ // FPS)
            time_s = np.arange(part.stop - part.start) / RATE_HZ
            pitch_hz = SOUNDS_HZ[event.name] * rng.uniform(0.94, 1.06)
            wave[part] += rng.uniform(0.1, 0.3) * np.sin(2 * np.pi * (pitch_hz * time_s + rng.uniform()))
    return wave.astype(np.float32)


def _track(rng: np.random.Generator, track: str, names: tuple[str, ...]) -> Iterator[Event]:
    """None, one or two of `names`, in different halves."""
    count = int(rng.choice(3, p=(0.25, 0.45, 0.3)))
    chosen = rng.permutation(len(names))[:count]
    halves = sorted(rng.permutation(2)[:count].tolist())
    for name, half in zip(chosen.tolist(), halves, strict=True):
        length = int(rng.integers(LENGTH_FRAMES[0], LENGTH_FRAMES[1] + 1))
        start = half * (FRAMES // 2) + int(rng.integers(0, FRAMES // 2 - length + 1))
        yield Event(track, names[name], start, start + length)
