"""The parts of a plan: a store for each extractor, a run for each head, and what each of them waits for.

store = plan.of("ucf6").store("rgb")
store.folder, store.inputs(0), store.trained_by
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extract.config import AnyExtractor, Imported, Networked, Tvl1
from features.manifest import manifest_path
from features.recipe import digest
from heads.kinds import FusionConfig
from pipelines.config import beginner, trainer

if TYPE_CHECKING:
    from features.foreign import Collection
    from pipelines.plan import Plan


@dataclass(frozen=True)
class Store:
    """One extractor's store; per split where its weights are trained on the split."""

    plan: Plan
    extractor: str
    split: str | None
    recipe: dict[str, Any]

    @property
    def config(self) -> AnyExtractor:
        """What the dataset's config says of the extractor."""
        return self.plan.config.extractors[self.extractor]

    @cached_property
    def digest(self) -> str:
        return digest(self.recipe)

    @property
    def name(self) -> str:
        return f"{self.extractor}-{self.digest[:8]}"

    @property
    def source(self) -> Store | None:
        """The store that it reads; None for the video."""
        return self.plan.store(self.config.source, self.split) if self.config.source else None

    @property
    def reads_video(self) -> bool:
        """Whether its rows come from the video, itself or through an extractor that is not stored."""
        if self.config.kind == "imported":
            return False
        return self.source is None or (not self.source.config.store and self.source.reads_video)

    @property
    def waits_for_training(self) -> bool:
        """Whether a run must come first, for its weights or for those of what it reads."""
        return self.trained_by is not None or (self.source is not None and self.source.waits_for_training)

    def inputs(self, shard: int) -> list[str]:
        """The manifests that a job for the shard reads."""
        source = self.source
        if source is None:
            return []
        if not source.config.store:
            return source.inputs(shard)
        int8 = isinstance(self.config, Networked) and self.config.precision == "int8"
        return sorted({path for s in ((0, shard) if int8 else (shard,)) for path in source.files(s)})

    def files(self, shard: int) -> list[str]:
        """What a job that reads a shard waits for; of temporary rows everything, so that they stay until then."""
        manifest = str(manifest_path(self.folder, shard))
        return [manifest, manifest.removesuffix("json") + "zarr"] if self.config.temporary else [manifest]

    @property
    def live_inputs(self) -> list[str]:
        """What a head waits for that has the rows computed as it reads them: the clips, and weights."""
        run, source = self.trained_by, self.source
        own = [*(self.plan.annotations if self.plan.rendered else ()), *([run.summary] if run else ())]
        return sorted({*own, *(source.live_inputs if source else ())})

    @property
    def folder(self) -> Path:
        return self.plan.work / "features" / self.name

    @property
    def manifests(self) -> list[str]:
        """The files that stand for the store's shards."""
        return [str(manifest_path(self.folder, shard)) for shard in range(self.plan.shard_count)]

    def was(self, shard: int) -> Path:
        """The copy of a shard's manifest that stays when temporary rows are removed."""
        return manifest_path(self.folder, shard).with_suffix(".was.json")

    @property
    def lasting(self) -> list[str]:
        """`manifests`, of temporary rows their copies; not of a store that was finished when there were none."""
        finished_before = os.path.exists(self.summary) and not any(self.folder.glob("*.was.json"))
        if not self.config.temporary or finished_before:
            return self.manifests
        return [str(self.was(shard)) for shard in range(self.plan.shard_count)]

    @property
    def summary(self) -> str:
        """The file that says that all shards are there and few enough videos failed."""
        return str(self.folder / "store.json")

    def made_with(self, shard: int) -> Path:
        """The file that keeps the shard's token (`Plan.shard_token`) as it was when its rows were made."""
        return self.plan.work / "made" / self.name / f"{shard:05d}"

    @property
    def computed(self) -> Path:
        """The file that says what became of the videos where no rows are kept."""
        return self.plan.work / "computed" / f"{self.name}.json"

    @property
    def arguments(self) -> str:
        """How the command line names this store."""
        return f"--extractor {self.extractor}" + (f" --split {shlex.quote(self.split)}" if self.split else "")

    @cached_property
    def collection(self) -> Collection | None:
        """The rows that it imports, of all the videos of the list; found once for all shards of a command."""
        config = self.config
        if not isinstance(config, Imported):
            return None
        from features.foreign import opened

        ids = [video.id for video in self.plan.videos.videos]
        return opened(config.path, config.layout, config.key, config.every_s, ids, self.plan.work.parent / "cache")

    @property
    def gpus(self) -> int:
        """How many GPUs a job of it takes."""
        return int(isinstance(self.config, Networked | Tvl1) and self.config.device == "cuda")

    @property
    def trained_by(self) -> Run | None:
        """The run that makes the weights."""
        return self.plan.training(self.config, self.split)

    @property
    def weights(self) -> Path | str | None:
        """Where the weights are: a file, ``DEFAULT``, or None for an extractor without a network."""
        if (run := self.trained_by) is not None:
            return run.network
        return self.config.network.weights if isinstance(self.config, Networked) else None  # type: ignore[return-value]


