"""Decoder processes: videos in, fixed-shape samples out, in the order of the list, for several jobs at once.

Each process takes the next video, and puts its samples into a ring of shared memory of its own, so that one that runs
ahead waits without blocking the others. The consumer reads the videos strictly in order; so what a batch holds depends
on the list alone, whatever was resumed and however many processes decode. A process that dies costs its video a second
try, and after that its rows; a video of which nothing is heard for longer than the limit costs its process.

    with Decoders([job], paths, workers=2) as decoders:
        for item in decoders: ...                   # Row(video, time_us, sample, job) or End(video, outcome, job)
"""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.reduction import DupFd
from typing import Any, Self

import numpy as np
import psutil
from threadpoolctl import threadpool_limits

from extract.samples import AnyJob, Array, Job, Told, parts
from extract.span import Media
from features.errors import UserError
from features.outcome import Outcome

RING_BYTES = 8 << 20  # of all decoders together: enough that none waits, little enough not to count
TRIES = 2
AHEAD = 2  # videos that a decoder is given at a time: it goes on while the consumer is still at the one before
TOLD_TOGETHER = 8  # rows a message
LIFE_S = 5.0  # between the signs of life of a decoder that has nothing to tell
MOST_SLOTS = 1 << 14  # a pipe holds as many bytes


@dataclass(frozen=True)
class Row:
    """One sample of a job. `sample` is a view that holds until the next item is asked for; `part` is its window."""

    video: int
    time_us: int
    sample: Array
    job: int = 0
    part: int = 0


@dataclass(frozen=True)
class End:
    """A video is finished for a job; its outcome counts the rows that were given."""

    video: int
    outcome: Outcome
    job: int = 0
    duration_us: int = 0  # 0: not known


# (slot, time_us, job, window) ..., ends, the duration when it is all; without any of them a sign of life
Message = tuple[list[tuple[int, int, int, int]], list[tuple[int, Outcome]], int | None]


class _Worker:
    """One decoder process, its ring and its pipe."""

    def __init__(self, jobs: Sequence[AnyJob], slots: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.ring = Ring(slots * _slot_bytes(jobs))
        self.places = _places(jobs, slots, self.ring)
        done, self.done = context.Pipe(duplex=False)  # a byte for each sample that was read
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_decode_videos, args=(jobs, self.ring, slots, done, theirs, os.getpid()), daemon=True
        )
        self.process.start()
        done.close()
        theirs.close()
        self.videos: deque[int] = deque()  # what it was given and has not ended, in order

    def free(self) -> None:
        """A slot may be written again."""
        with suppress(OSError):  # it is dead: reading its pipe will say so
            os.write(self.done.fileno(), b"\0")

    def stop(self) -> None:
        """Kill the process and give its memory back."""
        self.process.kill()
        self.process.join()
        self.pipe.close()
        self.ring.close()


