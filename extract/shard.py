"""The shard loop: decoder processes -> batches that cross video borders -> network -> writer, for several extractors.

One shard of each extractor, from files (or another store) to published shards; a video is decoded once for all of them.
Rows come in the order of the list and batches are cut from that one stream at fixed places, so the bytes do not depend
on where a killed job was taken up again: it truncates the journal to whole batches, decodes the first unfinished video
again and passes over the rows that are already there.

    extract_shards([Task(extractor="rgb", config=config, ...)], workers=2)

Rows of an extractor that is not stored go straight to the one that reads it (`extract.lanes`). Frames that a generator
makes take the place of decoded ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from extract.calibration import Calibration
from extract.config import AnyExtractor, Networked
from extract.convert import converter
from extract.decoders import Decoders, End, Row
from extract.fingerprint import Item, list_digest
from extract.imported import imported
from extract.lanes import Lane, Writer
from extract.progress import Progress
from extract.runtime import Compared, Engine
from extract.samples import Array
from extract.stage import Stage, connect, fill
from features.atomic import LOCK_WAIT_S, Lock, make_folder
from features.errors import FramepoolError, UserError
from features.foreign import Collection
from features.journal import Journal
from features.manifest import Manifest, read_manifest, shards
from features.outcome import FAILED, Outcome
from features.recipe import digest, file_sha256
from features.store import partial_path, publish, republish, stream_shard

FRAME_US: Final = 40_000  # of a made video
_FILES: Final = "video files"  # a note of the journal, which are kept out of the manifest as all of "video ..."


class Generator(Protocol):
    """Makes the frames of videos, where there are no files."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W, C) of a frame."""

    def frames(self, video: str) -> Array:
        """(L, H, W, C) uint8 of the video with this id."""


@dataclass(frozen=True)
class Task:
    """One shard of one extractor. `weights` is where the config's weights really are; `recipe` names the store.

    `source` is what it reads: the video (None), the folder of another extractor's store, or the task of one that is
    not stored. `calibration` are videos of the dataset, the same for every shard, for int8. Where videos are made, it
    is by the `generator`. Where its weights, or its source's, come from a run of ours, it `follows` that run: shards of
    other weights are made anew.
    """

    extractor: str
    config: AnyExtractor
    recipe: dict[str, Any]
    weights: Path | str | None
    shard: int
    items: tuple[Item, ...]
    root: Path
    store: Path  # folder of the store
    cache: Path  # of converted networks
    source: Path | Task | None = None
    calibration: tuple[Item, ...] = ()
    generator: Generator | None = None
    collection: Collection | None = None  # of rows that others made
    follows: bool = False

    @property
    def wanted(self) -> tuple[Any, ...]:
        """What its manifest must stand for; see `Manifest.identity`."""
        ids = tuple(i.id for i in self.items)
        files = list_digest(self.items, self.root, timed=self.collection is not None)
        return digest(self.recipe), files, self.shard, ids


def extract_shard(task: Task, *, workers: int, lock_wait_s: float = LOCK_WAIT_S) -> Manifest:
    """`extract_shards` of one task."""
    return extract_shards([task], workers=workers, lock_wait_s=lock_wait_s)[0]


def extract_shards(tasks: Sequence[Task], *, workers: int, lock_wait_s: float = LOCK_WAIT_S) -> list[Manifest]:
    """Make the shards and publish them, or publish again what is already whole. Returns their manifests.

    Tasks on the videos share one decoding, so they are of the same items; tasks that read stores come after it, one by
    one in the given order. Raises `Busy` when another process holds a shard, `FramepoolError` where a store's shards
    came from other weights; whatever stops it, what is finished stays in the journals.
    """
    found: dict[int, Manifest] = {}
    seen = [n for n, task in enumerate(tasks) if _on_video(task)]
    for group in (seen, *([n] for n in range(len(tasks)) if n not in seen)):
        with ExitStack() as stack:
            for n in sorted(group, key=lambda n: str(tasks[n].store)):  # one order, so that two jobs never wait in turn
                make_folder(tasks[n].store)
                stack.enter_context(Lock(tasks[n].store / f"{tasks[n].shard:05d}.lock", wait_s=lock_wait_s))
            open_ = []
            with converter():
                for n in group:
                    if (whole := _whole(tasks[n])) is not None:
                        found[n] = whole
                    else:
                        open_.append((n, stack.enter_context(closing(_Making(tasks[n], workers)))))
            if open_:
                _fill([making for _, making in open_], workers)
                for n, making in open_:
                    found[n] = making.publish()
    return [found[n] for n in range(len(tasks))]


def _on_video(task: Task) -> bool:
    return _on_video(task.source) if isinstance(task.source, Task) else task.source is None and task.collection is None


