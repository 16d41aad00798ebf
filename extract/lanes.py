"""A lane: the samples of one extractor on their way into rows. Cut into batches, through an engine, to a sink.

Batches are cut at fixed places of the stream, across the borders of videos; every batch but the last is full. The sink
is the writer of a shard, or the lane of another extractor that reads these rows.

    with Writer(journal, progress) as writer, Lane(engine, 4, (224, 224, 3), np.dtype("uint8"), None, writer) as lane:
        lane.push(Row(0, 0, image)); lane.push(End(0, outcome)); lane.flush()
"""

from __future__ import annotations

import queue
import threading
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol, Self

import numpy as np

from extract.decoders import End, Row
from extract.progress import Progress
from extract.samples import Array
from features.journal import INDEX, Journal

PLACE: Final = np.dtype([*INDEX.descr, ("part", "<i4")])  # of a row: the window too
_WAITING: Final = 4  # batches


class Engine(Protocol):
    """Makes rows of samples; several batches can be on their way."""

    def start(self, samples: Array) -> Any:
        """Take (n, *S), n at most the batch; the caller leaves the array alone until `finish`."""

    def finish(self, ticket: Any) -> Array:
        """(n, *D) of the batch that `start` gave the ticket for; in the order of the starts."""

    def close(self) -> None:
        """Give threads and memory back."""


class Plain:
    """The samples are the rows."""

    def start(self, samples: Array) -> Array:
        return samples

    def finish(self, ticket: Array) -> Array:
        return ticket

    def close(self) -> None:
        pass


@dataclass
class Batch:
    """Consecutive samples, what video, time and window each is of, and the videos that end once these are rows."""

    samples: Array
    index: Any
    filled: int = 0
    ends: list[End] = field(default_factory=list)


class Sink(Protocol):
    """Where rows go."""

    def put(self, batch: Batch, rows: Array) -> None:
        """The rows of a batch, in order."""

    def flush(self) -> None:
        """No more will come."""


class Lane:
    """See the module. `crop` takes the middle of maps that are larger than the engine's input."""

    def __init__(
        self, engine: Engine, size: int, shape: tuple[int, ...], dtype: np.dtype[Any], crop: int | None, sink: Sink
    ) -> None:
        self._engine, self._size, self._dtype, self._sink = engine, size, dtype, sink
        self._cut = middle(shape, crop)
        self._shape = (*shape[:-3], crop, crop, shape[-1]) if crop is not None else shape
        self._here: Counter[int] = Counter()
        self._underway: deque[tuple[Batch, Any]] = deque()
        self._batch = self._fresh()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()

    def skip(self, videos: Iterable[int]) -> None:
        """Pass over as many rows of each of `videos` as it occurs: they were written before the kill."""
        self._here = Counter(np.asarray(videos).tolist())

    def push(self, item: Row | End) -> None:
        """The next sample, which is copied, or the end of a video."""
        batch = self._batch
        if isinstance(item, End):
            batch.ends.append(item)
            return
        if self._here[item.video] > 0:
            self._here[item.video] -= 1
            return
        batch.samples[batch.filled] = item.sample[self._cut] if self._cut else item.sample
        batch.index[batch.filled] = (item.video, item.time_us, item.part)
        batch.filled += 1
        if batch.filled == self._size:
            self._send()

    def flush(self) -> None:
        """The stream is over: what is left goes its way."""
        if self._batch.filled or self._batch.ends:
            self._send()
        while self._underway:
            self._receive()
        self._sink.flush()

    def _fresh(self) -> Batch:
        return Batch(np.empty((self._size, *self._shape), self._dtype), np.zeros(self._size, PLACE))

    def _send(self) -> None:
        batch, self._batch = self._batch, self._fresh()
        ticket = self._engine.start(batch.samples[: batch.filled]) if batch.filled else None
        self._underway.append((batch, ticket))
        if len(self._underway) == 3:  # two are on their way while one is used
            self._receive()

    def _receive(self) -> None:
        batch, ticket = self._underway.popleft()
        if not batch.filled:  # only the ends of videos without any rows
            self._sink.put(batch, np.empty((0, 1), np.float32))
            return
        rows = self._engine.finish(ticket)
        self._sink.put(batch, rows)


