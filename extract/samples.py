"""What one video becomes: fixed-shape samples for each of several jobs out of one decoding, then their outcomes.

    for job, item in samples(path, {0: Job(...), 1: Job(...)}):
        ...                                          # item: (time_us, sample), and last of all the job's Outcome

A sample is a picture (H, W, 3) or (H, W), a clip with T frames before that, or a log-mel patch. Its time is the middle
of what it covers.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame

from extract.config import CENTRE, AnyExtractor, FromVideo, Limits, Logmel, Tvl1, View, snippet
from extract.media import Decoded, MediaError, Probe, decode, probe
from extract.sampling import Window, rows
from extract.samplings import Clips, Every, Fps, Sampling, Segments, Spread, Uniform
from extract.scaler import Scaler
from extract.span import Media
from features.outcome import Outcome

Array = npt.NDArray[Any]
Item = tuple[int, Array] | Outcome
Hardware = Literal["cuda"] | None
PATCH = (96, 64)


@dataclass(frozen=True)
class Job:
    """How pictures become samples: which frames, `frames` of them `stride` apart, scaled and cropped how: to squares,
    or to `crop_px` by `width_px`."""

    sampling: Sampling
    resize_px: int
    crop_px: int
    interpolation: str
    limits: Limits
    frames: int = 1
    stride: int = 1
    gray: bool = False
    hardware: Hardware = None
    views: tuple[View, ...] = CENTRE
    window: Window | None = None
    width_px: int | None = None

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width."""
        return self.crop_px, self.width_px or self.crop_px

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        picture = self.sides if self.gray else (*self.sides, 3)
        return picture if self.frames == 1 else (self.frames, *picture)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8)

    @classmethod
    def of(cls, config: FromVideo, transform: Mapping[str, Any]) -> Self:
        """The job of an extractor whose transform is settled."""
        crop = transform["crop"] or transform["resize"]
        how = transform["resize"] or crop, crop, transform["interpolation"] or "bilinear"
        hardware = None if config.decoder == "software" else config.decoder
        grey, views = isinstance(config, Tvl1), config.transform.views
        wide = transform.get("width")
        return cls(config.sampling, *how, config.limits, *snippet(config), grey, hardware, views, width_px=wide)


@dataclass(frozen=True)
class SoundJob:
    """How sound becomes log-mel patches."""

    hop_s: float
    offset: float
    limits: Limits
    window: Window | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return PATCH

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float32)


AnyJob = Job | SoundJob


def job_of(config: AnyExtractor, transform: Mapping[str, Any]) -> AnyJob:
    """The job of an extractor that reads the video."""
    if isinstance(config, Logmel):
        return SoundJob(config.hop_s, config.offset, config.limits)
    if isinstance(config, FromVideo):
        return Job.of(config, transform)
    raise TypeError(f"{config.kind} reads no video")


@dataclass
class Told:
    """What a decode finds of a whole video; filled while it runs. `start_us` is where windows begin; `alive` is called
    at every picture."""

    start_us: int | None = None
    duration_us: int = 0
    alive: Callable[[], None] = lambda: None


def samples(path: Media, jobs: Mapping[int, AnyJob]) -> Iterator[tuple[int, Item]]:
    """(job, item) of one video for all the jobs. Runs in the caller's process."""
    for number, _, item in parts(path, jobs, Told()):
        yield number, item


def parts(path: Media, jobs: Mapping[int, AnyJob], told: Told) -> Iterator[tuple[int, int, Item]]:
    """(job, window, item) of one video for all the jobs; the window is 0 where they have none. A window of pictures has
    the rows of a clip that is cut there; of sound the patches whose middle is in it."""
    seen = {n: job for n, job in jobs.items() if isinstance(job, Job)}
    for group in {(job.limits, job.hardware): None for job in seen.values()}:
        of_group = {n: job for n, job in seen.items() if (job.limits, job.hardware) == group}
        yield from _seen(path, of_group, *group, told)
    for number, job in jobs.items():
        if isinstance(job, SoundJob):
            yield from _heard(path, number, job, told)


def _seen(
    path: Media, jobs: Mapping[int, Job], limits: Limits, hardware: Hardware, told: Told
) -> Iterator[tuple[int, int, Item]]:
    counts, found = Counter[int](), Decoded()
    try:
        video = probe(path, limits)
        if told.start_us is None and len(video.times_us):
            told.start_us, told.duration_us = int(video.times_us[0]), video.duration_us
        choices = {n: _choice(job, video) for n, job in jobs.items()}
        for number, part, row in _pass(path, choices, limits, hardware, found, told):
            counts[number] += 1
            yield number, part, row
        single = {n: choice for n, choice in choices.items() if isinstance(choice, _Choice)}
        late = {n: choice for n, choice in single.items() if choice.late}
        if len(found.times_us) != len(video.times_us):  # fewer pictures than packets, or more: choose again
            late |= {n: choice for n, choice in single.items() if choice.repeats and not counts[n]}
            late = {n: _Choice.of(jobs[n], np.array(found.times_us, dtype=np.int64), late=True) for n in late}
            for _ in _pass(path, late, limits, hardware, Decoded(), told) if late else ():
                pass
        for number, choice in late.items():
            for row in choice.rows():
                counts[number] += 1
                yield number, 0, row
        for number in jobs:
            yield number, 0, _outcome(limits, video.promised, len(video.times_us), found, counts[number])
    except MediaError as error:
        for number in jobs:
            yield number, 0, Outcome(outcome=error.outcome, reason=error.reason, decoded=len(found.times_us))


