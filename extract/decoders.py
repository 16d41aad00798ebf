"""Decoder processes: videos in, fixed-shape uint8 samples out, in the order of the list.

Each process takes the next video, and puts its samples into a ring of shared memory of its own, so that one that runs
ahead waits without blocking the others. The consumer reads the videos strictly in order; so what a batch holds depends
on the list alone, whatever was resumed and however many processes decode. A process that dies costs its video a second
try, and after that its rows; a video that keeps the consumer waiting longer than the limit costs its process.

    with Decoders(job, paths, workers=2) as decoders:
        for sample in decoders: ...                 # Row(video, time_us, image) or End(video, outcome)
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from multiprocessing.synchronize import Semaphore
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from extract.config import Clips, Every, Fps, Limits, Sampling
from extract.media import Decoded, Image, MediaError, Scaler, decode, probe
from extract.sampling import rows, span
from features.outcome import Outcome

RING_BYTES = 8 << 20  # of all decoders together: enough that none waits, little enough not to count
TRIES = 2
AHEAD = 2  # videos that a decoder is given at a time: it goes on while the consumer is still at the one before
TOLD_TOGETHER = 8  # rows a message


@dataclass(frozen=True)
class Job:
    """How a video becomes samples; sent to each decoder once. Samples are (T, H, W, 3), or (H, W, 3) where T is 1."""

    sampling: Sampling
    resize_px: int
    crop_px: int
    interpolation: str
    limits: Limits

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        clip, image = span(self.sampling), (self.crop_px, self.crop_px, 3)
        return image if clip == 1 else (clip, *image)


@dataclass(frozen=True)
class Row:
    """One sample. `sample` is a view that holds until the next item is asked for."""

    video: int
    time_us: int
    sample: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class End:
    """A video is finished; its outcome counts the rows that were given."""

    video: int
    outcome: Outcome


def samples(path: Path, job: Job) -> Iterator[tuple[int, Image] | Outcome]:
    """(time_us, sample) of each row of one video, then its outcome. Runs in the caller's process."""
    found, count = Decoded(), 0
    try:
        video = probe(path, job.limits)
        for item in _rows(path, job, video.times_us, found):
            count += 1
            yield item
        yield _outcome(job, video.promised, len(video.times_us), found, count)
    except MediaError as error:
        yield Outcome(outcome=error.outcome, reason=error.reason, decoded=len(found.times_us))


def _rows(path: Path, job: Job, times_us: npt.NDArray[np.int64], found: Decoded) -> Iterator[tuple[int, Image]]:
    scale = Scaler(job.resize_px, job.crop_px, job.interpolation)
    sampling = job.sampling
    if isinstance(sampling, Every):  # needs no count beforehand
        for _, time_us, image in decode(path, scale, lambda n: n % sampling.k == 0, job.limits, found):
            yield time_us, image
        return
    wanted = rows(sampling, times_us)
    if isinstance(sampling, Fps | Clips):  # any number of rows: each leaves when its last frame is there
        yield from _stream(path, job, scale, wanted, found)
        return
    images = _pick(path, job, scale, set(wanted.ravel().tolist()), found)
    if len(found.times_us) != len(times_us):  # fewer pictures than packets, or more: choose again, from what there is
        times_us = np.array(found.times_us, dtype=np.int64)
        wanted, found.times_us = rows(sampling, times_us), []
        images = _pick(path, job, scale, set(wanted.ravel().tolist()), found)
    for row in wanted.tolist():
        if all(n in images for n in row):
            yield _row(images, row)


def _stream(
    path: Path, job: Job, scale: Scaler, wanted: npt.NDArray[np.int64], found: Decoded
) -> Iterator[tuple[int, Image]]:
    """The rows `wanted` (L, T) as their frames come; a frame is kept no longer than a row needs it."""
    uses, waiting = Counter(wanted.ravel().tolist()), deque(wanted.tolist())
    images: dict[int, tuple[int, Image]] = {}
    for number, time_us, image in decode(path, scale, uses.__contains__, job.limits, found):
        images[number] = time_us, image
        while waiting and max(waiting[0]) <= number:
            row = waiting.popleft()
            yield _row(images, row)
            uses.subtract(row)
            for n in set(row):
                if uses[n] == 0:
                    del images[n]


def _row(images: dict[int, tuple[int, Image]], row: list[int]) -> tuple[int, Image]:
    clip = [images[n][1] for n in row]
    return images[row[0]][0], clip[0] if len(clip) == 1 else np.stack(clip)


def _pick(path: Path, job: Job, scale: Scaler, numbers: set[int], found: Decoded) -> dict[int, tuple[int, Image]]:
    frames = decode(path, scale, numbers.__contains__, job.limits, found)
    return {number: (time_us, image) for number, time_us, image in frames}


