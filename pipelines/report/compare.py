"""How far each head is behind the best, and how sure that is: a paired bootstrap over test videos.

A video counts as the share of seeds that have it right. Videos are drawn with replacement, the same ones for both heads
and each split by itself; the interval holds 95 % of the differences (Efron and Tibshirani, 1993, §13.3). Where videos
have several labels there is no share of a video, and no interval.
Legend: V videos of a split, R draws.

    behind(heads)["average"]                                    # Gap(mean=0.012, low=0.004, high=0.021)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from heads.metrics import ranks
from heads.results import read_predictions
from pipelines.report.runs import Head

DRAWS: Final = 4000

Shares = npt.NDArray[np.float64]


class Gap(NamedTuple):
    """Top-1 of the best head less this one's, and the 95 % interval of that."""

    mean: float
    low: float
    high: float


def behind(heads: Sequence[Head]) -> dict[str, Gap]:
    """By name, for each head but the first, which is the best; empty where videos have several labels."""
    if len(heads) < 2 or heads[0].multi_label:
        return {}
    best = _shares(heads[0])
    found = {}
    for head in heads[1:]:
        own = _shares(head)
        if own.keys() == best.keys() and all(len(own[s]) == len(best[s]) for s in best):
            found[head.name] = interval([best[s] - own[s] for s in best])
    return found


def interval(differences: Sequence[Shares], draws: int = DRAWS) -> Gap:
    """The mean over splits of the mean of (V,) differences, and where 95 % of its draws lie."""
    rng = np.random.default_rng(0)
    drawn = np.zeros(draws)
    for values in differences:
        levels, counts = np.unique(values, return_counts=True)  # few: how often each is drawn is all that matters
        drawn += rng.multinomial(len(values), counts / len(values), draws) @ levels / (len(values) * len(differences))
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Gap(float(np.mean([v.mean() for v in differences])), float(low), float(high))


def _shares(head: Head) -> dict[str, Shares]:
    """Split -> (V,): how many of the seeds have a test video right."""
    return {
        split: np.mean([_right(run.folder) for run in head.runs if run.split == split], axis=0) for split in head.splits
    }


def _right(folder: Path) -> npt.NDArray[np.bool_]:
    found = read_predictions(folder)
    return np.asarray(ranks(found.logits, found.labels) < 1)