def _heard(path: Media, number: int, job: SoundJob, told: Told) -> Iterator[tuple[int, int, Item]]:
    from extract.audio import RATE_HZ, Heard
    from extract.logmel import samples as patches

    heard, count, pictured = Heard(), 0, told.start_us is not None
    for item in patches(path, job.limits, hop_s=job.hop_s, offset=job.offset, heard=heard):
        if isinstance(item, Outcome):
            if not pictured:
                told.start_us, told.duration_us = heard.start_us, round(1e6 * heard.samples / RATE_HZ)
            yield number, 0, replace(item, rows=count if item.rows else 0)
        elif job.window is None:
            count += 1
            yield number, 0, item
        else:
            at_us = item[0] - (told.start_us if told.start_us is not None and pictured else heard.start_us)
            for part in job.window.holding(at_us, told.duration_us if pictured else None):
                count += 1
                yield number, part, item


@dataclass
class _Places:
    """Which of the packets at `times_us` (F,) a picture stands for: its own, and those before it that gave none. A
    packet may be half of a picture, one that is never shown, or one that decoding begins too late for."""

    times_us: npt.NDArray[np.int64]
    at: int = 0  # the next packet

    def of(self, time_us: int) -> range:
        first, times = self.at, self.times_us
        while self.at + 1 < len(times) and times[self.at] < time_us and times[self.at + 1] <= time_us:
            self.at += 1
        self.at += 1
        return range(first, self.at)


@dataclass
class _Choice:
    """The frames that one job wants, and those of them that are there.

    `late`: its rows depend on the number of frames, which is known for certain only at the end. The rows of the others
    leave as their last frame comes, and a frame is kept no longer than a row needs it. Frames that are chosen by their
    times are known by those, others by their numbers.
    """

    job: Job
    scale: Scaler
    late: bool
    places: _Places | None
    every: int  # frames between rows, where no count is needed; else 0
    waiting: deque[list[int]]
    uses: Counter[int]
    images: dict[int, tuple[int, Array]] = field(default_factory=dict)

    @classmethod
    def of(cls, job: Job, times_us: npt.NDArray[np.int64], late: bool = False) -> Self:
        wanted = rows(job.sampling, times_us, job.frames, job.stride, len(job.views))
        single = isinstance(job.sampling, Every) and job.frames == 1
        return cls(
            job=job,
            scale=_scaler(job),
            places=_Places(times_us) if isinstance(job.sampling, Fps) else None,
            late=late or isinstance(job.sampling, Uniform | Segments | Spread),
            every=job.sampling.k if single else 0,  # type: ignore[union-attr]
            waiting=deque([] if single else wanted.tolist()),
            uses=Counter([] if single else wanted.ravel().tolist()),
        )

    @property
    def repeats(self) -> bool:
        """Whether a video that is shorter than a row has one all the same."""
        return isinstance(self.job.sampling, Clips)

    def take(self, number: int, time_us: int, look: Callable[[], Array]) -> Iterator[tuple[int, tuple[int, Array]]]:
        """Take a frame, if it is wanted; gives the rows that it completes, with window 0."""
        numbers = range(number, number + 1) if self.places is None else self.places.of(time_us)
        yield from self.stand_for(numbers, time_us, look)

    def stand_for(
        self, numbers: range, time_us: int, look: Callable[[], Array]
    ) -> Iterator[tuple[int, tuple[int, Array]]]:
        """A frame in the place of all of `numbers`; a row of it alone is given once."""
        if self.every:
            if any(n % self.every == 0 for n in numbers):
                for view in self.job.views:
                    yield 0, (time_us, seen(look(), self.job.sides, view))
            return
        wanted = [n for n in numbers if n in self.uses]
        if not wanted:
            return
        taken = time_us, look()
        self.images |= dict.fromkeys(wanted if self.job.frames > 1 else wanted[-1:], taken)
        while not self.late and self.waiting and max(self.waiting[0]) <= wanted[-1]:
            row = self.waiting.popleft()
            if all(n in self.images for n in row):
                for found in self._row(row):
                    yield 0, found
            self.uses.subtract(row)
            for n in set(row):
                if self.uses[n] == 0:
                    self.images.pop(n, None)

    def rows(self) -> Iterator[tuple[int, Array]]:
        """The rows that are whole at the end."""
        for row in self.waiting:
            if all(n in self.images for n in row):
                yield from self._row(row)

    def _row(self, row: list[int]) -> Iterator[tuple[int, Array]]:
        times = [self.images[n][0] for n in row]
        for view in self.job.views:
            images = [seen(self.images[n][1], self.job.sides, view) for n in row]
            yield (min(times) + max(times)) // 2, images[0] if self.job.frames == 1 else np.stack(images)


