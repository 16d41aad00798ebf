"""How far a head is behind another, and how sure that is: a paired bootstrap over test videos.

A video counts as the share of seeds that have it right. Videos are drawn with replacement, the same ones for both heads
and each split by itself; the interval holds 95 % of the differences (Efron and Tibshirani, 1993, §13.3). Where videos
have several labels no video is right or wrong by itself: each draw has its own mAP, the mean over seeds; one
without any label has none, and does not count.
Legend: V videos of a split, R draws, C classes.

    behind(heads)["average"]                                    # Gap(mean=0.012, low=0.004, high=0.021)
    Pair(comparison, "ucf6-trained", head, other).verdict       # "holds"
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from heads.metrics import ranks
from heads.results import Predictions, read_predictions
from pipelines.comparisons import Comparison
from pipelines.report.runs import Head, ranking

DRAWS: Final = 4000
MAP_DRAWS: Final = 400  # each sorts nothing, but goes over all classes of all seeds

Shares = npt.NDArray[np.float64]


class Gap(NamedTuple):
    """Top-1, or mAP, of the best head less this one's, and the 95 % interval of that."""

    mean: float
    low: float
    high: float


def behind(heads: Sequence[Head]) -> dict[str, Gap]:
    """By name, for each head but the first, which is the best."""
    gaps = {head.name: gap(heads[0], head) for head in heads[1:]}
    return {name: found for name, found in gaps.items() if found is not None}


def gap(ahead: Head, other: Head) -> Gap | None:
    """Top-1, or mAP, of `ahead` less that of `other`; None where other videos were tested, or a split has none or no
    label."""
    best, own = _tested(ahead), _tested(other)
    pairs = [(best[split], own.get(split, [])) for split in best]
    if best.keys() != own.keys() or any(len({tuple(f.ids) for runs in pair for f in runs}) > 1 for pair in pairs):
        return None
    if not all(_judges(found) for runs in best.values() for found in runs):
        return None
    if ahead.multi_label and other.multi_label:
        return _map_gap(pairs)
    return interval([_shares(best) - _shares(own) for best, own in pairs])


@dataclass(frozen=True)
class Pair:
    """A comparison of two heads of a dataset."""

    comparison: Comparison
    dataset: str
    better: Head
    than: Head

    @property
    def metric(self) -> str:
        """What both are judged by."""
        return ranking([self.better, self.than])

    @cached_property
    def gap(self) -> Gap | None:
        """How far the one is ahead."""
        return gap(self.better, self.than)

    @property
    def verdict(self) -> str:
        """Whether the paper's order holds, as far as the test videos tell."""
        if self.gap is None:
            return "no interval"
        return "holds" if self.gap.low > 0 else "reversed" if self.gap.high < 0 else "not told apart"

    @property
    def remark(self) -> str:
        """What the config says about it."""
        return self.comparison.remarks.get(self.dataset, "")

    def row(self) -> dict[str, Any]:
        """The pair as a CSV has it; shares of 1."""
        both = {"better": self.better, "than": self.than}
        scores = {key: head.score(self.metric) for key, head in both.items()}
        deviations = {f"{key}_std_over_seeds": head.deviation(self.metric) for key, head in both.items()}
        edges = self.gap._asdict() if self.gap else dict.fromkeys(Gap._fields)
        return {
            "claim": self.comparison.claim,
            "dataset": self.dataset,
            "better_head": self.better.name,
            "than_head": self.than.name,
            **scores,
            **deviations,
            **{f"ahead{'' if key == 'mean' else f'_{key}'}": value for key, value in edges.items()},
            "verdict": self.verdict,
            "settings": self.comparison.settings,
            "remark": self.remark,
        }


def interval(differences: Sequence[Shares], draws: int = DRAWS) -> Gap:
    """The mean over splits of the mean of (V,) differences, and where 95 % of its draws lie."""
    rng = np.random.default_rng(0)
    drawn = np.zeros(draws)
    for values in differences:
        levels, counts = np.unique(values, return_counts=True)  # few: how often each is drawn is all that matters
        drawn += rng.multinomial(len(values), counts / len(values), draws) @ levels / (len(values) * len(differences))
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Gap(float(np.mean([v.mean() for v in differences])), float(low), float(high))


def _map_gap(pairs: Sequence[tuple[list[Predictions], list[Predictions]]]) -> Gap:
    rng, drawn = np.random.default_rng(0), np.zeros(1 + MAP_DRAWS)
    for pair in pairs:
        videos = len(pair[0][0].ids)
        counts = rng.multinomial(videos, np.full(videos, 1 / videos), MAP_DRAWS)
        counts = np.vstack([np.ones((1, videos), dtype=counts.dtype), counts])  # and as they are
        best, own = (np.mean([drawn_map(f.logits, f.labels, counts) for f in runs], axis=0) for runs in pair)
        drawn += (best - own) / len(pairs)
    low, high = np.nanquantile(drawn[1:], (0.025, 0.975))
    return Gap(float(drawn[0]), float(low), float(high))


def drawn_map(logits: npt.NDArray[Any], labels: npt.NDArray[Any], counts: npt.NDArray[Any]) -> Shares:
    """(V,C), (V,C) of 0 and 1, (R,V) how often a draw has each video -> (R,): the mAP of each draw, over the classes
    that occur in it, NaN where none does."""
    summed, occurring = np.zeros(len(counts)), np.zeros(len(counts), dtype=np.int64)
    for scores, positive in zip(logits.T, labels.T.astype(bool), strict=True):
        if not positive.any():
            continue
        order = np.argsort(-scores, kind="stable")
        last_of_tie = np.searchsorted(-scores[order], -scores[order], side="right") - 1
        drawn = counts[:, order]
        hits = drawn * positive[order]
        precision = (hits.cumsum(axis=1) / np.maximum(drawn.cumsum(axis=1), 1))[:, last_of_tie]
        total = hits.sum(axis=1)
        summed += (precision * hits).sum(axis=1) / np.maximum(total, 1)
        occurring += total > 0
    return np.where(occurring > 0, summed / np.maximum(occurring, 1), np.nan)


def _tested(head: Head) -> dict[str, list[Predictions]]:
    """Split -> what each seed said of its test videos."""
    return {s: [read_predictions(run.folder) for run in head.runs if run.split == s] for s in head.splits}


def _judges(tested: Predictions) -> bool:
    """Whether there are videos, and where they may have several labels one that has any."""
    return len(tested.ids) > 0 and (tested.labels.ndim == 1 or bool(tested.labels.any()))


def _shares(runs: Sequence[Predictions]) -> Shares:
    """(V,): how many of the seeds have a test video right."""
    return np.asarray(np.mean([ranks(found.logits, found.labels) < 1 for found in runs], axis=0), dtype=np.float64)
