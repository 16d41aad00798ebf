"""What happens in a clip: labels with times, cut to the span of the rows that training has picked.

Charades (2016) as SlowFast (2019) trains on it: a clip's labels are those of its frames together. The test asks for the
labels of the whole video. Actions count from a video's start, and rows have the times of its file: stores do not keep
where those begin, so where it is not at 0, as in MPEG-TS, labels are off by as much.
Legend: V videos, A actions of all videos, B videos of a batch, C classes.

    actions = Actions.of([[(3, 0.0, 2.5), (7, 2.0, 9.0)], []])      # of each video (label, start, end), in seconds
    actions.within(videos, spans_us, 157)                           # (B,), (B,2) -> (B,C) bool
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor


class Actions(NamedTuple):
    """Of video v those numbered first[v] to first[v + 1]."""

    first: Tensor  # (V+1,)
    label: Tensor  # (A,)
    span_us: Tensor  # (A,2): start and end

    @classmethod
    def of(cls, videos: Sequence[Sequence[tuple[int, float, float]]]) -> Self:
        """From (label, start, end) in seconds, video by video."""
        counts = torch.tensor([0, *(len(actions) for actions in videos)])
        flat = [action for actions in videos for action in actions]
        times = torch.tensor([action[1:] for action in flat], dtype=torch.float64).reshape(-1, 2)
        return cls(counts.cumsum(0), torch.tensor([a[0] for a in flat], dtype=torch.int64), (times * 1e6).long())

    def within(self, videos: Tensor, spans_us: Tensor, num_classes: int) -> Tensor:
        """(B,), (B,2) first and last moment -> (B,C) bool: which classes happen in each span, its ends included."""
        first, counts = self.first[videos], self.first[videos + 1] - self.first[videos]
        row = torch.arange(len(videos)).repeat_interleave(counts)
        action = torch.arange(len(row)) - (counts.cumsum(0) - counts - first).repeat_interleave(counts)
        start, end = self.span_us[action].unbind(dim=1)
        happens = (start <= spans_us[row, 1]) & (end >= spans_us[row, 0])
        found = torch.zeros(len(videos), num_classes, dtype=torch.bool)
        found[row[happens], self.label[action[happens]]] = True
        return found
