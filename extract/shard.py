"""The shard loop: decoder processes -> batches that cross video borders -> network -> writer.

One shard of one extractor, from files to a published shard. Rows come in the order of the list and batches are cut from
that one stream at fixed places, so the bytes do not depend on where a killed job was taken up again: it truncates the
journal to whole batches, decodes the first unfinished video again and passes over the rows that are already there.

    extract_shard(Task(extractor="rgb", config=config, ...), folder, videos, root)
"""

from __future__ import annotations

import hashlib
import os
import queue
import stat
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from extract.config import Pixels, Rgb
from extract.decoders import Decoders, End, Job
from extract.progress import Progress
from extract.runtime import Engine, Model, engine, prepare
from features.atomic import Lock, make_folder
from features.errors import FramepoolError
from features.journal import INDEX, Journal
from features.manifest import Manifest, read_manifest, shards
from features.outcome import Outcome
from features.recipe import digest, file_sha256
from features.store import partial_path, publish, republish

LOCK_WAIT_S = 10.0  # a killed workflow's job needs a moment to end
PIXEL_BATCH = 32  # rows written at a time where no network sets a batch


@dataclass(frozen=True)
class Item:
    """One video of the shard: its id, and its file under the root ("" where there is none)."""

    id: str
    path: str


@dataclass(frozen=True)
class Task:
    """One shard of one extractor. `weights` is where the config's weights really are; `recipe` names the store."""

    extractor: str
    config: Pixels | Rgb
    recipe: dict[str, Any]
    weights: Path | str | None
    shard: int
    items: tuple[Item, ...]
    root: Path
    store: Path  # folder of the store
    cache: Path  # of converted networks


def extract_shard(task: Task, *, workers: int, lock_wait_s: float = LOCK_WAIT_S) -> Manifest:
    """Make the shard and publish it, or publish again what is already whole. Returns its manifest.

    Raises `Busy` when another process holds the shard, `FramepoolError` where the store's shards came from other
    weights; whatever stops it, what is finished stays in the journal.
    """
    make_folder(task.store)
    with Lock(task.store / f"{task.shard:05d}.lock", wait_s=lock_wait_s):
        wanted = (digest(task.recipe), list_digest(task.items, task.root), task.shard, tuple(i.id for i in task.items))
        if (whole := republish(task.store, wanted, task.shard)) is not None:
            if isinstance(task.weights, Path):
                _same_facts(task, whole.facts, {"weights_sha256": file_sha256(task.weights)})
            return whole
        model = Model(task.config, task.weights) if isinstance(task.config, Rgb) and task.weights is not None else None
        facts = prepare(model, task.cache) if model else {"transform": task.config.transform.recipe()}
        if (other := next((s for s in shards(task.store) if s != task.shard), None)) is not None:
            _same_facts(task, read_manifest(task.store, other).facts, facts)
        journal = Journal(partial_path(task.store, task.shard), _head(task, facts, wanted))
        try:
            _fill(task, journal, model, facts, workers)
            outcomes = tuple(journal.outcomes[v] for v in range(len(task.items)))
            manifest = Manifest(
                extractor=task.extractor,
                digest=wanted[0],
                recipe=task.recipe,
                facts=facts,
                shard=task.shard,
                list_digest=wanted[1],
                ids=wanted[3],
                outcomes=outcomes,
                row_shape=journal.row_shape,
                dtype=journal.dtype.name,
                statistics={k: v for k, v in journal.notes.items() if not k.startswith("video ")},
            )
            return publish(journal, task.store, manifest)
        finally:
            journal.close()


def list_digest(items: Sequence[Item], root: Path) -> str:
    """Digest of a slice of the list: ids, paths and what the files are (size, and sha256 of both ends)."""
    return digest([[i.id, i.path, fingerprint(root / i.path) if i.path else ""] for i in items])


def fingerprint(path: Path) -> str:
    """Tells a replaced file from the old one, wherever it is copied: size, and sha256 of its first and last 64 KiB."""
    end = 1 << 16
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a FIFO would wait for its writer
            return "not a regular file"
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            head = stream.read(end)
            stream.seek(max(len(head), size - end))
            return f"{size}-{hashlib.sha256(head + stream.read(end)).hexdigest()[:16]}"
    except OSError as error:
        return f"unreadable: {error.strerror}"


def _head(task: Task, facts: dict[str, Any], wanted: tuple[Any, ...]) -> dict[str, Any]:
    if isinstance(task.config, Rgb):
        shape, dtype = [facts["feature_dim"]], "float16"
    else:
        shape, dtype = list(_job(task, facts).shape), "uint8"
    return {"digest": wanted[0], "list_digest": wanted[1], "facts": facts, "row_shape": shape, "dtype": dtype}


def _job(task: Task, facts: dict[str, Any]) -> Job:
    t, limits = facts["transform"], task.config.limits
    crop = t["crop"] or t["resize"]
    return Job(task.config.sampling, t["resize"] or crop, crop, t["interpolation"] or "bilinear", limits)