class Decoders:
    """Iterate over the rows and ends of `paths` (number of the video -> file), in ascending order of their numbers.

    `wanted` says which of the `jobs` want a video; without it all do. `read` gives those of any other videos, as often
    as it is asked.
    """

    def __init__(
        self,
        jobs: Sequence[AnyJob],
        paths: Mapping[int, Media],
        workers: int,
        wanted: Mapping[int, Collection[int]] | None = None,
    ) -> None:
        self.jobs, self.paths, self.wanted = tuple(jobs), dict(sorted(paths.items())), wanted
        self.timeout_s = max(job.limits.timeout_s for job in jobs)
        self._slots = min(max(2, RING_BYTES // max(1, workers) // _slot_bytes(jobs)), MOST_SLOTS)
        self._todo: Iterator[tuple[int, Media]] = iter(())
        self._given: deque[tuple[int, Media]] = deque()  # in the order of the list
        self._tries: dict[int, int] = {}
        self._count = max(1, min(workers, len(paths)) if paths else workers)
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        try:
            for _ in range(self._count):
                self._workers.append(_Worker(self.jobs, self._slots))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()
        self._workers = []

    def __iter__(self) -> Iterator[Row | End]:
        return self.read(self.paths.items())

    def read(self, videos: Iterable[tuple[int, Media]]) -> Iterator[Row | End]:
        """The rows and ends of `videos`, whose numbers differ, in their order; no more of them are asked for than are
        being decoded. To be read to its end."""
        self._todo = iter(videos)
        for worker in self._workers * AHEAD:
            self._feed(worker)
        while self._given:
            video, _ = self._given[0]
            yield from self._video(video)
            self._given.popleft()
            self._tries.pop(video, None)

    def _video(self, video: int) -> Iterator[Row | End]:
        given, at = Counter[int](), Counter[int]()  # rows that a first try has already given are not given twice
        open_ = dict.fromkeys(self._wanted(video))  # jobs that have not ended
        worker = next(w for w in self._workers if w.videos and w.videos[0] == video)
        while True:
            ready = worker.pipe.poll(self.timeout_s)
            try:
                told: Message | UserError | None = worker.pipe.recv() if ready else None
            except (EOFError, OSError):  # the pipe ends between two messages, or inside one
                worker.process.join(5)
                code = worker.process.exitcode
                self._tries[video] = self._tries.get(video, 0) + 1
                again = self._tries[video] < TRIES
                worker = self._replace(worker, again)
                if not again:
                    why = "memory limit" if code == errno.ENOMEM else f"decoder ended {TRIES} times ({code})"
                    yield from (End(video, Outcome(outcome="decoder_killed", reason=why), job) for job in open_)
                    return
                at.clear()
                continue
            if told is None:
                self._replace(worker, again=False)
                reason = f"no frame for {self.timeout_s:.0f} s"
                yield from (End(video, Outcome(outcome="timeout", reason=reason), job) for job in open_)
                return
            if isinstance(told, UserError):
                raise told
            rows, ends, duration_us = told
            for slot, time_us, job, part in rows:
                at[job] += 1
                if at[job] > given[job]:
                    given[job] += 1
                    yield Row(video, time_us, worker.places[job][slot], job, part)
                worker.free()
            if duration_us is not None:
                worker.videos.popleft()
                self._feed(worker)
            for job, outcome in ends:
                if job in open_:
                    del open_[job]
                    yield End(video, outcome, job, duration_us or 0)
            if duration_us is not None:
                return

    def _replace(self, worker: _Worker, again: bool) -> _Worker:
        """A fresh process for what `worker` was given; its first video once more only if `again`."""
        place = self._workers.index(worker)
        self._workers.pop(place).stop()
        fresh = _Worker(self.jobs, self._slots)
        self._workers.insert(place, fresh)
        if not again:
            worker.videos.popleft()
        for video in worker.videos:
            self._send(fresh, video)
        if not again:
            self._feed(fresh)
        return fresh

    def _feed(self, worker: _Worker) -> None:
        if (item := next(self._todo, None)) is not None:
            self._given.append(item)
            self._send(worker, item[0])

    def _send(self, worker: _Worker, video: int) -> None:
        worker.videos.append(video)
        path = next(path for number, path in self._given if number == video)
        with suppress(OSError):  # it died while idle: reading its pipe will say so
            worker.pipe.send((path, tuple(self._wanted(video))))

    def _wanted(self, video: int) -> Collection[int]:
        return range(len(self.jobs)) if self.wanted is None else self.wanted[video]


def _slot_bytes(jobs: Sequence[AnyJob]) -> int:
    return max(int(np.prod(job.shape)) * job.dtype.itemsize for job in jobs)


class Ring:
    """Memory that this process and those that it starts share. It has no name, so whoever is killed, it ends with them.

    Its room is taken at once: where there is none, the first touch of what is only promised would be a bus error.
    """

    def __init__(self, size: int) -> None:
        self.file = os.memfd_create("framepool") if sys.platform == "linux" else _unnamed()
        try:
            if sys.platform == "linux":
                os.posix_fallocate(self.file, 0, size)
            else:
                os.ftruncate(self.file, size)
            self.memory = mmap.mmap(self.file, size)
        except OSError as error:
            os.close(self.file)
            expected, fix = f"{size / 1e6:.1f} MB for a decoder", "free some, or set fewer workers"
            raise UserError("no room in memory", expected=expected, got=error.strerror, fix=fix) from None

    def close(self) -> None:
        """Give it back; where an array still lies in it, as soon as that is gone."""
        os.close(self.file)
        with suppress(BufferError):
            self.memory.close()

    def __getstate__(self) -> tuple[Any, int]:
        return DupFd(self.file), len(self.memory)

    def __setstate__(self, state: tuple[Any, int]) -> None:
        self.file = state[0].detach()
        self.memory = mmap.mmap(self.file, state[1])


def _unnamed() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _places(jobs: Sequence[AnyJob], slots: int, ring: Ring) -> list[list[Array]]:
    """For each job the ring's slots as its samples lie in them."""
    size = _slot_bytes(jobs)
    return [[np.ndarray(job.shape, job.dtype, ring.memory, at * size) for at in range(slots)] for job in jobs]


def _decode_videos(
    jobs: Sequence[AnyJob], ring: Ring, slots: int, done: Connection, pipe: Connection, parent: int
) -> None:
    """The body of a decoder process; ends with its parent."""
    die_with_parent(signal.SIGKILL, parent)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent decides
    os.nice(19)  # the network's threads go first; decoders fill what is left of the cores
    threadpool_limits(1)  # of BLAS: a decoder is one core's work, and several would fight over the cores
    _limit_memory(jobs)
    gc.freeze()
    places = _places(jobs, slots, ring)
    slot, free, heard = 0, slots, time.monotonic()
    life_s = min(LIFE_S, max(job.limits.timeout_s for job in jobs) / 4)

    def tell(rows: list[tuple[int, int, int, int]], ends: list[tuple[int, Outcome]], duration_us: int | None) -> None:
        nonlocal heard
        pipe.send((rows, ends, duration_us))
        heard = time.monotonic()

    def alive() -> None:
        if time.monotonic() - heard > life_s:
            tell([], [], None)

    while True:
        try:
            path, wanted = pipe.recv()
        except EOFError:
            return
        rows: list[tuple[int, int, int, int]] = []  # of those that are in the ring and not yet told of
        ends: list[tuple[int, Outcome]] = []
        told = Told(alive=alive)
        try:
            for job, part, item in parts(path, {n: jobs[n] for n in wanted}, told):
                if isinstance(item, Outcome):
                    ends.append((job, item))
                    continue
                if len(rows) == TOLD_TOGETHER:
                    tell(rows, [], None)
                    rows = []
                    gc.collect()  # a PyAV frame that was asked for its side data is in a circle, with its picture
                if not free and not done.poll():
                    tell(rows, [], None)
                    rows = []
                if not free:
                    free = len(os.read(done.fileno(), MOST_SLOTS))
                    if not free:  # the parent is gone
                        return
                free -= 1
                places[job][slot][...] = item[1]
                rows.append((slot, item[0], job, part))
                slot = (slot + 1) % slots
        except MemoryError:
            os._exit(errno.ENOMEM)
        except UserError as error:  # no video's fault
            pipe.send(error)
            return
        tell(rows, ends, told.duration_us)
        gc.collect()


def _limit_memory(jobs: Sequence[AnyJob]) -> None:
    """No more address space than what is in use and the jobs' limit, so that a bomb ends this process and not the
    machine. A device's driver reserves more than any limit for itself."""
    if sys.platform == "linux" and not any(isinstance(job, Job) and job.hardware for job in jobs):
        now, mb = psutil.Process().memory_info().vms, max(job.limits.max_memory_mb for job in jobs)
        resource.setrlimit(resource.RLIMIT_AS, (now + (mb << 20), resource.RLIM_INFINITY))


def children(count: int) -> ProcessPoolExecutor:
    """A pool of `count` fresh processes that do not outlive this one, however it ends."""
    follow = partial(die_with_parent, signal.SIGKILL, os.getpid())
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=follow)


def die_with_parent(number: int, parent: int) -> None:
    """Ask Linux to send `number` to this process when its parent dies, so that a killed job leaves no orphan."""
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(1, number, 0, 0, 0) != 0:
        warnings.warn(f"cannot follow the parent process: {os.strerror(ctypes.get_errno())}", stacklevel=2)
    if os.getppid() != parent:  # it died before we asked
        os.kill(os.getpid(), number)
