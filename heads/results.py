"""What a finished run leaves for people and reports: metrics, history, and the scores of every test video.

write_predictions(folder, predictions, classes)             # predictions.npz and predictions.csv
for look in read_attention(folder): look.weights["rgb"]     # (N,L), each row of it sums to 1
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from features.atomic import write_bytes
from features.errors import DamagedStore
from heads import metrics

ATTENTION: Final = "attention.npz"
_FIX: Final = "run `framepool train` for it again"
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would run a cell that begins so


class Predictions(NamedTuple):
    """V videos, C classes."""

    ids: Sequence[str]  # (V,)
    labels: npt.NDArray[Any]  # (V,) int64, or (V,C) bool where a video has several labels
    logits: npt.NDArray[np.float32]  # (V,C)


class Look(NamedTuple):
    """One video: of each modality the weights and the time of the middle of each row."""

    id: str
    label: str
    weights: Mapping[str, npt.NDArray[np.float32]]  # (N,L)
    time_us: Mapping[str, npt.NDArray[np.int64]]  # (L,)


def measure(predictions: Predictions, classes: Sequence[str], factors: Sequence[str] = ()) -> dict[str, Any]:
    """All metrics that fit the labels."""
    if predictions.labels.ndim == 2:
        return metrics.multi_label(predictions.logits, predictions.labels, classes)
    return metrics.single_label(predictions.logits, predictions.labels, classes, factors)


def in_short(predictions: Predictions) -> dict[str, float | None]:
    """The loss, and what `measure` ranks by: top1, or where videos have several labels map."""
    labels, logits = predictions.labels, predictions.logits
    if labels.ndim == 2:
        found = [metrics.average_precision(logits[:, k], labels[:, k]) for k in range(logits.shape[1])]
        known = [ap for ap in found if ap is not None]
        return {"map": _mean(known), "loss": _mean(metrics.binary_cross_entropy(logits, labels))}
    return {"top1": _mean(metrics.ranks(logits, labels) < 1), "loss": _mean(metrics.cross_entropy(logits, labels))}


def write_predictions(folder: Path, predictions: Predictions, classes: Sequence[str]) -> None:
    """predictions.npz for programs, predictions.csv for people."""
    stream = io.BytesIO()
    np.savez(stream, ids=np.array(predictions.ids, dtype=np.str_), labels=predictions.labels, logits=predictions.logits)
    write_bytes(folder / "predictions.npz", stream.getvalue())
    write_bytes(
        folder / "predictions.csv",
        _csv(("id", "label", "predicted", "probability", "top5"), _rows(predictions, classes)),
    )


def read_predictions(folder: Path) -> Predictions:
    """What `write_predictions` left. Raises `DamagedStore`."""
    path = folder / "predictions.npz"
    try:
        with np.load(path) as kept:
            return Predictions(kept["ids"].tolist(), kept["labels"], kept["logits"])
    except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
        raise DamagedStore("run is not complete", where=path, got=error, fix=_FIX) from None


def read_attention(folder: Path) -> list[Look]:
    """What `write_attention` left; none where it left nothing. Raises `DamagedStore`."""
    path = folder / ATTENTION
    if not path.exists():
        return []
    try:
        with np.load(path) as file:
            kept = dict(file)
        names = [key.removeprefix("weights ") for key in kept if key.startswith("weights ")]
        found = []
        for k, (video, label) in enumerate(zip(kept["ids"].tolist(), kept["labels"].tolist(), strict=True)):
            there = {m: kept[f"time_us {m}"][k] >= 0 for m in names}
            weights = {m: kept[f"weights {m}"][k][:, there[m]] for m in names}
            found.append(Look(video, label, weights, {m: kept[f"time_us {m}"][k][there[m]] for m in names}))
        return found
    except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
        raise DamagedStore("run is not complete", where=path, got=error, fix=_FIX) from None


def write_history(folder: Path, history: Sequence[Mapping[str, float | None]]) -> None:
    """history.csv: a row an epoch; a cell is empty where nothing was measured."""
    if history:
        write_bytes(folder / "history.csv", _csv(tuple(history[0]), [list(row.values()) for row in history]))


def _mean(values: Any) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _rows(predictions: Predictions, classes: Sequence[str]) -> list[list[Any]]:
    several = predictions.labels.ndim == 2
    rows = []
    for video, label, logits in zip(*predictions, strict=True):
        wide = logits.astype(np.float64)
        sure = wide - np.logaddexp(0, wide) if several else wide - np.logaddexp.reduce(wide)
        shares = np.exp(sure)
        order = np.argsort(-wide, kind="stable")[:5].tolist()
        true = "|".join(classes[k] for k in np.flatnonzero(label).tolist()) if several else classes[label]
        rows.append([video, true, classes[order[0]], f"{shares[order[0]]:.6f}", "|".join(classes[k] for k in order)])
    return rows


def _csv(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return stream.getvalue().encode()


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
