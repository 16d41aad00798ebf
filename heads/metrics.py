"""How good scores are: top-k, mean per class, confusions, parts of class names, mean average precision.

Ties go to the class that stands first in the list, so no score is counted twice and nothing depends on a sort.
Numbers that do not exist (no video, no video of a class) are None and never NaN.
Legend: V videos, C classes.

    single_label(logits, labels, classes)["top1"]               # (V,C), (V,)
    multi_label(logits, labels, classes)["map"]                 # (V,C), (V,C) bool
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from features.errors import UserError

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[Any]


def ranks(logits: Floats, labels: Labels) -> npt.NDArray[np.int64]:
    """(V,C), (V,) -> (V,): how many classes come before the true one. 0 is a hit."""
    true = np.take_along_axis(logits, labels[:, None], axis=1)
    before = (logits > true) | ((logits == true) & (np.arange(logits.shape[1]) < labels[:, None]))
    return np.asarray(before.sum(axis=1))


def single_label(logits: Floats, labels: Labels, classes: Sequence[str], factors: Sequence[str] = ()) -> dict[str, Any]:
    """top1, top5, mean_class, loss, n_test, per_class, factors if asked."""
    rank = ranks(logits, labels)
    counts = confusion(logits, labels)
    per_class = {
        name: int(row[k]) / int(row.sum()) if row.sum() else None
        for k, (name, row) in enumerate(zip(classes, counts, strict=True))
    }
    known = [share for share in per_class.values() if share is not None]
    found = {
        "top1": _mean(rank < 1),
        "top5": _mean(rank < 5),
        "mean_class": _mean(np.array(known)),
        "loss": _mean(cross_entropy(logits, labels)),
        "n_test": len(labels),
        "per_class": per_class,
    }
    if factors:
        found["factors"] = factor_accuracy(_predicted(logits), labels, classes, factors)
    return found


def confusion(logits: Floats, labels: Labels) -> npt.NDArray[np.int64]:
    """(V,C), (V,) -> (C,C): how many videos of each class (rows) were taken for each (columns)."""
    counts = np.zeros((logits.shape[1], logits.shape[1]), dtype=np.int64)
    np.add.at(counts, (labels, _predicted(logits)), 1)
    return counts


def factor_accuracy(
    predicted: Labels, labels: Labels, classes: Sequence[str], factors: Sequence[str]
) -> dict[str, float | None]:
    """How often each part of the predicted class's name is right; classes are called ``<part>-<part>-...``."""
    parts = np.array([_parts(name, factors) for name in classes]).reshape(len(classes), len(factors))
    return {factor: _mean(parts[predicted, k] == parts[labels, k]) for k, factor in enumerate(factors)}


def multi_label(logits: Floats, labels: Labels, classes: Sequence[str]) -> dict[str, Any]:
    """map, map_unlabelled_last, gap, hit1, perr, loss, n_test, per_class.

    map is the mean over classes that occur of the average precision, as SlowFast counts it; map_unlabelled_last is
    that of Charades' own script, which ranks videos without any label last. gap, hit1 and perr are YouTube-8M's: the
    average precision over the 20 best classes of all videos together; how often a labelled video's best class is right;
    and of a video with n labels the share of its n best classes that are right, in the mean over labelled videos.
    """
    labels = labels.astype(bool)
    best = logits.argmax(axis=1) if logits.size else np.zeros(len(logits), np.int64)
    unlabelled_last = np.where(labels.any(axis=1, keepdims=True), logits, -np.inf)
    per_class = {name: average_precision(logits[:, k], labels[:, k]) for k, name in enumerate(classes)}
    charades = [average_precision(unlabelled_last[:, k], labels[:, k]) for k in range(len(classes))]
    return {
        "map": _mean(np.array([ap for ap in per_class.values() if ap is not None])),
        "map_unlabelled_last": _mean(np.array([ap for ap in charades if ap is not None])),
        "gap": global_average_precision(logits, labels),
        "hit1": _mean(np.take_along_axis(labels, best[:, None], axis=1)[labels.any(axis=1)]),
        "perr": precision_at_equal_recall(logits, labels),
        "loss": _mean(binary_cross_entropy(logits, labels)),
        "n_test": len(labels),
        "per_class": per_class,
    }


def precision_at_equal_recall(logits: Floats, labels: Labels) -> float | None:
    """(V,C), (V,C) bool -> PERR of "YouTube-8M" (2016), §4.1."""
    counts = labels.sum(axis=1)
    order = np.argsort(-logits, axis=1, kind="stable")
    right = np.take_along_axis(labels.astype(bool), order, axis=1)
    among = np.arange(labels.shape[1]) < counts[:, None]
    return _mean(((right & among).sum(axis=1) / np.maximum(counts, 1))[counts > 0])


def global_average_precision(logits: Floats, labels: Labels, top: int = 20) -> float | None:
    """(V,C), (V,C) bool -> the average precision of the `top` classes of each video, in one list by score; labels that
    are not in it count as missed, and equal scores count together.

    "YouTube-8M: A Large-Scale Video Classification Benchmark" (2016), its starter code.
    """
    total = int(labels.sum())
    if not total:
        return None
    order = np.argsort(-logits, axis=1, kind="stable")[:, :top]
    scores, right = (np.take_along_axis(a, order, axis=1).ravel() for a in (logits, labels.astype(bool)))
    return (average_precision(scores, right) or 0.0) * int(right.sum()) / total


def average_precision(scores: npt.NDArray[Any], positive: npt.NDArray[np.bool_]) -> float | None:
    """(V,), (V,) -> mean over positives of the precision at their score; equal scores count together."""
    if not positive.any():
        return None
    order = np.argsort(-scores, kind="stable")
    sorted_scores, hits = scores[order], positive[order]
    last_of_tie = np.append(sorted_scores[1:] != sorted_scores[:-1], True)
    found = np.cumsum(hits)[last_of_tie]
    precision = found / (np.flatnonzero(last_of_tie) + 1)
    return float((precision * np.diff(found, prepend=0)).sum() / positive.sum())


def cross_entropy(logits: Floats, labels: Labels) -> npt.NDArray[np.float64]:
    """(V,C), (V,) -> (V,)."""
    wide = logits.astype(np.float64)
    top = wide.max(axis=1, initial=-np.inf) if len(wide) else np.zeros(0)
    total = top + np.log(np.exp(wide - top[:, None]).sum(axis=1))
    return np.asarray(total - np.take_along_axis(wide, labels[:, None], axis=1)[:, 0])


def binary_cross_entropy(logits: Floats, labels: Labels) -> npt.NDArray[np.float64]:
    """(V,C), (V,C) -> (V,): mean over classes."""
    wide = logits.astype(np.float64)
    return np.asarray((np.logaddexp(0, wide) - wide * labels).mean(axis=1))


def _predicted(logits: Floats) -> npt.NDArray[np.int64]:
    return logits.argmax(axis=1) if len(logits) else np.zeros(0, dtype=np.int64)


def _mean(values: npt.NDArray[Any]) -> float | None:
    return float(values.mean()) if len(values) else None


def _parts(name: str, factors: Sequence[str]) -> list[str]:
    parts = name.split("-")
    if len(parts) != len(factors):
        raise UserError("class name does not fit the factors", where=name, expected="-".join(f"<{f}>" for f in factors))
    return parts
