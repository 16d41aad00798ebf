"""Finished runs read back, and what they say together: a score is the mean over splits of the mean over seeds.

heads = by_head(read_run(folder) for folder in folders)
heads[0].score("top1"), heads[0].deviation("top1")
"""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from features.errors import DamagedStore
from heads import metrics
from heads.results import read_predictions

# What a leaderboard may show of metrics.json, in this order; the first that is there ranks the heads.
METRICS: Final = {"top1": "top-1", "map": "mAP", "map_unlabelled_last": "mAP, unlabelled last", "top5": "top-5"}
METRICS_LAST: Final = {"gap": "GAP", "hit1": "Hit@1", "perr": "PERR", "mean_class": "mean of classes"}
FIX: Final = "run `framepool train` for it again"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One head, split and seed."""

    folder: Path
    record: dict[str, Any]  # run.json
    metrics: dict[str, Any]  # metrics.json
    history: dict[str, list[float | None]]  # column -> a number an epoch; empty where the head is fitted in one go

    @property
    def head(self) -> str:
        return str(self.record["head"])

    @property
    def split(self) -> str:
        return str(self.record["split"])

    @property
    def seed(self) -> int:
        return int(self.record["seed"])

    def value(self, metric: str) -> float | None:
        """A metric by name; ``factors.digit`` is one inside of another."""
        found: Any = self.metrics
        for part in metric.split(".", 1):
            found = found.get(part) if isinstance(found, dict) else None
        return None if found is None else float(found)


@dataclass(frozen=True)
class Head:
    """All runs of one head."""

    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        return self.runs[0].head

    @property
    def kind(self) -> str:
        return str(self.runs[0].record["kind"])

    @property
    def multi_label(self) -> bool:
        return bool(self.runs[0].record["multi_label"])

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.runs[0].record["classes"])

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(self.runs[0].record["stores"])

    @property
    def parameters(self) -> int:
        return int(self.runs[0].record["parameters"])

    @property
    def seconds(self) -> float:
        """Training time of one run, in the mean."""
        return statistics.fmean(run.record["seconds"] for run in self.runs)

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(run.split for run in self.runs))

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted({run.seed for run in self.runs}))

    def score(self, metric: str) -> float | None:
        """Unweighted mean of the splits."""
        return mean(self.split_score(metric, split) for split in self.splits)

    def split_score(self, metric: str, split: str) -> float | None:
        """Mean over the seeds."""
        return mean(run.value(metric) for run in self.runs if run.split == split)

    def seed_score(self, metric: str, seed: int) -> float | None:
        """Mean over the splits."""
        return mean(run.value(metric) for run in self.runs if run.seed == seed)

    def deviation(self, metric: str) -> float | None:
        """Standard deviation over the seeds, each the mean of its splits; None for a single seed."""
        found = [score for seed in self.seeds if (score := self.seed_score(metric, seed)) is not None]
        return statistics.stdev(found) if len(found) > 1 else None

    @cached_property
    def confusion(self) -> npt.NDArray[np.int64] | None:
        """(C, C) true, predicted: the test videos of all splits and seeds; None where videos have several labels."""
        if self.multi_label:
            return None
        found = [read_predictions(run.folder) for run in self.runs]
        counts: npt.NDArray[np.int64] = np.sum([metrics.confusion(p.logits, p.labels) for p in found], axis=0)
        return counts

    @cached_property
    def per_class(self) -> dict[str, float | None]:
        """Of each class the mean over splits and seeds, in the order of the classes."""
        shares = [run.metrics["per_class"] for run in self.runs]
        return {name: mean(share.get(name) for share in shares) for name in self.classes}


def read_run(folder: Path, factors: Sequence[str] = ()) -> Run:
    """A finished run, with its shares of right `factors`, which the config may have named since. Raises `DamagedStore`
    where a file of it is missing or broken."""
    record, measured = (_json(folder / name) for name in ("run.json", "metrics.json"))
    run = Run(folder=folder, record=record, metrics=measured, history=_history(folder / "history.csv"))
    needed = {"head", "kind", "split", "seed", "stores", "parameters", "seconds", "classes", "multi_label"}
    lacking = needed - record.keys()
    if lacking or not isinstance(measured.get("per_class"), dict):
        got = f"no {min(lacking)}" if lacking else "no per_class in metrics.json"
        raise DamagedStore("run is not complete", where=folder, got=got, fix=FIX)
    if factors and list(factors) != record.get("factors"):
        found = read_predictions(folder)
        right = metrics.single_label(found.logits, found.labels, record["classes"], factors)["factors"]
        run = replace(run, metrics={**measured, "factors": right})
    return run


def by_head(runs: Iterable[Run]) -> list[Head]:
    """One `Head` for all runs of the same name, the best first by the ranking metric."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.head, []).append(run)
    heads = [Head(tuple(sorted(group, key=lambda run: (run.split, run.seed)))) for group in found.values()]
    metric = ranking(heads)
    return sorted(heads, key=lambda head: -(head.score(metric) or 0.0))


def metric_names(heads: Sequence[Head], factors: Sequence[str]) -> dict[str, str]:
    """The metrics that the runs have, each with its title: the ranking one first, which is there in any case, factors
    last."""
    first = ranking(heads) if heads else None
    known = {**METRICS, **METRICS_LAST, **{f"factors.{factor}": factor for factor in factors}}
    return {key: title for key, title in known.items() if key == first or _scored(heads, key)}


def ranking(heads: Sequence[Head]) -> str:
    """The metric that ranks the heads; where nothing was tested the one that would."""
    several = any(head.multi_label for head in heads)
    return next((key for key in METRICS if _scored(heads, key)), "map" if several else "top1")


def _scored(heads: Sequence[Head], metric: str) -> bool:
    return any(head.score(metric) is not None for head in heads)


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that exist."""
    found = [value for value in values if value is not None]
    return statistics.fmean(found) if found else None


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DamagedStore("run is not complete", where=path, got=error, fix=FIX) from None
    if not isinstance(value, dict):
        raise DamagedStore("run is not complete", where=path, expected="a JSON object", fix=FIX)
    return value


def _history(path: Path) -> dict[str, list[float | None]]:
    if not path.exists():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        return {key: [float(row[key]) if row[key] else None for row in rows] for key in (rows[0] if rows else ())}
    except (OSError, ValueError, TypeError) as error:
        raise DamagedStore("damaged history", where=path, got=error, fix=FIX) from None
