"""What a run trains and tests on: videos by number, their labels, which of them are held out, what each weighs.

    data = Data(features=features, labels=labels, train=train, test=test, classes=classes)
    videos, held_out = hold_out(data, 0.1, seed=0)

Legend: V videos, B of a batch, C classes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from features.errors import FramepoolError, UserError
from features.stream import Source
from heads.clip_labels import Actions

_NAMED_IDS: Final = 16


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a run trains and tests on: numbers of videos in `features`, and labels (V,) int64 or (V,C) bool."""

    features: Source
    labels: Tensor
    train: Tensor  # (n,) int64
    test: Tensor  # (m,) int64
    classes: tuple[str, ...]
    factors: tuple[str, ...] = ()
    actions: Actions | None = None  # when labels hold, where that is known
    groups: Sequence[str | None] | None = None  # of each video; none is held out in part

    @property
    def multi_label(self) -> bool:
        return self.labels.ndim == 2

    @property
    def primary(self) -> str:
        """The metric that a run is judged by."""
        return "map" if self.multi_label else "top1"

    def targets(self, videos: Tensor) -> Tensor:
        """(B,) -> (B,C) of 0 and 1."""
        labels = self.labels[videos]
        return labels.float() if self.multi_label else nn.functional.one_hot(labels, len(self.classes)).float()

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B,C), labels (B,) or (B,C) -> (B,): cross-entropy, or the mean binary one over classes."""
        labels = labels.to(logits.device)
        if self.multi_label:
            return nn.functional.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").mean(dim=1)
        return nn.functional.cross_entropy(logits, labels, reduction="none")


def refuse_non_finite(bad: Tensor, ids: list[str], what: str) -> None:
    """Stop where one of (B,) is set, naming the videos."""
    if not bool(bad.any()):
        return
    names = [video for video, b in zip(ids, bad.tolist(), strict=True) if b]
    more = f" and {len(names) - _NAMED_IDS} more" if len(names) > _NAMED_IDS else ""
    fix = "look at these videos' features; if they are sound, lower the learning rate or set clip"
    raise FramepoolError(
        what, where=", ".join(names[:_NAMED_IDS]) + more, expected="a number", got="NaN or inf", fix=fix
    )


def mix(*numbers: int) -> int:
    """One 63-bit seed of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def hold_out(data: Data, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """The training videos, and `share` of those of each class (of all, for several labels) held out of them; of groups
    whole ones, as long as they fit into it."""
    if not share:
        return data.train, data.train[:0]
    order = data.train[torch.randperm(len(data.train), generator=torch.Generator().manual_seed(mix(seed, 0, 2)))]
    labels = [0] * len(order) if data.multi_label else data.labels[order].tolist()
    groups: dict[str | int, list[int]] = {}  # places in `order`; a video of no known group is one of its own
    for place, video in enumerate(order.tolist()):
        groups.setdefault((None if data.groups is None else data.groups[video]) or video, []).append(place)
    counts = [Counter(labels[place] for place in places) for places in groups.values()]
    sizes, chosen = Counter(labels), list[int]()
    part = Fraction(str(share))  # as it is written: 0.29 of 100 are 29
    left = Counter({label: int(part * size) for label, size in sizes.items()})
    for places, own in zip(groups.values(), counts, strict=True):
        if all(n <= left[label] for label, n in own.items()):
            left.subtract(own)
            chosen += places
    if not chosen:
        least = min(max(Fraction(n, sizes[label]) for label, n in own.items()) for own in counts)
        raise UserError(
            "hold_out takes no video of any class",
            where="train.hold_out",
            expected=f"{_rounded_up(least):g} or more",
            got=share,
            fix="hold out more, or watch the training loss by hold_out: 0",
        )
    held = torch.isin(data.train, order[chosen])
    return data.train[~held], data.train[held]


def _rounded_up(share: Fraction) -> float:
    """To two digits."""
    scale: int = 10 ** (1 + len(str(share.denominator // share.numerator)))
    return math.ceil(share * scale) / scale


def balanced_weights(data: Data, videos: Tensor) -> Tensor:
    """(V,): n / (K * n_k) for class k with n_k of the n training videos; over these they have mean 1."""
    counts = data.labels[videos].bincount(minlength=len(data.classes))
    weights: Tensor = len(videos) / ((counts > 0).sum() * counts.clamp_min(1).float())
    return weights[data.labels]
