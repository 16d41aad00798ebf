"""Whole videos in memory: the rows of several extractors out of one decoding, rounded as a store rounds them.

The stream of samples runs on from video to video, so batches stay full; memory is bounded by the videos under way.
Legend: L rows of a video, *D one row.

    with Extraction({"pixels": task}, workers=2) as extraction:
        for video in extraction.read([(7, Path("a.mp4")), (3, Path("b.mp4"))]):
            times_us, rows = video.rows["pixels"]                    # (L,), (L,*D)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from extract.decoders import Decoders, End
from extract.lanes import Batch, Engine, Lane, PassOn
from extract.samples import Array
from extract.shard import Stage, Task
from features.outcome import WITH_ROWS, Outcome

Rows = tuple[npt.NDArray[np.int64], Array]  # (L,) time_us, (L,*D)


@dataclass
class Video:
    """A finished video: of each extractor its rows and its outcome."""

    number: int
    rows: dict[str, Rows] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)


class Extraction:
    """Runs `tasks`, by any names, for as many `read`s as are wanted, one after the other. Of a task only what makes its
    rows counts, and neither its items nor its shard; all lead back to the video."""

    def __init__(self, tasks: Mapping[str, Task], workers: int) -> None:
        self.stages = {name: Stage.of(task) for name, task in tasks.items()}
        self._workers = workers
        self._stack = ExitStack()
        self._engines: dict[str, list[Engine]] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for name, last in self.stages.items():
                stage: Stage | None = last
                while stage is not None:
                    engine = stage.engine(self._workers)
                    stack.callback(engine.close)
                    self._engines.setdefault(name, []).append(engine)
                    stage = stage.before
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, videos: Iterable[tuple[int, Path]], names: Sequence[str]) -> Iterator[Video]:
        """Each of `videos` (number, file), one or more, in their order, once the tasks `names` have finished it.
        Numbers differ."""
        numbers, paths = zip(*videos, strict=True)
        gathered = _Gathered(len(names))
        lanes = [self._lane(name, gathered) for name in names]
        jobs = [self.stages[name].first.job for name in names]
        with Decoders(jobs, dict(enumerate(paths)), self._workers) as decoders:
            for item in decoders:
                lanes[item.job].push(item)
                yield from gathered.finished(numbers)
        for lane in lanes:
            lane.flush()
        yield from gathered.finished(numbers)

    def _lane(self, name: str, gathered: _Gathered) -> Lane:
        stage, engines = self.stages[name], self._engines[name]
        sink = _Sink(name, np.dtype(stage.facts["dtype"]), gathered)
        lane = Lane(engines[0], stage.batch, *stage.input, sink)
        for engine in engines[1:]:
            if stage.before is None:
                break
            stage = stage.before
            lane = Lane(engine, stage.batch, *stage.input, PassOn(lane))
        return lane


class _Gathered:
    """Videos by their place in what was asked for, until all extractors have ended them."""

    def __init__(self, extractors: int) -> None:
        self._extractors = extractors
        self._pieces: dict[tuple[int, str], list[Rows]] = {}
        self._open: dict[int, Video] = {}
        self._next = 0

    def add(self, name: str, place: int, rows: Rows) -> None:
        """Some more rows of a video."""
        self._pieces.setdefault((place, name), []).append(rows)

    def end(self, name: str, end: End, bad: str) -> None:
        """All rows of a video are here, or are not to be used because of `bad`."""
        video, outcome = self._open.setdefault(end.video, Video(end.video)), end.outcome
        if bad:
            outcome = replace(outcome, outcome="non_finite", reason=bad, rows=0)
        pieces = self._pieces.pop((end.video, name), [])
        if pieces and outcome.outcome in WITH_ROWS:
            times_us, rows = zip(*pieces, strict=True)
            video.rows[name] = (np.concatenate(times_us), np.concatenate(rows))
        video.outcomes[name] = outcome

    def finished(self, numbers: tuple[int, ...]) -> Iterator[Video]:
        """The next videos that are whole, under the numbers that they were asked for by."""
        while (video := self._open.get(self._next)) is not None and len(video.outcomes) == self._extractors:
            del self._open[self._next]
            self._next += 1
            yield replace(video, number=numbers[video.number])


class _Sink:
    """Where a lane's rows are gathered."""

    def __init__(self, name: str, dtype: np.dtype[Any], gathered: _Gathered) -> None:
        self._name, self._dtype, self._gathered = name, dtype, gathered
        self._bad: dict[int, str] = {}

    def put(self, batch: Batch, rows: Array) -> None:
        index = batch.index[: len(rows)]
        if rows.dtype.kind == "f":
            with np.errstate(over="ignore"):
                rows = rows.astype(self._dtype)
            for row in np.flatnonzero(~np.isfinite(rows).all(axis=tuple(range(1, rows.ndim)))):
                bad = f"non-finite feature at {index['time_us'][row] / 1e6:.3f} s"
                self._bad.setdefault(int(index["video"][row]), bad)
        for piece in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(index["video"])) + 1) if len(rows) else ():
            times_us = index["time_us"][piece].astype(np.int64)
            self._gathered.add(self._name, int(index["video"][piece[0]]), (times_us, rows[piece]))
        for end in batch.ends:
            self._gathered.end(self._name, end, self._bad.pop(end.video, ""))

    def flush(self) -> None:
        """Nothing waits here."""