def _same_facts(task: Task, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    for key, value in ours.items():
        if theirs.get(key) != value:
            raise FramepoolError(
                f"store was made with another {key}",
                where=task.store,
                expected=theirs.get(key),
                got=value,
                fix="its weights were replaced or trained again: remove the store's folder to make it anew",
            )


@dataclass
class _Batch:
    """Consecutive rows of the shard, and the videos that are finished once these rows are written."""

    samples: npt.NDArray[np.uint8]
    index: npt.NDArray[Any]
    filled: int = 0
    ends: list[End] = field(default_factory=list)


def _fill(task: Task, journal: Journal, model: Model | None, facts: dict[str, Any], workers: int) -> None:
    missing = {v: i for v, i in enumerate(task.items) if v not in journal.outcomes}
    progress = Progress(f"{task.extractor} shard {task.shard}", len(task.items), len(journal.outcomes))
    for video, item in missing.items():
        if not item.path:
            reason = "no such file under the root"
            journal.append_outcome(video, Outcome(outcome="undecodable", reason=reason))
    paths = {v: task.root / i.path for v, i in missing.items() if i.path}
    if paths:
        job = _job(task, facts)
        size = task.config.batch if isinstance(task.config, Rgb) else PIXEL_BATCH
        with Decoders(job, paths, workers) as decoders, _Writer(journal, progress) as writer:
            batches = _batches(decoders, job, size, journal)
            if model is None:
                for batch in batches:
                    writer.put(batch, batch.samples[: batch.filled])
            else:
                run = engine(model, facts, task.cache, threads=workers)
                _through_network(run, batches, writer, _error_of(task, model, facts, workers, journal))
    progress.close()


def _batches(decoders: Decoders, job: Job, size: int, journal: Journal) -> Iterator[_Batch]:
    """Cut the stream of rows into batches of `size`; every batch but the last is full."""
    here = Counter(journal.index()["video"].tolist())

    def fresh() -> _Batch:
        return _Batch(np.empty((size, *job.shape), np.uint8), np.zeros(size, INDEX))

    batch = fresh()
    for item in decoders:
        if isinstance(item, End):
            batch.ends.append(item)
            continue
        if here[item.video] > 0:  # written before the kill
            here[item.video] -= 1
            continue
        batch.samples[batch.filled] = item.sample
        batch.index[batch.filled] = (item.video, item.time_us)
        batch.filled += 1
        if batch.filled == size:
            yield batch
            batch = fresh()
    yield batch


def _through_network(run: Engine, batches: Iterator[_Batch], writer: _Writer, first: Any) -> None:
    underway: list[_Batch] = []

    def pixels() -> Iterator[npt.NDArray[np.uint8]]:
        for batch in batches:
            underway.append(batch)
            if batch.filled:
                yield batch.samples[: batch.filled]

    for rows in run(pixels()):
        batch = underway.pop(0)
        first(batch, rows)
        writer.put(batch, rows)
    for batch in underway:  # the last one, when it holds no rows but the ends of videos without any
        writer.put(batch, np.empty((0, 1), np.float32))


def _error_of(task: Task, model: Model, facts: dict[str, Any], threads: int, journal: Journal) -> Any:
    """Measures the first batch of a store of reduced precision against fp32, once, and notes the relative error."""

    def measure(batch: _Batch, rows: npt.NDArray[np.float32]) -> None:
        if model.config.precision == "fp32" or task.shard != 0 or "relative_error" in journal.notes:
            return
        exact = engine(model, facts, task.cache, threads=threads, precision="fp32")
        reference = next(exact([batch.samples[: batch.filled]]))
        with np.errstate(all="ignore"):
            error = float(np.linalg.norm(rows - reference) / max(float(np.linalg.norm(reference)), 1e-12))
        if np.isfinite(error):  # else the next batch tells
            journal.note("relative_error", round(error, 6))

    return measure


class _Writer:
    """A thread that checks rows, rounds them to the store's dtype and appends them to the journal, in order."""

    def __init__(self, journal: Journal, progress: Progress) -> None:
        self._journal, self._progress = journal, progress
        self._queue: queue.Queue[tuple[_Batch, npt.NDArray[Any]] | None] = queue.Queue(4)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> _Writer:
        self._thread.start()
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def put(self, batch: _Batch, rows: npt.NDArray[Any]) -> None:
        if self._error is not None:
            raise self._error
        self._queue.put((batch, rows))

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is None:
                try:
                    self._write(*item)
                except BaseException as error:
                    self._error = error

    def _write(self, batch: _Batch, rows: npt.NDArray[Any]) -> None:
        index = batch.index[: len(rows)]
        if rows.dtype.kind == "f":
            with np.errstate(over="ignore"):
                rows = rows.astype(self._journal.dtype)  # overflow becomes inf, and is refused here
            for row in np.flatnonzero(~np.isfinite(rows).all(axis=tuple(range(1, rows.ndim)))):
                name = f"video {index['video'][row]}"
                if name not in self._journal.notes:
                    self._journal.note(name, f"non-finite feature at {index['time_us'][row] / 1e6:.3f} s")
        if len(rows):
            self._journal.append_rows(rows, index)
        for end in batch.ends:
            outcome, reason = end.outcome, self._journal.notes.get(f"video {end.video}")
            if reason is not None:
                outcome = replace(outcome, outcome="non_finite", reason=reason, rows=0)
            self._journal.append_outcome(end.video, outcome)
        self._progress.add(rows=len(rows), videos=len(batch.ends))
