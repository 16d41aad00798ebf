"""What has to be made for a dataset, and where it goes: stores, shards, runs. The Snakefile asks nothing else.

Pure functions of the config, the annotation files and what lies on disk; imports neither torch nor openvino, so that a
list of 300,000 videos is planned in seconds.

    plan = of("ucf6")
    plan.stores()[0].manifests                       # work/ucf6/features/rgb-0123abcd/00000.json, ...
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final, TypeVar

from extract.config import AnyExtractor, Imported, Networked, recipe
from features import videolist
from features.errors import UserError, nearest
from features.recipe import digest
from features.videolist import Video, VideoList
from heads.config import BaseConfig, RunWeights
from heads.kinds import HeadConfig, numerics
from pipelines.comparisons import Comparison
from pipelines.config import Dataset, Rendered, config_path, from_run, has_network, load, waits_for, weights_digest
from pipelines.datasets import demo, flash, scenes
from pipelines.missing import check_videos
from pipelines.parts import Run, Store

WORK = Path("work")
RESULTS = Path("results")
RENDERERS: Final = {"demo": demo, "scenes": scenes}
T = TypeVar("T")


class Plan:
    """All stores, shards and runs of a dataset."""

    def __init__(self, dataset: str) -> None:
        self.dataset, self.config = dataset, load(dataset)
        self.work = WORK / dataset
        self.results = RESULTS / dataset

    @property
    def rendered(self) -> bool:
        """Whether the workflow makes the videos itself."""
        return isinstance(self.config.videos, Rendered)

    @property
    def clips_token(self) -> str:
        """Changes when the clips that the workflow renders do."""
        source = self.config.videos
        return digest([source.recipe(), self.renderer.NUMERICS])[:16] if isinstance(source, Rendered) else ""

    @property
    def renderer(self) -> Any:
        """The module that renders the videos, where the workflow makes them."""
        source = self.config.videos
        return RENDERERS[source.generator] if isinstance(source, Rendered) else None

    @property
    def root(self) -> Path:
        """The folder that the list's paths are under."""
        source = self.config.videos
        listed = not isinstance(source, Rendered | flash.FlashDigits | flash.NoisyDigits)
        return source.root if listed else self.work / "videos"  # type: ignore[union-attr]

    @property
    def list_file(self) -> Path:
        """The list as it stands, in the order that the shards follow."""
        return self.work / "videos.csv"

    @property
    def annotations(self) -> list[str]:
        """The files that the list is read from."""
        source = self.config.videos
        if isinstance(source, Rendered):
            return [str(self.work / "rendered.json")]
        if isinstance(source, flash.FlashDigits | flash.NoisyDigits):
            return []
        return [str(path) for path in videolist.annotation_files(source)]

    @cached_property
    def videos(self) -> VideoList:
        """The list: annotations, after the videos that were there before, with the paths found on disk."""
        source = self.config.videos
        if isinstance(source, Rendered):
            found: VideoList = self.renderer.videolist(source.count)
        elif isinstance(source, flash.FlashDigits | flash.NoisyDigits):
            found = flash.videolist(source)
        else:
            found = videolist.read(source)
        kept = videolist.load(self.list_file) if self.list_file.is_file() else None
        found = found if kept is None else videolist.append(kept, found)
        missing = [split for split in self.config.splits if split not in found.splits]
        if missing:
            where = f"{config_path(self.dataset)}: $.splits"
            expected = f"splits of the list ({', '.join(found.splits)})"
            raise UserError(
                "unknown split", where=where, expected=expected, got=missing[0], fix=nearest(missing[0], found.splits)
            )
        self._check_factors(found)
        if not self.rendered and not self.config.generated:
            found = videolist.resolve(found, self.root)
        self.list_changed = kept not in (None, found)
        return found

    def _check_factors(self, found: VideoList) -> None:
        factors, where = self.config.factors, f"{config_path(self.dataset)}: $.factors"
        if factors and found.multi_label:
            raise UserError("factors are parts of the one class that a video has", where=where, got="several classes")
        for name in found.classes if factors else ():
            if len(name.split("-")) != len(factors):
                expected = "-".join(f"<{factor}>" for factor in factors)
                raise UserError("class name does not fit the factors", where=where, expected=expected, got=name)

    @property
    def shard_count(self) -> int:
        return -(-len(self.videos.videos) // self.config.shard_size)

    @property
    def token(self) -> str:
        """Changes when the list does: its videos, the files that were found, labels, splits and classes."""
        timed = [self.videos.actions] if self.videos.actions is not None else []
        several = ["several labels"] if self._several else []
        return digest([self.videos.videos, self.videos.classes, self.videos.splits, *timed, *several])[:16]

    @cached_property
    def _several(self) -> bool:
        """Whether the list alone does not show that videos may have several labels: each has one."""
        return self.videos.multi_label and all(len(video.labels) == 1 for video in self.videos.videos)

    def shard_videos(self, shard: int) -> Sequence[Video]:
        """The slice of the list that is shard number `shard`."""
        size = self.config.shard_size
        return self.videos.videos[shard * size : (shard + 1) * size]

    def shard_token(self, shard: int, store: str | None = None) -> str:
        """Changes when a job for the shard has something to do: its ids, paths, and the files' sizes and times; of a
        `store` of rows that others made, with their files."""
        config = self.store_named(store).config if store else None
        if isinstance(config, Imported):
            return digest([[v.id for v in self.shard_videos(shard)], self.state(config.path)])[:16]
        made = self.renderer.NUMERICS if self.rendered else 0
        return digest([made, *([v.id, v.path, *self.stat(v.path)] for v in self.shard_videos(shard))])[:16]

    @cached_property
    def videos_token(self) -> str:
        """Changes when a video of the list does."""
        return digest([self.shard_token(shard) for shard in range(self.shard_count)])[:16]

    @lru_cache(None)  # noqa: B019
    def stat(self, path: str) -> tuple[int, ...]:
        """Size and time of a file of the list; clips of ours follow a seed instead."""
        with suppress(OSError):
            if path and not self.rendered and not self.config.generated:
                info = os.stat(os.path.join(self.root, path))
                return info.st_size, info.st_mtime_ns
        return ()

    @lru_cache  # noqa: B019
    def state(self, path: Path) -> str:
        """Changes when a file at `path` or below it does."""
        files = [path] if path.is_file() else [Path(f, name) for f, _, names in os.walk(path) for name in names]
        found = []
        for file in sorted(files):
            with suppress(OSError):
                info = file.stat()
                found.append([str(file), info.st_size, info.st_mtime_ns])
        return digest(found)

    @lru_cache  # noqa: B019 (a plan lives as long as the process)
    def store(self, extractor: str, split: str | None = None) -> Store:
        """The store of an extractor, as the heads of `split` read it: one a split where its weights, or those of its
        source, are trained on the split."""
        config = self._named("extractors", extractor)
        if split is not None:
            self._split(split)
        source = self.store(config.source, split) if config.source else None
        source_digest = source.digest if source else None
        run = self.training(config, split)
        if run is not None:
            weights: str | None = f"run {run.digest} seed {run.seeds[0]}"
            own = run.split if run.plan is self else source.split if source else None
            return Store(self, extractor, own, recipe(config, weights, source_digest))
        weights, generator = None, self.generator if config.kind == "frames" else None
        if isinstance(config, Networked):
            weights = weights_digest(config.network.weights, self._place("extractors", extractor))
        value = recipe(config, weights, source_digest, flash.recipe(generator.source) if generator else None)
        return Store(self, extractor, source.split if source else None, value)

    @cached_property
    def generator(self) -> flash.Maker | None:
        """What makes the frames of videos that are not on disk."""
        source = self.config.videos
        return flash.made(source) if isinstance(source, flash.FlashDigits | flash.NoisyDigits) else None

    def training(self, extractor: AnyExtractor, split: str | None) -> Run | None:
        """The run that makes the weights of an extractor, of this dataset or of another."""
        weights = from_run(extractor)
        if weights is None:
            return None
        if weights.dataset is None:
            return self.run(weights.run, split or self.config.splits[0])
        other = of(weights.dataset)
        run = other.run(weights.run, other.config.splits[0])
        if not has_network(other.config.heads[run.head]):
            raise UserError("weights of a head without a network", where=config_path(other.dataset), got=run.head)
        return run

    @cached_property
    def needs(self) -> list[Plan]:
        """The plans of the other datasets whose runs make weights for this one, or are compared on its page. Raises
        `UserError` on a circle."""
        found: dict[str, Plan] = {}
        todo = [self]
        for plan in todo:
            starts = (getattr(head, "start", None) for head in plan.config.heads.values())
            runs = (*(from_run(extractor) for extractor in plan.config.extractors.values()), *starts)
            compared = {name for c in plan.config.comparisons for name in c.datasets} - {plan.dataset}
            for name in sorted(compared | {run.dataset for run in runs if run is not None and run.dataset is not None}):
                if name == self.dataset:
                    got = f"{plan.dataset} takes runs of {name}"
                    raise UserError("datasets wait for each other", where=config_path(self.dataset), got=got)
                if name not in found:
                    found[name] = of(name)
                    todo.append(found[name])
        return list(found.values())

    @lru_cache  # noqa: B019
    def run(self, head: str, split: str) -> Run:
        """The run of a head on a split. Its digest is known before anything is trained."""
        config = self._named("heads", head)
        self._split(split)
        value = {
            "head": config.recipe(),
            "numerics": numerics(config),
            "stores": {m: self.store(m, split).digest for m in config.features},
            "classes": self.videos.classes,
            "train": self._side(split, "train"),
            "split": split,
        }
        if self._several:
            value["several"] = True
        if waits_for(config):
            value["runs"] = {name: self.run(name, split).digest for name in waits_for(config)}
        start = self.start(config, split)
        if start is not None and start.plan is not self:
            value["start"] = start.digest
        part = config.cnn if isinstance(config, BaseConfig) else None
        given = getattr(config, part).weights if part else None
        if part and given is not None and not isinstance(given, RunWeights):
            value["weights"] = weights_digest(given, self._place("heads", head), part)
        train = getattr(config, "train", None)
        if getattr(train, "clip_s", None) is not None:
            value["actions"] = digest(sorted((self.videos.actions or {}).items()))
        if getattr(train, "hold_out", 0):
            value["groups"] = digest([[v.id, v.group] for v in self.videos.videos])
        return Run(self, head, split, value)

    def _split(self, split: str) -> None:
        if split not in self.config.splits:
            where = config_path(self.dataset)
            raise UserError("unknown split", where=where, got=split, fix=nearest(split, self.config.splits))

    def start(self, head: HeadConfig, split: str) -> Run | None:
        """The run whose weights the training of a head on a split begins with."""
        start = getattr(head, "start", None)
        if start is None:
            return None
        if start.dataset is None:
            return self.run(start.run, split)
        other = of(start.dataset)
        return other.run(start.run, other.config.splits[0])

    def tested(self, split: str) -> str:
        """Changes when the test videos of a split or their labels do."""
        return self._side(split, "test")

    @lru_cache  # noqa: B019
    def _side(self, split: str, side: str) -> str:
        """Digest of the training or test videos and their labels."""
        column = self.videos.splits.index(split)
        return digest([[v.id, v.labels] for v in self.videos.videos if v.splits[column] == side])

    @property
    def page_token(self) -> str:
        """Changes when what the config says of the results page alone does."""
        said = {"title", "splits", "seeds", "factors", "sweeps", "comparisons"}
        return digest(self.config.model_dump(mode="json", include=said))[:16]

    @cached_property
    def _stores(self) -> dict[str, Store]:
        found = [self.store(e, s) for e in self.config.extractors for s in self.config.splits]
        return {store.name: store for store in found}

    @cached_property
    def _runs(self) -> dict[str, Run]:
        found = [self.run(head, split) for head in self.config.heads for split in self.config.splits]
        return {run.name: run for run in found}

    def all_stores(self) -> list[Store]:
        """Every store of the config, those that are not kept included."""
        return list(self._stores.values())

    def stores(self) -> list[Store]:
        """Every store that the dataset keeps, at least for a while."""
        return [store for store in self._stores.values() if store.config.store]

    def runs(self) -> list[Run]:
        """Every run that the dataset needs."""
        return list(self._runs.values())

    def compared(self) -> list[tuple[Comparison, str, list[Run], list[Run]]]:
        """Each comparison on each of its datasets: its name, the runs said to be better, and those they are better
        than."""
        found = []
        for comparison in self.config.comparisons:
            for name in comparison.datasets or (self.dataset,):
                plan = of(name) if name != self.dataset else self
                better, than = (
                    [plan.run(head, split) for split in plan.config.splits]
                    for head in (comparison.better, comparison.than)
                )
                found.append((comparison, name, better, than))
        return found

    def foreign_runs(self) -> list[Run]:
        """The runs of other datasets that the page compares."""
        runs = [run for _, _, better, than in self.compared() for run in (*better, *than)]
        return list({str(run.folder): run for run in runs if run.plan is not self}.values())

    def lost(self) -> list[str]:
        """What is to be made again and Snakemake would not miss: runs without a seed that the config has since; a list
        and shards whose videos changed, where it has no record of the jobs, for they were made without it; and, beside
        results, the outputs of jobs that failed after these were made."""
        short = [run.summary for run in self.runs() if os.path.exists(run.summary) and not run.complete]
        short += [path for store in self.stores() if not store.config.temporary for path in self._changed(store)]
        short += [str(self.list_file)] if self.list_changed else []
        if not self.results.exists():
            return short
        made = [self.annotations[0]] if self.rendered else []
        for store in self.stores():
            made += [*([] if store.config.temporary else store.manifests), store.summary]
        gone = [path for path in (*made, *(run.summary for run in self.runs())) if not os.path.exists(path)]
        return [*gone, *short]

    def _changed(self, store: Store) -> Iterator[str]:
        for shard, path in enumerate(store.manifests):
            with suppress(OSError):  # of before these notes were kept
                if store.made_with(shard).read_text() != self.shard_token(shard, store.name) and os.path.exists(path):
                    yield path

    def store_named(self, name: str) -> Store:
        """The store in the folder `name`."""
        return self._made("store", name, self._stores)

    def run_named(self, name: str) -> Run:
        """The run in the folder `name`."""
        return self._made("run", name, self._runs)

    def _made(self, what: str, name: str, known: Mapping[str, T]) -> T:
        if name not in known:
            fix = nearest(name, known)
            raise UserError(f"no {what} of this config", where=config_path(self.dataset), got=name, fix=fix)
        return known[name]

    def _place(self, kind: str, name: str) -> str:
        return f"{config_path(self.dataset)}: $.{kind}.{name}"

    def _named(self, kind: str, name: str) -> Any:
        known = getattr(self.config, kind)
        if name not in known:
            where = f"{config_path(self.dataset)}: $.{kind}"
            raise UserError(f"unknown {kind[:-1]}", where=where, got=name, fix=nearest(name, known))
        return known[name]


@lru_cache
def of(dataset: str) -> Plan:
    """The plan of a dataset, made once."""
    return Plan(dataset)


def requested(targets: Iterable[str]) -> list[Plan]:
    """The plans of the datasets that ``results/<dataset>`` targets name, checked whole: the config, the annotation
    files, the weights. Raises `UserError`."""
    parts = [Path(target).parts for target in targets]
    plans = [of(part[1]) for part in parts if len(part) == 2 and part[0] == str(RESULTS)]
    for plan in plans:
        for needed in (*plan.needs, plan):
            needed.runs()
            needed.compared()
            check_videos(needed, needed.all_stores())
    return plans


__all__ = ["Dataset", "Plan", "Run", "Store", "of", "requested"]