def seen(image: Array, sides: tuple[int, int], view: View) -> Array:
    """The part of (H, W, ...), `sides` high and wide, that a view is; `extract.config.Transform`."""
    place, _, mirrored = view.partition("_")
    room = [there - side for there, side in zip(image.shape[:2], sides, strict=True)]
    first = [n // 2 for n in room]
    long = 0 if room[0] > room[1] else 1
    first[long] = {"left": 0, "centre": first[long], "right": room[long]}[place]
    cut = image[first[0] : first[0] + sides[0], first[1] : first[1] + sides[1]]
    return cut[:, ::-1] if mirrored else cut


@dataclass
class _Windows:
    """The choices of all windows; those are at work that hold the frame that is being decoded. What was said of a
    window's frames before decoding stands, so that a window leaves with its last frame."""

    job: Job
    scale: Scaler
    places: _Places
    waiting: Iterator[tuple[int, int, int]]  # (window, its first frame, the one after its last)
    next: tuple[int, int, int] | None = None
    open: list[tuple[int, int, int, _Choice]] = field(default_factory=list)

    @classmethod
    def of(cls, job: Job, window: Window, video: Probe) -> Self:
        spans = window.frames(video.times_us, video.duration_us)
        own = cls(job, _scaler(job), _Places(video.times_us), iter(spans))
        own.next = next(own.waiting, None)
        return own

    def take(self, number: int, time_us: int, look: Callable[[], Array]) -> Iterator[tuple[int, tuple[int, Array]]]:
        """See `_Choice`; with the window that a row is of."""
        numbers = self.places.of(time_us)
        while self.next is not None and self.next[1] <= numbers[-1]:
            part, first, last = self.next
            times_us = self.places.times_us[first:last]
            choice = replace(_Choice.of(replace(self.job, window=None), times_us), late=False)
            self.open.append((part, first, last, choice))
            self.next = next(self.waiting, None)
        for part, first, last, choice in self.open:
            own = range(max(numbers.start - first, 0), min(numbers.stop, last) - first)
            for _, row in choice.stand_for(own, time_us, look) if numbers[-1] < last else ():
                yield part, row
        self.open = [one for one in self.open if numbers.stop < one[2]]


def _choice(job: Job, video: Probe) -> _Choice | _Windows:
    return _Choice.of(job, video.times_us) if job.window is None else _Windows.of(job, job.window, video)


def _scaler(job: Job) -> Scaler:
    return Scaler(job.resize_px, job.crop_px, job.interpolation, "gray" if job.gray else "rgb24", job.width_px)


def _pass(
    path: Media,
    choices: Mapping[int, _Choice | _Windows],
    limits: Limits,
    hardware: Hardware,
    found: Decoded,
    told: Told,
) -> Iterator[tuple[int, int, tuple[int, Array]]]:
    """Decode once; every frame is scaled once for all the jobs that see it the same way."""
    for number, time_us, frame in decode(path, limits, found, hardware):
        told.alive()
        done: dict[tuple[Any, ...], Array] = {}
        for n, choice in choices.items():
            for part, row in choice.take(number, time_us, partial(_scaled, frame, choice, done)):
                yield n, part, row


def _scaled(frame: VideoFrame, choice: _Choice | _Windows, done: dict[tuple[Any, ...], Array]) -> Array:
    job = choice.job
    middle = job.views == CENTRE
    key = (job.resize_px, job.sides if middle or job.width_px else 0, middle, job.interpolation, job.gray)
    if key not in done:
        done[key] = choice.scale(frame) if middle else choice.scale.whole(frame)
    return done[key]


def _outcome(limits: Limits, promised: int, packets: int, found: Decoded, count: int) -> Outcome:
    decoded = len(found.times_us)
    promised = promised or (packets if found.errors else decoded)
    reason = f"{decoded} of {promised} frames decoded" + (f"; {found.first_error}" if found.errors else "")
    damaged = bool(found.errors) or decoded < promised
    if decoded == 0 or decoded < limits.min_decoded_ratio * promised or (count == 0 and damaged):
        return Outcome(outcome="undecodable", reason=reason, decoded=decoded, promised=promised)
    if count == 0:
        reason = f"{decoded} frames, a sample takes more"
        return Outcome(outcome="too_short", reason=reason, decoded=decoded, promised=promised)
    short = promised - decoded > min(2, promised // 10)  # headers are often off by one or two
    if short or found.errors:
        return Outcome(outcome="partial", reason=reason, rows=count, decoded=decoded, promised=promised)
    return Outcome(outcome="ok", rows=count, decoded=decoded, promised=promised)
