"""A video tested in clips: its test rows in equal parts, each scored by itself, then the largest score or the mean.

SlowFast (2019), §5: Charades takes the maximum over 10 clips of the sigmoid, which is that of the largest logit.
Legend: B videos, L rows, C classes.

    scores = in_clips(head, Clips(n=10, of="max"))(features, masks)             # (B,C)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from heads.base import Head
from heads.config import Clips

Scores = Callable[[dict[str, Tensor], dict[str, Tensor]], Tensor]


def in_clips(head: Head, clips: Clips | None) -> Scores:
    """What scores a batch: the head itself where there are no `clips`."""
    if clips is None:
        return head
    together = head.rows_together

    def scores(features: dict[str, Tensor], masks: dict[str, Tensor]) -> Tensor:
        found, there = [], []
        for k in range(clips.n):
            rows, own = _clip(features, masks, k, clips.n, together)
            found.append(head(rows, own).float())
            there.append(torch.stack([mask.any(dim=1) for mask in own.values()]).any(dim=0))
        logits, known = torch.stack(found), torch.stack(there)  # (n,B,C), (n,B)
        known = known | ~known.any(dim=0)  # a video without rows has the scores of none
        if clips.of == "max":
            return logits.masked_fill(~known[..., None], -torch.inf).amax(dim=0)
        weights = known.float() / known.sum(dim=0)
        return (torch.where(known[..., None], logits, 0) * weights[..., None]).sum(dim=0)

    return scores


def _clip(
    features: dict[str, Tensor], masks: dict[str, Tensor], k: int, n: int, together: int = 1
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Part k of n of each video's rows, from floor(k L / n) on, L counted in groups that stay `together`; at least one
    column, which may be padding."""
    rows, own, spans = {}, {}, {}
    for modality, mask in masks.items():
        counts = mask.sum(dim=1, keepdim=True) // together  # (B,1); rows that are there come first
        spans[modality] = k * counts // n * together, (k + 1) * counts // n * together
    longest = max(int((end - first).max()) for first, end in spans.values())  # of all: those that align are as long
    for modality, mask in masks.items():
        first, end = spans[modality]
        at = first + torch.arange(max(1, longest), device=mask.device)  # (B,l)
        own[modality] = at < end
        at = at.clamp_max(mask.shape[1] - 1)
        data = features[modality]
        rows[modality] = data[torch.arange(len(data), device=at.device)[:, None], at]
    return rows, own
