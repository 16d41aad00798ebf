"""A finished run put to work on rows in memory: the same weights, the same choice of rows, the same logits.

A fusion's members are loaded with it and their scores joined as the fusion joined them.
Legend: V videos, C classes, L rows.

    run = Trained.load(Path("work/demo/runs/average-split1-0123abcd/seed0"))
    run.logits(features)                             # (V,C) float32, NaN where a video's scores are not finite
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import heads
from features.batches import Features
from features.errors import DamagedStore, FramepoolError, UserError
from features.recipe import digest, file_sha256
from heads.base import Head
from heads.checkpoint import RUN, WEIGHTS, load_head, read_run
from heads.config import BaseConfig
from heads.data import Data
from heads.fusion import fuse
from heads.kinds import FusionConfig
from heads.loop import predict

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Trained:
    """A run: its head, or for a fusion its `members`, by name. `record` is its run.json, `digest` names its numbers."""

    folder: Path
    record: dict[str, Any]
    digest: str
    head: Head | None
    config: BaseConfig | FusionConfig
    members: dict[str, Trained]

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> Trained:
        """The finished run in `folder`. Raises `UserError` where there is none, `DamagedStore` where it is damaged."""
        record = _record(folder)
        try:
            if "members" in record:
                fusion = FusionConfig.model_validate(record["config"])
                places = {name: _member(folder, place) for name, place in record["members"].items()}
                members = {name: cls.load(place, device) for name, place in places.items()}
                name = digest([record["digest"], {n: m.digest for n, m in members.items()}])
                return cls(folder, record, name, None, fusion, members)
            config = heads.HEADS[record["kind"]][1].model_validate(record["config"])
            name = digest([record["digest"], record["seed"], file_sha256(folder / WEIGHTS)])
        except (KeyError, ValueError, TypeError, OSError) as error:
            raise DamagedStore("run does not load", where=folder, got=error, fix="train it again") from None
        head, _ = load_head(folder, device=device)
        if missing := {"stores", "classes", "multi_label", "dataset", "split"} - record.keys():
            raise DamagedStore("run does not load", where=folder / RUN, expected=min(missing), fix="train it again")
        return cls(folder, record, name, head, config, {})

    @property
    def name(self) -> str:
        """Such as ``average-split1-0123abcd/seed0``."""
        return "/".join(self.folder.absolute().parts[-2:])

    @property
    def classes(self) -> list[str]:
        found: list[str] = self.record["classes"]
        return found

    @property
    def multi_label(self) -> bool:
        return bool(self.record["multi_label"])

    @property
    def trained(self) -> list[Trained]:
        """The runs that read features: itself, or its members."""
        return [one for member in self.members.values() for one in member.trained] if self.members else [self]

    def logits(self, features: Mapping[Path, Features]) -> Logits:
        """Rows as each trained run reads them (by its folder) -> (V,C); NaN where the scores of a video are not
        finite."""
        if isinstance(self.config, FusionConfig):
            scores = {name: member.logits(features) for name, member in self.members.items()}
            return fuse(scores, self.config.weights, self.config.of, self.multi_label)
        own = features[self.folder]
        try:
            return self._predicted(own, range(len(own.ids)))
        except FramepoolError:  # one of them is not finite: the others are not to suffer for it
            found = np.full((len(own.ids), len(self.classes)), np.nan, np.float32)
            for number in range(len(own.ids)):
                try:
                    found[number] = self._predicted(own, range(number, number + 1))
                except FramepoolError:
                    continue
            return found

    def _predicted(self, features: Features, videos: range) -> Logits:
        device = next((p.device for p in self.head.parameters()), torch.device("cpu"))  # type: ignore[union-attr]
        test = torch.tensor(list(videos))
        none = torch.zeros(len(features.ids), dtype=torch.int64)
        data = Data(features=features, labels=none, train=none[:0], test=test, classes=tuple(self.classes))
        return predict(self.head, self.config, data, test, device).logits  # type: ignore[arg-type]


def _record(folder: Path) -> dict[str, Any]:
    if (record := read_run(folder)) is not None:
        return record
    seeds = sorted(path.name for path in folder.glob("seed*"))
    fix = f"name one of its seeds: {', '.join(seeds[:5])}" if seeds else "name a folder RUN/seedS of a finished run"
    raise UserError("not a finished run", where=folder, expected=f"a {RUN} in it", fix=fix)


def _member(folder: Path, place: str) -> Path:
    """Where a member of a fusion is: as the fusion says, or beside the fusion where all was moved."""
    named = Path(place)
    return named if (named / RUN).is_file() else folder.parent.parent / named.parent.name / named.name
