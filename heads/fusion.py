"""Score fusion: the weighted mean of what finished runs say of the same videos. Nothing is trained.

Logits are averaged as they are, or (`of: softmax`) as probabilities, of which the logarithm is kept, so that losses and
ranks are those of the mean; where videos have several labels the probabilities are those of each class by itself, and
the log-odds are kept. The members are runs of the same split and, where they have it, the same seed.
Legend: V videos, C classes.

    fuse_run(folder, config=config, members={"rgb": rgb / "seed0", "flow": flow / "seed0"}, seed=0, split="1",
             provenance={"head": "late", "digest": digest, "versions": {}})
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from features.atomic import Disk, write_json
from features.errors import DamagedStore
from heads.checkpoint import RUN, alone, read_run
from heads.kinds import FusionConfig
from heads.parallel import Ranks
from heads.results import Predictions, measure, read_predictions, write_predictions

METRICS: Final = "metrics.json"
FIX: Final = "run `framepool train` for it again"

Scores = npt.NDArray[Any]


def fuse(scores: Mapping[str, Scores], weights: Mapping[str, float], of: str, several: bool) -> npt.NDArray[np.float32]:
    """{name: logits (V,C)} -> (V,C): their mean, by `weights`; `several` labels a video."""
    total = sum(weights.values())
    shares = {name: weights[name] / total for name in scores}
    wide = {name: s.astype(np.float64) for name, s in scores.items()}
    if of == "logits":
        return np.asarray(sum(shares[n] * s for n, s in wide.items()), np.float32)
    if several:
        yes, no = (_log_mean({n: -np.logaddexp(0, sign * s) for n, s in wide.items()}, shares) for sign in (-1, 1))
        return np.asarray(yes - no, np.float32)
    logs = {n: s - np.logaddexp.reduce(s, axis=1, keepdims=True) for n, s in wide.items()}
    return np.asarray(_log_mean(logs, shares), np.float32)


def _log_mean(logs: Mapping[str, Scores], shares: Mapping[str, float]) -> Scores:
    """{name: logarithms of probabilities (V,C)} -> (V,C): that of their mean, however small they are."""
    return np.asarray(np.logaddexp.reduce([np.log(shares[n]) + log for n, log in logs.items()], axis=0))


def fuse_run(
    folder: Path,
    *,
    config: FusionConfig,
    members: Mapping[str, Path],
    seed: int,
    split: str,
    provenance: Mapping[str, Any],
    factors: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Fuse the finished runs in the folders `members` into one in `folder` and return its metrics."""
    began = time.perf_counter()
    records = {name: _record(place) for name, place in members.items()}
    found = {name: read_predictions(place) for name, place in members.items()}
    first = next(iter(found.values()))
    classes = next(iter(records.values()))["classes"]
    for name, one in found.items():
        if list(one.ids) != list(first.ids) or records[name]["classes"] != classes:
            raise DamagedStore("runs of other videos or classes", where=members[name], fix=FIX)
    scores = {name: one.logits for name, one in found.items()}
    several = first.labels.ndim == 2
    predictions = Predictions(first.ids, first.labels, fuse(scores, config.weights, config.of, several))
    metrics = {
        **measure(predictions, classes, factors),
        "n_train": max(_json(place / METRICS)["n_train"] for place in members.values()),
    }
    run = {
        **provenance,
        "seed": seed,
        "split": split,
        "kind": config.kind,
        "config": config.recipe(),
        "classes": classes,
        "factors": list(factors),
        "multi_label": several,
        "stores": {m: store for record in records.values() for m, store in record["stores"].items()},
        "members": {name: str(place) for name, place in members.items()},
        "made_of": {name: record["digest"] for name, record in records.items()},
        "parameters": sum(record["parameters"] for record in records.values()),
        "epochs": 0,
        "best_epoch": 0,
        "seconds": round(time.perf_counter() - began, 3),
    }
    with alone(folder, Ranks()):
        Disk.remove(folder / RUN)
        write_predictions(folder, predictions, classes)
        write_json(folder / METRICS, metrics)
        write_json(folder / RUN, run)
    return metrics


def _record(folder: Path) -> dict[str, Any]:
    record = read_run(folder)
    if record is None:
        raise DamagedStore("no finished run here", where=folder, expected=RUN, fix=FIX)
    return record


def _json(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_bytes())
        return value
    except (OSError, ValueError) as error:
        raise DamagedStore("run is not complete", where=path, got=error, fix=FIX) from None
