"""Whole videos in memory: the rows of several extractors out of one decoding, rounded as a store rounds them.

The stream of samples runs on from video to video, so batches stay full; what a batch holds does not matter to a row
beyond rounding. Memory is bounded by the videos under way.
Legend: L rows of a video, *D one row.

    with Extraction({"rgb": stage}, workers=2) as extraction:
        for video in extraction.read([(0, Path("a.mp4")), (1, span)]):
            times_us, rows = video.rows["rgb"][0]                    # (L,), (L,*D) of window 0
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from extract.decoders import Decoders, End
from extract.lanes import Batch, Lane, not_finite, stored
from extract.samples import Array
from extract.sampling import Window
from extract.span import Media
from extract.stage import Stage, connect, fill
from features.outcome import Outcome

Rows = tuple[npt.NDArray[np.int64], Array]  # (L,) time_us, (L,*D)


@dataclass
class Video:
    """A finished video: for each extractor its rows, by window (0 where there are none), and its outcome."""

    number: int
    rows: dict[str, dict[int, Rows]] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    duration_us: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return sum(rows.nbytes for windows in self.rows.values() for _, rows in windows.values())


class Extraction:
    """Runs `stages`, by any names, for as many `read`s as are wanted. Not for two threads at once."""

    def __init__(self, stages: Mapping[str, Stage], workers: int, window: Window | None = None) -> None:
        self._stages, self._workers, self._window = dict(stages), workers, window
        self._stack = ExitStack()
        self._ready: deque[Video] = deque()
        self._open: dict[int, Video] = {}
        self._pieces: dict[tuple[int, str], dict[int, list[Rows]]] = {}  # of video and extractor, by window

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            ends = [(stage, _Gather(name, stage, self)) for name, stage in self._stages.items()]
            built = connect(ends, self._workers, stack)
            first = [stage for stage in built if stage.before is None]
            self._lanes: list[Lane] = [built[stage] for stage in first]
            jobs = [replace(stage.job, window=self._window) for stage in first]
            self._decoders = stack.enter_context(Decoders(jobs, {}, self._workers))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, videos: Iterable[tuple[int, Media]]) -> Iterator[Video]:
        """Each of `videos` once it is finished, about in their order. To be read to its end."""
        for _ in fill(self._lanes, self._decoders.read(videos)):
            while self._ready:
                yield self._ready.popleft()

    def add(self, name: str, number: int, part: int, rows: Rows) -> None:
        """Some more rows of a video."""
        self._pieces.setdefault((number, name), {}).setdefault(part, []).append(rows)

    def end(self, name: str, end: End, why_not: str) -> None:
        """A video's rows of one extractor are all here, or (`why_not`) are not to be used."""
        video, outcome = self._of(end.video), end.outcome
        if why_not:
            outcome = replace(outcome, outcome="non_finite", reason=why_not, rows=0)
        pieces = self._pieces.pop((end.video, name), {})
        if outcome.rows:  # else what came before the end is not to be used
            video.rows[name] = {part: _joined(pieces.pop(part)) for part in sorted(pieces)}
        video.outcomes[name] = outcome
        video.duration_us = max(video.duration_us, end.duration_us)
        if len(video.outcomes) == len(self._stages):
            self._ready.append(self._open.pop(end.video))

    def _of(self, number: int) -> Video:
        return self._open.setdefault(number, Video(number))


def _joined(pieces: list[Rows]) -> Rows:
    times_us, rows = zip(*pieces, strict=True)
    return np.concatenate(times_us), np.concatenate(rows)


class _Gather:
    """The sink that keeps rows."""

    def __init__(self, name: str, stage: Stage, extraction: Extraction) -> None:
        self._name, self._stage, self._extraction = name, stage, extraction
        self._bad: dict[int, str] = {}

    def put(self, batch: Batch, rows: Array) -> None:
        index = batch.index[: len(rows)]
        rows, bad = stored(rows, self._stage.dtype)
        for row in bad:
            why_not = not_finite(int(index["time_us"][row]), self._stage.output)
            self._bad.setdefault(int(index["video"][row]), why_not)
        changes = np.flatnonzero((np.diff(index["video"]) != 0) | (np.diff(index["part"]) != 0)) + 1
        for piece in np.split(np.arange(len(rows)), changes) if len(rows) else ():
            video, part = int(index["video"][piece[0]]), int(index["part"][piece[0]])
            own = index["time_us"][piece].astype(np.int64), rows[piece]
            self._extraction.add(self._name, video, part, own)
        for end in batch.ends:
            self._extraction.end(self._name, end, self._bad.pop(end.video, ""))

    def flush(self) -> None:
        """Nothing waits here."""