def _outcome(job: Job, promised: int, packets: int, found: Decoded, count: int) -> Outcome:
    decoded = len(found.times_us)
    promised = promised or (packets if found.errors else decoded)
    reason = f"{decoded} of {promised} frames decoded" + (f"; {found.first_error}" if found.errors else "")
    if decoded == 0 or decoded < job.limits.min_decoded_ratio * promised:
        return Outcome(outcome="undecodable", reason=reason, decoded=decoded, promised=promised)
    if count == 0:
        reason = f"{decoded} frames, a sample takes more"
        return Outcome(outcome="too_short", reason=reason, decoded=decoded, promised=promised)
    short = promised - decoded > min(2, promised // 10)  # headers are often off by one or two
    if short or found.errors:
        return Outcome(outcome="partial", reason=reason, rows=count, decoded=decoded, promised=promised)
    return Outcome(outcome="ok", rows=count, decoded=decoded, promised=promised)


class _Worker:
    """One decoder process, its ring and its pipe."""

    def __init__(self, job: Job, slots: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.ring = SharedMemory(create=True, size=slots * int(np.prod(job.shape)))
        self.images = np.ndarray((slots, *job.shape), np.uint8, buffer=self.ring.buf)
        self.free = context.Semaphore(slots)
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_decode_videos, args=(job, self.ring.name, slots, self.free, theirs, os.getpid()), daemon=True
        )
        self.process.start()
        theirs.close()
        self.videos: deque[int] = deque()  # what it was given and has not ended, in order

    def stop(self) -> None:
        """Kill the process and give its memory back."""
        self.process.kill()
        self.process.join()
        self.pipe.close()
        del self.images
        self.ring.close()
        self.ring.unlink()


class Decoders:
    """Iterate over the rows and ends of `paths` (number of the video -> file), in ascending order of their numbers."""

    def __init__(self, job: Job, paths: Mapping[int, Path], workers: int) -> None:
        self.job, self.paths = job, dict(sorted(paths.items()))
        self._slots = max(2, RING_BYTES // max(1, workers) // int(np.prod(job.shape)))
        self._todo = deque(self.paths)
        self._tries: dict[int, int] = {}
        self._count = max(1, min(workers, len(self.paths)))
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        try:
            for _ in range(self._count):
                self._workers.append(_Worker(self.job, self._slots))
            for worker in self._workers * AHEAD:
                self._feed(worker)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()
        self._workers = []

    def __iter__(self) -> Iterator[Row | End]:
        for video in self.paths:
            yield from self._video(video)

    def _video(self, video: int) -> Iterator[Row | End]:
        given, waited_s = 0, 0.0  # rows that a first try has already given are not given twice
        worker = next(w for w in self._workers if w.videos and w.videos[0] == video)
        at = 0
        while True:
            start = time.monotonic()
            ready = worker.pipe.poll(max(0.0, self.job.limits.timeout_s - waited_s))
            waited_s += time.monotonic() - start
            try:
                message = worker.pipe.recv() if ready else None
            except (EOFError, OSError):  # the pipe ends between two messages, or inside one
                worker.process.join(5)
                code = worker.process.exitcode
                self._tries[video] = self._tries.get(video, 0) + 1
                again = self._tries[video] < TRIES
                worker = self._replace(worker, again)
                if not again:
                    yield End(video, Outcome(outcome="decoder_killed", reason=f"decoder ended {TRIES} times ({code})"))
                    return
                at = 0
                continue
            if message is None:
                self._replace(worker, again=False)
                reason = f"no frame for {self.job.limits.timeout_s:.0f} s"
                yield End(video, Outcome(outcome="timeout", reason=reason))
                return
            rows, outcome = message
            for slot, time_us in rows:
                at += 1
                if at > given:
                    given = at
                    yield Row(video, time_us, worker.images[slot])
                worker.free.release()
            if outcome is not None:
                worker.videos.popleft()
                self._feed(worker)
                yield End(video, outcome)
                return

    def _replace(self, worker: _Worker, again: bool) -> _Worker:
        """A fresh process for what `worker` was given; its first video once more only if `again`."""
        worker.stop()
        fresh = _Worker(self.job, self._slots)
        self._workers[self._workers.index(worker)] = fresh
        if not again:
            worker.videos.popleft()
        for video in worker.videos:
            self._send(fresh, video)
        if not again:
            self._feed(fresh)
        return fresh

    def _feed(self, worker: _Worker) -> None:
        if self._todo:
            self._send(worker, self._todo.popleft())

    def _send(self, worker: _Worker, video: int) -> None:
        worker.videos.append(video)
        with suppress(OSError):  # it died while idle: reading its pipe will say so
            worker.pipe.send(self.paths[video])


def _decode_videos(job: Job, ring: str, slots: int, free: Semaphore, pipe: Connection, parent: int) -> None:
    """The body of a decoder process; ends with its parent."""
    die_with_parent(signal.SIGKILL, parent)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent decides
    os.nice(19)  # the network's threads go first; decoders fill what is left of the cores
    gc.freeze()
    memory = SharedMemory(ring)
    images = np.ndarray((slots, *job.shape), np.uint8, buffer=memory.buf)
    slot = 0
    while True:
        try:
            path = pipe.recv()
        except EOFError:
            return
        rows: list[tuple[int, int]] = []  # (slot, time_us) of rows that are in the ring and not yet told of
        for item in samples(path, job):
            if isinstance(item, Outcome):
                pipe.send((rows, item))
                break
            if len(rows) == TOLD_TOGETHER:
                pipe.send((rows, None))
                rows = []
            if not free.acquire(block=False):
                pipe.send((rows, None))
                rows = []
                free.acquire()
            images[slot] = item[1]
            rows.append((slot, item[0]))
            slot = (slot + 1) % slots


def die_with_parent(number: int, parent: int) -> None:
    """Ask Linux to send `number` to this process when its parent dies, so that a killed job leaves no orphan."""
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(1, number, 0, 0, 0) != 0:
        warnings.warn(f"cannot follow the parent process: {os.strerror(ctypes.get_errno())}", stacklevel=2)
    if os.getppid() != parent:  # it died before we asked
        os.kill(os.getpid(), number)
