"""What a finished run brings along: its head, its classes, and for each modality the extractor that its rows came from.

run = of_run(Path("work/ucf6/runs/attention_cluster-split1-0123abcd/seed0"))
run.sources["rgb"].config, run.sources["rgb"].model
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.errors import UserError
from pipelines import plan as plans
from pipelines.plan import WORK, Plan

if TYPE_CHECKING:
    from extract.stage import Stage
    from heads.base import Head
    from heads.config import BaseConfig
    from heads.kinds import FusionConfig


@dataclass(frozen=True)
class OfRun:
    """A finished run with what its rows are made by."""

    folder: Path
    head: Head
    record: Mapping[str, Any]  # run.json
    config: BaseConfig | FusionConfig
    sources: Mapping[str, Stage]  # by modality, in the head's order

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
        """Of the dataset that it was trained on. Raises `UserError` where that is not here."""
        return plans.of(self.record["dataset"])

    def store(self, modality: str) -> Path:
        """The store that a modality was read from, whether or not it is still there."""
        return self.plan.work / "features" / str(self.record["stores"][modality]["store"])


def of_run(folder: Path, cache: Path = WORK / "cache") -> OfRun:
    """The finished run in `folder`, its networks converted into `cache`. Raises `UserError` where it is none, or is a
    fusion, and what `pipelines.extractors.Stages.of` raises where its extractors cannot be made again."""
    from extract.convert import converter
    from heads.scoring import Trained
    from pipelines.extractors import Stages

    trained = Trained.load(folder)
    if trained.head is None:
        fix = f"take {' and '.join(str(member.folder) for member in trained.members.values())}"
        raise UserError("a fusion has no weights of its own", where=folder, fix=fix)
    stages = Stages(cache)
    with converter():
        sources = {modality: stages.found[stages.of(trained, modality)] for modality in trained.head.shapes}
    return OfRun(folder, trained.head, trained.record, trained.config, sources)