@dataclass(frozen=True)
class Run:
    """One head on one split, with all its seeds."""

    plan: Plan
    head: str
    split: str
    recipe: dict[str, Any]

    @cached_property
    def digest(self) -> str:
        return digest(self.recipe)

    @property
    def name(self) -> str:
        return f"{self.head}-split{self.split}-{self.digest[:8]}"

    @property
    def folder(self) -> Path:
        return self.plan.work / "runs" / self.name

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those of the config, or its first alone."""
        return self.plan.config.seeds[:1] if self.single else self.plan.config.seeds

    @property
    def single(self) -> bool:
        """Whether one seed is enough: there is no chance in the head or in those that it is the mean of, or its network
        is what is wanted of it."""
        if self.members:
            return all(member.single for member in self.members.values())
        return self.trains or not self.plan.config.heads[self.head].chance

    @property
    def trains(self) -> bool:
        """Whether an extractor or another head of the dataset waits for its network."""
        config = self.plan.config
        waiting = (*map(trainer, config.extractors.values()), *map(beginner, config.heads.values()))
        return self.head in waiting

    @property
    def begins_from(self) -> Run | None:
        """The run whose network it begins from."""
        name = beginner(self.plan.config.heads[self.head])
        return None if name is None else self.plan.run(name, self.split)

    @property
    def network(self) -> Path:
        """The network that it trains, where it trains one."""
        return self.folder / f"seed{self.seeds[0]}" / "network.safetensors"

    @property
    def summary(self) -> str:
        """The file that says that every seed is trained and judged."""
        return str(self.folder / "trained.json")

    @property
    def finished(self) -> bool:
        """Whether every seed of the config is there."""
        return all((self.folder / f"seed{seed}" / "run.json").is_file() for seed in self.seeds)

    @property
    def complete(self) -> bool:
        """Whether it is finished and its job came to an end: Snakemake takes the summary away where it did not."""
        return Path(self.summary).is_file() and self.finished

    @property
    def stores(self) -> dict[str, Store]:
        """The store that each modality comes from."""
        return {m: self.plan.store(m, self.split) for m in self.plan.config.heads[self.head].features}

    @property
    def members(self) -> dict[str, Run]:
        """The runs that a fusion is made of."""
        config = self.plan.config.heads[self.head]
        names = config.weights if isinstance(config, FusionConfig) else {}
        return {name: self.plan.run(name, self.split) for name in names}

    @property
    def start(self) -> Run | None:
        """The run whose weights the training begins with."""
        return self.plan.start(self.plan.config.heads[self.head], self.split)

    @property
    def teachers(self) -> dict[str, Run]:
        """The runs that it learns from beside the labels."""
        distil = getattr(self.plan.config.heads[self.head], "distil", None)
        return {name: self.plan.run(name, self.split) for name in (distil.weights if distil else ())}

    @property
    def waits_for(self) -> list[Run]:
        """The runs that must be finished first."""
        first = [run for run in (self.start, self.begins_from) if run is not None]
        return [*self.members.values(), *self.teachers.values(), *first]

    def seed_folder(self, seed: int) -> Path:
        """Where the run of a seed is; that of the only one where one is enough."""
        return self.folder / f"seed{self.seeds[0] if self.single else seed}"

    def start_folder(self, seed: int) -> Path | None:
        """The run that the training of a seed begins with: of the same seed where there is one, else of the first."""
        if (first := self.start) is None:
            return None
        same = first.seed_folder(seed)
        return same if seed in first.seeds or same.is_dir() else first.seed_folder(first.seeds[0])

    @property
    def inputs(self) -> list[str]:
        """The files that a job waits for: summaries, and temporary rows one by one, so that they stay until then."""
        stores = [s for s in self.stores.values() if s.config.store]
        shards = range(self.plan.shard_count)
        rows = [p for s in stores if s.config.temporary for shard in shards for p in s.files(shard)]
        live = sorted({path for s in self.stores.values() if not s.config.store for path in s.live_inputs})
        return [*(s.summary for s in stores), *rows, *live, *(run.summary for run in self.waits_for)]

    @property
    def live(self) -> bool:
        """Whether it reads rows that are computed as it goes."""
        return not all(s.config.store for s in self.stores.values())
