"""Features of extractors that are not stored: decoded, and put through their networks, as a head asks for them.

What `features.batches.Features` is for rows in memory and `features.stream.Stream` for rows on disk, with the same
`blocks`: an epoch takes the videos in a random order, a batch of them at a time, the next one while one is used. The
order and the batches are those of rows in memory, so a head trains to the same weights with `store: false` as with
`store: true`, in the memory of a few batches. Modalities that are stored join from memory. A video that does not
decode is one without rows, which counts for nothing where it stands in a batch (a store would have left it out of the
order, and so made other batches); too many of them stop the run.

    with Virtual.open(tasks, stored, ids, paths, workers=2, max_bad_share=0.05, tell=print) as features:
        for rows, places, numbers in features.blocks(train, generator, batch=32): rows.batch(numbers, even_rows(3))
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import torch
from torch import Tensor

from extract.convert import converter
from extract.shard import Task, stage_of
from extract.stage import Stage
from extract.whole import Extraction, Video
from features.batches import Block, Features, Rows, Start
from features.errors import Busy, TooManyBad
from features.outcome import FAILED, Outcome, counts
from heads.parallel import ranks

_BATCH: Final = 32
_NO_FILE: Final = Outcome(outcome="undecodable", reason="no such file under the root")


@dataclass
class Computing:
    """The stages of some modalities, and decoders and engines of those that were asked for last. They work in a thread
    that lives as long as they do: a decoder ends with the thread that started it."""

    stages: Mapping[str, Stage]
    workers: int
    _open: Extraction | None = None
    _names: tuple[str, ...] = ()
    _thread: ThreadPoolExecutor | None = None

    @property
    def thread(self) -> ThreadPoolExecutor:
        """Where `read` is to be iterated over."""
        self._thread = self._thread or ThreadPoolExecutor(1)
        return self._thread

    def read(self, videos: Sequence[tuple[int, Path]], names: tuple[str, ...]) -> Generator[Video]:
        """Each of `videos` (number, file), whose numbers differ, in their order."""
        if not videos:
            return
        if self._open is None or self._names != names:
            self._end()
            extraction = Extraction({name: self.stages[name] for name in names}, self.workers)
            self._open, self._names = extraction.__enter__(), names
        early: dict[int, Video] = {}
        found, whole = self._open.read(videos), False
        try:
            for number, _ in videos:
                while number not in early:
                    video = next(found)
                    early[video.number] = video
                yield early.pop(number)
            whole = next(found, None) is None
        finally:
            if not whole:  # what is under way would turn up in the next pass
                self.close()

    def close(self) -> None:
        """End the decoders; the next pass begins with new ones."""
        self._end()
        if self._thread is not None:
            self._thread.shutdown(wait=False)
            self._thread = None

    def _end(self) -> None:
        if self._open is not None:
            self._open.__exit__()
            self._open = None


@dataclass(frozen=True)
class Virtual:
    """`names` are the modalities that are computed; `stored` has the others (None: there are no others)."""

    ids: tuple[str, ...]
    paths: tuple[Path | None, ...]
    names: tuple[str, ...]
    modalities: tuple[str, ...]
    stored: Features | None
    stores: dict[str, dict[str, Any]]
    computing: Computing
    max_bad_share: float
    tell: Callable[[str, Stage, dict[str, Outcome]], None]  # is told, by modality, what became of the videos
    outcomes: dict[str, dict[int, Outcome]] = field(default_factory=dict)  # by modality and video, of those seen so far
    told: dict[str, dict[int, Outcome]] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        tasks: Mapping[str, Task],
        stored: Features | None,
        ids: Sequence[str],
        paths: Sequence[Path | None],
        *,
        stores: Mapping[str, dict[str, Any]],
        workers: int,
        max_bad_share: float,
        tell: Callable[[str, Stage, dict[str, Outcome]], None],
    ) -> Self:
        """Of `tasks`, by modality, beside what is `stored`; the files (None: not found) stand beside the `ids`.
        `stores` are what a run records of the computed ones. After each pass over videos `tell` learns what became of
        those that were decoded so far, where that is news: modality, what computed it, outcomes by id."""
        with converter():
            computing = Computing({m: stage_of(task) for m, task in tasks.items()}, workers)
        known = {m: {**stores[m], "facts": stage.lasting_facts} for m, stage in computing.stages.items()}
        names = tuple(tasks)
        own = () if stored is None else tuple(stored.rows)
        facts = {**known, **({} if stored is None else stored.stores)}
        return cls(tuple(ids), tuple(paths), names, (*names, *own), stored, facts, computing, max_bad_share, tell)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.computing.close()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape *D of one row, by modality."""
        own = {m: self.computing.stages[m].row_shape for m in self.names}
        kept = {} if self.stored is None else self.stored.shapes
        return {m: {**own, **kept}[m] for m in self.modalities}

    @property
    def nbytes(self) -> int:
        """Bytes of the rows that are in memory all the time."""
        return 0 if self.stored is None else self.stored.nbytes

    def has_rows(self, modality: str | None = None) -> Tensor:
        """(V,) bool: the video has a row in `modality`, or in at least one. Of those that are computed, whether there
        is a file: what is in it turns out in training, and a video without rows teaches nothing."""
        asked = self.modalities if modality is None else (modality,)
        there = torch.tensor([path is not None for path in self.paths])
        found = torch.zeros(len(self.ids), dtype=torch.bool)
        for name in asked:
            found |= there if name in self.names or self.stored is None else self.stored.has_rows(name)
        return found

    def only(self, modalities: Sequence[str]) -> Virtual | Features:
        """The same videos with these modalities alone, in this order. What is not among them is not computed."""
        names = tuple(m for m in modalities if m in self.names)
        kept = [m for m in modalities if m not in self.names]
        stored = self.stored.only(kept) if self.stored is not None and kept else None
        if not names and stored is not None:
            return stored
        stores = {m: self.stores[m] for m in modalities}
        return replace(self, names=names, modalities=tuple(modalities), stored=stored, stores=stores)

    def means(self, videos: Tensor) -> dict[str, Tensor]:
        """{modality: (D,) float32}: the mean of all rows of the videos numbered `videos`, where rows are vectors; takes
        a pass over them."""
        shapes = {m: shape for m, shape in self.shapes.items() if len(shape) == 1}
        if not shapes:
            return {}
        totals = {m: torch.zeros(shape[0], dtype=torch.float64) for m, shape in shapes.items()}
        rows_of = dict.fromkeys(shapes, 0)
        for rows, _, numbers in self.blocks(videos):
            for modality, mean in rows.means(numbers).items():
                count = int(rows.rows[modality].lengths[numbers].sum())
                totals[modality] += mean.double() * count
                rows_of[modality] += count
        return {m: (total / max(1, rows_of[m])).float() for m, total in totals.items()}

    def blocks(
        self,
        videos: Tensor,
        generator: torch.Generator | None = None,
        *,
        batch: int | None = None,
        start: Start | None = None,
    ) -> Iterator[Block]:
        """`videos` (n,) in equal parts of at most `batch`, in random order with a `generator`: rows in memory, places
        in `videos`, and the numbers of those in these rows. `start` passes over parts, and decodes nothing of them.

        In training, each of several processes computes its own part of a batch: the others' videos have no rows here.
        """
        order = torch.arange(len(videos)) if generator is None else torch.randperm(len(videos), generator=generator)
        most = batch if batch is not None and generator is not None else _BATCH  # a test may ask for more than fits
        parts = order.tensor_split(-(-len(order) // most)) if len(order) else ()
        if start is not None and generator is not None:
            parts = parts[start[0] :]
            generator.set_state(start[1])
        own = [part[ranks().part(len(part))] if generator is not None else part for part in parts]
        todo = [int(v) for part in own for v in videos[part]]
        worker = self.computing.thread

        def block(k: int) -> Future[Features]:
            return worker.submit(self._block, videos[parts[k]], videos[own[k]], computed)

        with closing(self._computed(todo)) as computed:
            ahead = [block(0)] if parts else []
            try:
                for k, part in enumerate(parts):
                    rows = ahead.pop().result()
                    if k + 1 < len(parts):
                        ahead = [block(k + 1)]
                    yield rows, part, torch.arange(len(part))
                    del rows
                next(computed, None)  # to its end
            finally:
                wait(ahead)
                self._tell()
        self._check()

    def _computed(self, videos: Sequence[int]) -> Generator[Video]:
        """Each of `videos`, in their order; a video without a file is one without rows."""
        there = [(v, path) for v in videos if (path := self.paths[v]) is not None]
        with closing(self.computing.read(there, self.names)) as found:
            for v in videos:
                video = Video(v, {}, dict.fromkeys(self.names, _NO_FILE)) if self.paths[v] is None else next(found)
                for name, outcome in video.outcomes.items():
                    self.outcomes.setdefault(name, {})[v] = outcome
                yield video
            next(found, None)  # to its end, so that the decoders serve the next pass

    def _block(self, videos: Tensor, own: Tensor, computed: Iterator[Video]) -> Features:
        """The rows of `videos` (n,); of those that are not among `own` none is computed."""
        found = {video.number: video for video in (next(computed) for _ in range(len(own)))}
        rows = {m: self._rows(m, videos.tolist(), found) for m in self.names}
        if self.stored is not None:
            for m, kept in self.stored.rows.items():
                rows[m] = kept._replace(starts=kept.starts[videos], lengths=kept.lengths[videos])
        ids = tuple(self.ids[v] for v in videos.tolist())
        return Features(ids, {m: rows[m] for m in self.modalities}, {})

    def _rows(self, modality: str, videos: Sequence[int], found: Mapping[int, Video]) -> Rows:
        stage = self.computing.stages[modality]
        none = np.zeros((0,), np.int64), np.zeros((0, *stage.row_shape), stage.dtype)
        pairs = [found[v].rows.get(modality, {}).get(0, none) if v in found else none for v in videos]
        padding = np.zeros((1, *stage.row_shape), stage.dtype)
        data = torch.from_numpy(np.concatenate([*(rows for _, rows in pairs), padding]))
        times = torch.from_numpy(np.concatenate([*(times for times, _ in pairs), [0]]).astype(np.int64))
        lengths = torch.tensor([len(rows) for _, rows in pairs])
        return Rows(data, lengths.cumsum(0) - lengths, lengths, times)

    def _tell(self) -> None:
        for name, outcomes in self.outcomes.items():
            if outcomes != self.told.get(name):
                with suppress(Busy):  # told after the next pass, with what that adds: no training ends for it
                    self.tell(name, self.computing.stages[name], {self.ids[v]: o for v, o in outcomes.items()})
                    self.told[name] = dict(outcomes)

    def _check(self) -> None:
        for name, outcomes in self.outcomes.items():
            bad = [(v, o) for v, o in outcomes.items() if o.outcome in FAILED]
            if len(bad) > self.max_bad_share * len(self.ids):
                v, outcome = bad[0]
                got = f"{len(bad) / len(self.ids):.1%}, {self.ids[v]} is one ({outcome.outcome}: {outcome.reason})"
                expected = f"at most {self.max_bad_share:.1%} of the list"
                fix = "mend the files, or raise max_bad_share in the config"
                raise TooManyBad("too many videos failed", where=name, expected=expected, got=got, fix=fix)

    def in_words(self) -> str:
        """Such as ``rgb: 250 ok, 6 partial``, of the videos that were decoded so far."""
        said = {m: ", ".join(f"{n} {what}" for what, n in counts(o.values()).items()) for m, o in self.outcomes.items()}
        return "; ".join(f"{m}: {text}" for m, text in said.items())