def middle(shape: tuple[int, ...], crop: int | None) -> tuple[slice, ...]:
    """The part of a map (..., H, W, C) that is its middle `crop` square; () where there is no crop."""
    if crop is None:
        return ()
    sides = [slice((side - crop) // 2, (side - crop) // 2 + crop) for side in shape[-3:-1]]
    return (*(slice(None),) * (len(shape) - 3), *sides)


class PassOn:
    """The sink that is another lane."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane

    def put(self, batch: Batch, rows: Array) -> None:
        for (video, time_us, part), row in zip(batch.index[: len(rows)].tolist(), rows, strict=True):
            self._lane.push(Row(video, time_us, row, 0, part))
        for end in batch.ends:
            self._lane.push(end)

    def flush(self) -> None:
        self._lane.flush()


class Fan:
    """Several sinks that get the same rows."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = tuple(sinks)

    def put(self, batch: Batch, rows: Array) -> None:
        for sink in self._sinks:
            sink.put(batch, rows)

    def flush(self) -> None:
        for sink in self._sinks:
            sink.flush()


def stored(rows: Array, dtype: np.dtype[Any]) -> tuple[Array, list[int]]:
    """(n, *D) as a store of this type keeps them, and the numbers of the rows that it must not keep."""
    if rows.dtype.kind != "f":
        return rows, []
    with np.errstate(over="ignore"):
        rows = rows.astype(dtype)  # overflow becomes inf, and is refused here
    return rows, np.flatnonzero(~np.isfinite(rows).all(axis=tuple(range(1, rows.ndim)))).tolist()


def not_finite(time_us: int, output: str) -> str:
    """Why a video's rows are not kept: of which frame or window, and what gave it."""
    return f"non-finite feature at {time_us / 1e6:.3f} s, from {output}"


class Writer:
    """A thread that checks rows, rounds them to the store's dtype and appends them to the journal, in order.

    It is handed batches through queues that no signal breaks. What a handler raises inside of a `queue.Queue` may leave
    that locked, or its reader asleep for ever: the command would not end.
    """

    def __init__(self, journal: Journal, progress: Progress, output: str) -> None:
        self._journal, self._progress, self._output = journal, progress, output
        self._queue: queue.SimpleQueue[tuple[Batch, Array] | None] = queue.SimpleQueue()
        self._room: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(_WAITING):
            self._room.put(None)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def put(self, batch: Batch, rows: Array) -> None:
        if self._error is not None:
            raise self._error
        self._room.get()
        self._queue.put((batch, rows))

    def flush(self) -> None:
        """Nothing waits here: leaving the context writes the rest."""

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            self._room.put(None)
            if self._error is None:
                try:
                    self._write(*item)
                except BaseException as error:
                    self._error = error

    def _write(self, batch: Batch, rows: Array) -> None:
        places = batch.index[: len(rows)]
        rows, bad = stored(rows, self._journal.dtype)
        for row in bad:
            name = f"video {places['video'][row]}"
            if name not in self._journal.notes:
                self._journal.note(name, not_finite(places["time_us"][row], self._output))
        index = np.zeros(len(places), INDEX)
        for field_ in INDEX.names or ():
            index[field_] = places[field_]
        if len(rows):
            self._journal.append_rows(rows, index)
        for end in batch.ends:
            outcome, reason = end.outcome, self._journal.notes.get(f"video {end.video}")
            if reason is not None:
                outcome = replace(outcome, outcome="non_finite", reason=reason, rows=0)
            self._journal.append_outcome(end.video, outcome)
        self._progress.add(rows=len(rows), videos=len(batch.ends))
