"""What a finished run brings along: its head, its classes, and for each modality the extractor that its rows came from.

A run records the digest of every store that it read. The dataset's config says how such a store is made; it is believed
only where it still gives the same digest, and weights only where their bytes are those that the store recorded.

    run = of_run(Path("work/ucf6/runs/attention_cluster-split1-0123abcd/seed0"))
    run.sources["rgb"].config, run.sources["rgb"].weights
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extract.config import AnyExtractor, Networked
from features.errors import FramepoolError, UserError
from features.recipe import file_sha256
from heads.kinds import HeadConfig
from pipelines import plan as plans
from pipelines.plan import Plan, Store

if TYPE_CHECKING:
    from extract.runtime import Model
    from heads.base import Head


@dataclass(frozen=True)
class Source:
    """One modality: the store that the rows came from, and what its recipe led to (`facts`: transform, weights)."""

    store: Store
    facts: Mapping[str, Any]

    @property
    def config(self) -> AnyExtractor:
        """The extractor."""
        return self.store.config

    @property
    def weights(self) -> Path | str | None:
        """A file, ``DEFAULT``, or None for an extractor without a network."""
        return self.store.weights

    @property
    def source(self) -> Source | None:
        """The extractor that this one reads; None for the video."""
        found = self.store.source
        return None if found is None else Source(found, self.facts["source"])

    def model(self) -> Model:
        """The network with its weights. Raises `UserError` where they are gone, `FramepoolError` where others are
        there now."""
        from extract.runtime import Model

        weights, where = self.weights, f"extractor {self.store.extractor}"
        if not isinstance(self.config, Networked):
            raise TypeError(f"{where} has no network")
        if isinstance(weights, Path):
            if not weights.is_file():
                raise UserError("weights are not there", where=where, expected="a file", got=weights)
            expected, got = self.facts["weights_sha256"], file_sha256(weights)
            if expected != got:
                fix = "put back the weights that the run was trained on, or train it again"
                what = "weights are not those that the run was trained on"
                raise FramepoolError(what, where=weights, expected=expected[:16], got=got[:16], fix=fix)
        shape = None if self.source is None else tuple(self.source.facts["row_shape"])
        return Model(self.config, weights, shape)


@dataclass(frozen=True)
class OfRun:
    """A finished run with what its rows are made by."""

    folder: Path
    head: Head
    record: Mapping[str, Any]  # run.json
    config: HeadConfig
    sources: Mapping[str, Source]  # by modality, in the head's order

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, in the order of the logits."""
        return tuple(self.record["classes"])

    @property
    def several(self) -> bool:
        """Whether a video can have several labels."""
        return bool(self.record["multi_label"])

    @property
    def plan(self) -> Plan:
        """Of the dataset that it was trained on."""
        return plans.of(self.record["dataset"])


def of_run(folder: Path) -> OfRun:
    """The finished run in `folder`. Raises `UserError` where it is none, is a fusion, or where the config of its
    dataset no longer makes the stores that it read."""
    import heads
    from heads.checkpoint import RUN, load_head, read_run

    record = read_run(folder)
    if record is None:
        fix = "name a folder work/DATASET/runs/HEAD-splitK-DIGEST/seedS of a finished run"
        raise UserError("not a finished run", where=folder, expected=f"a {RUN} in it", fix=fix)
    if "members" in record:
        fix = f"take {' and '.join(record['members'].values())}"
        raise UserError("a fusion has no weights of its own", where=folder, fix=fix)
    head, record = load_head(folder)
    config: Any = heads.HEADS[record["kind"]][1].parse(record["config"], where=str(folder / RUN))
    plan = plans.of(record["dataset"])
    sources = {}
    for modality in head.shapes:
        stored = record["stores"][modality]
        store = plan.store(modality, record["split"])
        if store.digest != stored["digest"]:
            where = f"{folder}: {modality}"
            fix = "put the extractor back in the config as it was, or train the run again"
            what = "the config no longer makes the features of this run"
            raise UserError(what, where=where, expected=stored["digest"][:8], got=store.digest[:8], fix=fix)
        sources[modality] = Source(store, stored["facts"])
    return OfRun(folder, head, record, config, sources)
