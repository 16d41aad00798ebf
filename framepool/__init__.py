"""Framepool in a notebook: a dataset's features as tensors or as a Dask array, heads on them, labels of videos.

Run it where ``config/`` and ``work/`` are. Nothing here is new: these are the parts that the commands are made of.

    import framepool
    data = framepool.load("ucf6", "rgb")
    run = framepool.train(data, "attention_cluster", clusters=64, train={"epochs": 10})
    run.metrics["top1"], run.labels(data, ["Archery/v_Archery_g01_c01"])

Legend: V videos, N rows of all of them, L rows of one, *D one row, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from features.batches import Features
    from features.videolist.base import Action
    from heads.base import Head
    from pipelines.live import Label

__all__ = ["Data", "Run", "load", "run", "stream", "train"]


@dataclass(frozen=True)
class Data:
    """The features of a dataset, with its labels and one of its splits.

    `labels` (V,) are class numbers, or (V,C) of 0 and 1 where videos have several; `train_videos` and `test_videos` are
    numbers of videos. Where the list has them, `actions` are (label, start, end) in seconds of each video, and `groups`
    what it shares with others.
    """

    dataset: str
    split: str
    features: Features
    folders: Mapping[str, Path]  # of the stores
    labels: npt.NDArray[np.int64]
    train_videos: Sequence[int]
    test_videos: Sequence[int]
    classes: tuple[str, ...]
    actions: Sequence[Sequence[Action]] | None = None
    groups: Sequence[str] | None = None
    contents: Sequence[str] = ()  # what tells the rows from others of the same recipes

    @property
    def videos(self) -> tuple[str, ...]:
        """(V,) ids."""
        return self.features.ids

    def __repr__(self) -> str:
        rows = ", ".join(f"{m} {len(r.data) - 1} rows {tuple(r.data.shape[1:])}" for m, r in self.features.rows.items())
        sides = f"{len(self.train_videos)} train, {len(self.test_videos)} test"
        return f"<{self.dataset}, split {self.split}: {len(self.videos)} videos ({sides}), {rows}>"

    def tensor(self, modality: str) -> tuple[Tensor, Tensor]:
        """Rows (N,*D) as they are stored, and offsets (V+1,): video v has rows[offsets[v] : offsets[v + 1]]."""
        import torch

        rows = self.features.rows[self._named(modality)]
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), rows.lengths.cumsum(0)])
        there = rows.lengths > 0
        if torch.equal(rows.starts[there], offsets[:-1][there]) and len(rows.data) == offsets[-1] + 1:
            return rows.data[:-1], offsets
        return rows.data[_numbers(rows.starts, rows.lengths)], offsets  # a list in another order than the store

    def _named(self, modality: str) -> str:
        from features.errors import UserError, nearest

        if modality not in self.features.rows:
            fix = nearest(modality, self.features.rows)
            raise UserError("a modality that is not loaded", where=self.dataset, got=modality, fix=fix)
        return modality

    @cached_property
    def _places(self) -> dict[str, int]:
        return {video: number for number, video in enumerate(self.videos)}

    def number(self, video: str) -> int:
        """The place of a video in `videos`, by its id."""
        from features.errors import UserError, nearest

        if video not in self._places:
            raise UserError("unknown video", where=self.dataset, got=video, fix=nearest(video, self.videos))
        return self._places[video]

    def video(self, video: str) -> dict[str, Tensor]:
        """{modality: (L,*D)} of one video, by its id."""
        number = self.number(video)
        return {
            m: r.data[int(r.starts[number]) : int(r.starts[number] + r.lengths[number])]
            for m, r in self.features.rows.items()
        }

    def array(self, modality: str) -> Any:
        """The same rows (N,*D) as a Dask array of a block a shard, each read and checked when it is computed."""
        import dask.array
        import torch
        from dask.delayed import delayed

        from features.store import read_manifest, read_shard, shards

        def rows(folder: Path, shard: int) -> npt.NDArray[Any]:
            return read_shard(folder, shard).frames

        folder, blocks = self.folders[self._named(modality)], []
        places, position = dict[str, int](), 0
        for shard in shards(folder):
            manifest = read_manifest(folder, shard)
            shape = (manifest.rows, *manifest.row_shape)
            block = delayed(rows)(folder, shard)
            blocks.append(dask.array.from_delayed(block, shape, manifest.dtype))  # type: ignore[no-untyped-call]
            for video, outcome in zip(manifest.ids, manifest.outcomes, strict=True):
                places[video], position = position, position + outcome.rows
        stored = dask.array.concatenate(blocks)  # type: ignore[no-untyped-call]
        starts = torch.tensor([places[video] for video in self.videos])
        numbers = _numbers(starts, self.features.rows[modality].lengths)
        return stored if torch.equal(numbers, torch.arange(position)) else stored[numbers.numpy()]


def _numbers(starts: Tensor, lengths: Tensor) -> Tensor:
    """Of rows that begin at `starts` (V,), `lengths` (V,) each: their numbers, video by video."""
    import torch

    before = lengths.cumsum(0) - lengths
    return torch.arange(int(lengths.sum())) + torch.repeat_interleave(starts - before, lengths)


@dataclass(frozen=True)
class Run:
    """A trained head in its folder."""

    folder: Path

    @cached_property
    def head(self) -> Head:
        """In evaluation mode."""
        from heads.checkpoint import load_head

        return load_head(self.folder)[0]

    @cached_property
    def record(self) -> dict[str, Any]:
        """run.json: config, classes, what it read."""
        from heads.checkpoint import read_run

        return read_run(self.folder) or {}

    @property
    def metrics(self) -> dict[str, Any]:
        """On the test videos of its split."""
        import json

        found: dict[str, Any] = json.loads((self.folder / "metrics.json").read_bytes())
        return found

    def logits(self, data: Data, videos: Sequence[str]) -> npt.NDArray[np.float32]:
        """(V,C) of videos of `data`, on the rows that a test takes. Raises `UserError` where `data` lacks a modality or
        has it of another recipe, and for a fusion."""
        import torch

        import heads
        from features.errors import UserError
        from heads.data import Data as Labelled
        from heads.loop import predict
        from heads.training import same_features

        if self.record.get("members"):
            fix = "ask its members and average, or let `score` do so"
            raise UserError("a fusion has no head of its own", where=self.folder, fix=fix)
        for modality in self.head.shapes:
            data._named(modality)
        same_features(self.folder, self.record, data.features)
        config = heads.HEADS[self.record["kind"]][1].parse(self.record["config"], where=str(self.folder))
        numbers = torch.tensor([data.number(video) for video in videos], dtype=torch.int64)
        labels = torch.as_tensor(data.labels)
        features = data.features.only(tuple(self.head.shapes))
        asked = Labelled(
            features=features, labels=labels, train=numbers[:0], test=numbers, classes=tuple(self.record["classes"])
        )
        return predict(self.head, config, asked, numbers, torch.device("cpu")).logits

    def labels(self, data: Data, videos: Sequence[str]) -> list[str]:
        """(V,) the most probable class of each."""
        return [self.record["classes"][k] for k in self.logits(data, videos).argmax(axis=1)]

    def score(self, *sources: Path | str, threads: int = 2, top: int = 5) -> Iterator[dict[str, Any]]:
        """A row for each video of folders, tars, list files and video files, about in their order: what `framepool
        score` writes. The run brings its extractors; no store is needed."""
        from extract.sources import walk
        from pipelines.scoring.machine import Machine, Options

        with Machine(Options(runs=(self.folder,), threads=threads, top=top)) as machine:
            for done in machine.score(clip for source in sources for clip in walk(Path(source))):
                yield from done.rows


def load(dataset: str, *modalities: str, split: str | None = None) -> Data:
    """The features of ``config/<dataset>.yaml``: of the extractors `modalities`, or of all that are stored as vectors.

    Raises `UserError` where a store is not there, `DamagedStore` where one does not match its manifest.
    """
    from features.batches import Features
    from features.errors import UserError, nearest
    from features.manifest import contents, read_manifest, shards
    from pipelines import plan as plans
    from pipelines.commands.stage_two import split_of

    plan = plans.of(dataset)
    split = split or plan.config.splits[0]
    if split not in plan.config.splits:
        raise UserError("unknown split", where=dataset, got=split, fix=nearest(split, plan.config.splits))
    kinds = ("rgb", "rgbdiff", "trunk", "flow", "audio", "imported")
    names = modalities or tuple(n for n, e in plan.config.extractors.items() if e.store and e.kind in kinds)
    folders = {name: plan.store(name, split).folder for name in names}
    if not modalities:
        folders = {name: folder for name, folder in folders.items() if shards(folder)} or folders
    videos, train_videos, test_videos, labels = split_of(plan, split)
    features = Features.open(folders, [video.id for video in videos.videos])
    actions = None if videos.actions is None else [videos.actions.get(video.id, ()) for video in videos.videos]
    groups = [video.group for video in videos.videos]
    sides = train_videos, test_videos
    rows = [contents(read_manifest(folder, n) for n in shards(folder)) for folder in folders.values()]
    return Data(dataset, split, features, folders, labels, *sides, tuple(videos.classes), actions, groups, rows)


def train(data: Data, head: str, *, seed: int = 0, folder: Path | None = None, **options: Any) -> Run:
    """Train the head of this `kind` on all modalities of `data`, with the options of its config.

    The run goes to ``work/<dataset>/notebook/<head>-<digest8>``, or to `folder`; the same call again finds it there.
    """
    import heads
    from features.errors import UserError, nearest
    from features.recipe import digest
    from heads.kinds import numerics
    from heads.training import train_run
    from pipelines import plan as plans
    from pipelines.commands.stage_two import versions
    from pipelines.described import bring_weights, described
    from pipelines.plan import WORK

    if head not in heads.HEADS:
        raise UserError("unknown kind of head", got=head, fix=nearest(head, heads.HEADS))
    config = heads.HEADS[head][1].parse({"features": list(data.folders), **options}, where=f"head {head}")
    plan = plans.of(data.dataset)
    sides = [[data.videos[v] for v in side] for side in (data.train_videos, data.test_videos)]
    steps = getattr(config, "train", None)
    timed = [data.actions] if getattr(steps, "clip_s", None) is not None else []
    held = [data.groups] if getattr(steps, "hold_out", 0) else []
    of_data = [data.features.stores, data.contents, data.classes, data.labels.tolist(), sides, *timed, *held]
    named = digest([config.recipe(), numerics(config), *of_data])
    folder = folder or WORK / data.dataset / "notebook" / f"{head}-{named[:8]}" / f"seed{seed}"
    train_run(
        folder,
        config=config,
        features=data.features,
        labels=data.labels,
        train=data.train_videos,
        test=data.test_videos,
        classes=data.classes,
        seed=seed,
        split=data.split,
        actions=data.actions,
        groups=data.groups,
        provenance={
            "dataset": data.dataset,
            "head": head,
            "recipe": named,
            "digest": named,
            "stores": data.features.stores,
            "extractors": {m: described(plan.store(m, data.split)) for m in data.folders},
            "versions": versions(),
        },
        log=lambda _: None,
    )
    bring_weights(folder, [plan.store(m, data.split) for m in data.folders])
    return Run(folder)


def run(folder: str | Path) -> Run:
    """A finished run: of `framepool train`, of the workflow, or of `train`. Raises `UserError` where there is none."""
    from features.errors import UserError
    from heads.checkpoint import RUN, read_run

    if read_run(Path(folder)) is None:
        raise UserError("not a finished run", where=folder, expected=f"a {RUN} in it")
    return Run(Path(folder))


def stream(
    folder: str | Path, source: str, *, every: int | None = None, last: int | None = None, threads: int = 2
) -> Iterator[Label]:
    """Labels of a video, a camera or an address as its frames arrive; see `pipelines.live`."""
    from pipelines.live import Live
    from pipelines.of_run import of_run

    return Live(of_run(Path(folder)), last=last, threads=threads).labels(source, every=every)