def _whole(task: Task) -> Manifest | None:
    """The shard, where it is whole already."""
    whole = republish(task.store, task.wanted, task.shard)
    if whole is not None and whole.unread and whole.unread != _unread(task, whole.outcomes):
        return None  # files were mended, maybe where `list_digest` does not look
    if whole is not None and isinstance(task.weights, Path) and not task.follows:
        _same_facts(task, whole.facts, {"weights_sha256": file_sha256(task.weights)})
    return None if whole is not None and _other_weights(task, whole.facts) else whole


def _other_weights(task: Task, facts: Mapping[str, Any]) -> bool:
    """Whether rows of these facts are not of the weights that there are now, its own or its source's."""
    if isinstance(task.weights, Path) and facts.get("weights_sha256") != file_sha256(task.weights):
        return True
    source = facts.get("source") or {}
    if isinstance(task.source, Task):
        return _other_weights(task.source, source)
    if isinstance(task.source, Path):
        with suppress(FramepoolError):  # a source may be gone since
            return any(source.get(key) != value for key, value in read_manifest(task.source, task.shard).facts.items())
    return False


def _unread(task: Task, outcomes: Sequence[Outcome]) -> dict[str, str]:
    """{path: sha256} of the files of which not all was had."""
    found = {}
    for item, outcome in zip(task.items, outcomes, strict=True):
        path = task.root / item.path
        if outcome.outcome in (*FAILED, "partial") and item.path and path.is_file():
            with suppress(OSError):
                found[item.path] = file_sha256(path)
    return found


def _states(task: Task) -> dict[str, list[int]]:
    """{path: [bytes, time of the last change in ns]} of the files that there are."""
    found = {}
    for item in (item for item in task.items if item.path):
        with suppress(OSError):
            info = (task.root / item.path).stat()
            found[item.path] = [info.st_size, info.st_mtime_ns]
    return found


def stage_of(task: Task) -> Stage:
    """What runs for a task."""
    before, source, config = None, None, task.config
    if isinstance(task.source, Task):
        before = stage_of(task.source)
    elif task.source is not None:
        manifest = read_manifest(task.source, task.shard)
        source = {**manifest.facts, "row_shape": list(manifest.row_shape), "dtype": manifest.dtype}
    made = task.generator.shape if task.generator is not None else None
    if task.collection is not None:
        made = task.collection.row_shape
    return Stage.of(
        config,
        weights=task.weights,
        cache=task.cache,
        before=before,
        source=source,
        made_shape=made,
        calibration=_calibration(task),
    )


def _generator(task: Task) -> Generator | None:
    """Of the frames that it reads, itself or through what is not stored."""
    return _generator(task.source) if isinstance(task.source, Task) else task.generator


class _Making:
    """A shard in the making: its journal, and the lane that fills it."""

    def __init__(self, task: Task, workers: int) -> None:
        self.task, self.workers = task, workers
        self.stage = stage_of(task)
        facts = self.stage.lasting_facts
        if (other := next((s for s in shards(task.store) if s != task.shard), None)) is not None:
            ours = {k: v for k, v in facts.items() if not task.follows or k not in ("weights_sha256", "source")}
            _same_facts(task, read_manifest(task.store, other).facts, ours)
        self.facts, self.wanted = facts, task.wanted
        head = {"digest": self.wanted[0], "list_digest": self.wanted[1], "facts": facts}
        shape = {k: self.stage.facts[k] for k in ("row_shape", "dtype")}
        self.journal = Journal(partial_path(task.store, task.shard), {**head, **shape})
        if _FILES not in self.journal.notes:
            self.journal.note(_FILES, _states(task))
        self.missing = [v for v in range(len(task.items)) if v not in self.journal.outcomes]
        self.progress = Progress(f"{task.extractor} shard {task.shard}", len(task.items), len(self.journal.outcomes))

    def close(self) -> None:
        self.journal.close()

    def lane(self, stack: ExitStack) -> Lane:
        """The lane that the samples of its first stage enter."""
        writer = stack.enter_context(Writer(self.journal, self.progress, self.stage.output))
        lanes = connect([(self.stage, writer)], self.workers, stack, {self.stage: self._engine()})
        lanes[self.stage].skip(self.journal.index()["video"])
        return lanes[self.stage.first]

    def _engine(self) -> Engine:
        """On the first batch of a store a reduced precision is compared with fp32, once."""
        stage, threads, notes = self.stage, self.workers, self.journal.notes
        if (
            stage.model is None
            or stage.model.config.precision == "fp32"
            or self.task.shard
            or "relative_error" in notes
        ):
            return stage.engine(threads)

        def tell(error: float) -> None:
            self.journal.note("relative_error", round(error, 6))

        return Compared(lambda: stage.engine(threads), lambda: stage.engine(threads, "fp32"), tell)

    def publish(self) -> Manifest:
        """The journal becomes the published shard."""
        task, journal = self.task, self.journal
        manifest = Manifest(
            extractor=task.extractor,
            digest=self.wanted[0],
            recipe=task.recipe,
            facts=self.facts,
            shard=task.shard,
            list_digest=self.wanted[1],
            ids=self.wanted[3],
            outcomes=tuple(journal.outcomes[v] for v in range(len(task.items))),
            row_shape=journal.row_shape,
            dtype=journal.dtype.name,
            statistics={k: v for k, v in journal.notes.items() if not k.startswith("video ")},
            unread=self._unread(),
        )
        return publish(journal, task.store, manifest)

    def _unread(self) -> dict[str, str]:
        """As `_unread`; "" of files that changed since the first was decoded, so that they are decoded again."""
        before, now = self.journal.notes[_FILES], _states(self.task)
        found = _unread(self.task, [self.journal.outcomes[v] for v in range(len(self.task.items))])
        return {path: sha256 if now.get(path) == before.get(path) else "" for path, sha256 in found.items()}


def _fill(makings: Sequence[_Making], workers: int) -> None:
    items, root = makings[0].task.items, makings[0].task.root
    source = makings[0].task.source
    with ExitStack() as stack:
        lanes = [making.lane(stack) for making in makings]
        decoded: Iterable[Row | End] = ()
        if isinstance(source, Path):
            _from_store(source, makings[0], lanes[0])
        elif (collection := makings[0].task.collection) is not None:
            imported(collection, items, makings[0].missing, lanes[0], makings[0].stage.dtype)
        else:
            wanted: dict[int, list[int]] = {}
            for n, making in enumerate(makings):
                for video in making.missing:
                    wanted.setdefault(video, []).append(n)
            generator = _generator(makings[0].task)
            for video in sorted(wanted) if generator is not None else ():
                for n in wanted[video]:
                    _generated(generator, video, items[video].id, lanes[n])  # type: ignore[arg-type]
            for video in [v for v in sorted(wanted) if not items[v].path and generator is None]:
                missing = Outcome(outcome="undecodable", reason="no such file under the root")
                for n in wanted.pop(video):
                    lanes[n].push(End(video, missing))
            if wanted and generator is None:
                paths = {v: root / items[v].path for v in wanted}
                jobs = [making.stage.first.job for making in makings]
                decoded = stack.enter_context(Decoders(jobs, paths, workers, wanted))
        for _ in fill(lanes, decoded):  # the writers see to the rest
            pass
    for making in makings:
        making.progress.close()


def _generated(generator: Generator, video: int, id: str, lane: Lane) -> None:
    frames = generator.frames(id)
    for number, frame in enumerate(frames):
        lane.push(Row(video, number * FRAME_US + FRAME_US // 2, frame))
    lane.push(End(video, Outcome(outcome="ok", rows=len(frames), decoded=len(frames), promised=len(frames))))


def _from_store(source: Path, making: _Making, lane: Lane) -> None:
    manifest, read = stream_shard(source, making.task.shard)
    if manifest.ids != making.wanted[3]:
        fix = "extract the source again: its list is another one"
        ours, theirs = (dict(enumerate(ids)) for ids in (making.wanted[3], manifest.ids))
        at = next(n for n in range(max(len(ours), len(theirs))) if ours.get(n) != theirs.get(n))
        expected, got = (f"{ids.get(at, 'none')} as video {at} of the shard" for ids in (ours, theirs))
        raise FramepoolError("source of other videos", where=source, expected=expected, got=got, fix=fix)
    if manifest.list_digest != making.wanted[1] and _all_there(making.task):
        expected, got = f"shard {manifest.shard} of the list digest {making.wanted[1][:16]}", manifest.list_digest[:16]
        fix = "videos were replaced since: extract the source again"
        raise FramepoolError("source of other files", where=source, expected=expected, got=got, fix=fix)
    for video in making.missing:
        for times_us, rows in read(video):
            for time_us, row in zip(times_us.tolist(), rows, strict=True):
                lane.push(Row(video, time_us, row))
        lane.push(End(video, manifest.outcomes[video]))


def _all_there(task: Task) -> bool:
    """Whether every video has a file: a source may outlive the files that it was made of."""
    return all(item.path and (task.root / item.path).is_file() for item in task.items)


def _calibration(task: Task) -> Calibration | None:
    if not isinstance(task.config, Networked) or task.config.precision != "int8":
        return None
    if isinstance(task.source, Task):
        fix = "store the source, or set precision: fp32"
        raise UserError("int8 is calibrated on stored maps or on the videos", where=task.extractor, fix=fix)
    return Calibration(task.calibration, task.root, task.source)


def _same_facts(task: Task, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    for key, value in ours.items():
        if theirs.get(key) == value:
            continue
        if key == "steps":
            what, why = "store was made with steps of another precision", "bf16 is fp32 on a processor without it"
            fix = f"{why}: run on machines like the first, set precision: fp32, or remove the store's folder"
        elif key == "int8":
            what = "store was made with a network quantised on other videos"
            fix = "the first videos of the list, or their rows, changed: remove the store's folder to make it anew"
        else:
            what = f"store was made with another {key}"
            fix = "its weights were replaced or trained again: remove the store's folder to make it anew"
        raise FramepoolError(what, where=task.store, expected=theirs.get(key, "not known"), got=value, fix=fix)
