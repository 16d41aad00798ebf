"""Temporal-Inception: convolutions along time only, two lengths side by side, over the steps of all modalities.

"TS-LSTM and Temporal-Inception: Exploiting Spatiotemporal Dynamics for Activity Recognition" (2017). The steps are a
picture of one channel, F high and 25 wide. Four stages, each with kernels of 5 and of 7 steps, batch norm, ReLU and
max-pooling; then 1x1 convolutions to one channel and two linear layers. A video has exactly 25 steps: rows at equal
intervals, several times where there are fewer.
Legend: B videos, F dims of all modalities, T steps, H hidden, C classes.

    heads.build("temporal_inception", {"rgb": (2048,), "flow": (2048,)}, 101, align="rgb")
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from features.batches import Select
from heads.base import Head, Shapes, vector_sizes
from heads.dropout import Dropout
from heads.ordered import BatchNorm, spread, steps

_STEPS: Final = 25
_POOLS: Final = (2, 2, 2, 3)  # 25 -> 12 -> 6 -> 3 -> 1
_KERNELS: Final = (5, 7)


def _convolution(inside: int, outside: int, length: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, (1, length), padding=(0, length // 2)), nn.BatchNorm2d(outside), nn.ReLU()
    )


class _Stage(nn.Module):
    """(B,c,F,T) -> (B,2c,F,T//pool)."""

    def __init__(self, channels: int, pool: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(_convolution(channels, channels, length) for length in _KERNELS)
        self.pool = nn.MaxPool2d((1, pool))

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([self.pool(branch(images)) for branch in self.branches], dim=1)


class TemporalInception(Head):
    """25 steps, four stages, 1x1 convolutions, two linear layers."""

    def __init__(self, shapes: Shapes, num_classes: int, *, hidden: int, dropout: float) -> None:
        super().__init__(shapes, num_classes)
        dim = sum(vector_sizes("temporal_inception", shapes).values())
        self.stages = nn.Sequential(*(_Stage(1 << at, pool) for at, pool in enumerate(_POOLS)))
        self.narrow = nn.Sequential(*(_convolution(i, o, 1) for i, o in ((16, 4), (4, 2), (2, 1))))
        self.drop_map = nn.Dropout2d(dropout)
        self.hidden, self.norm = nn.Linear(dim, hidden), BatchNorm(hidden)
        self.dropout = Dropout(dropout)
        self.classifier = nn.Linear(hidden, num_classes)

    def train_rows(self, n: int | None, generator: torch.Generator) -> Select:
        """As in testing."""
        return self.test_rows(n)

    def forward(self, features: dict[str, Tensor], masks: dict[str, Tensor]) -> Tensor:
        """(B,L,D) a modality -> (B,C)."""
        images = spread(*steps(features, masks, self.shapes), _STEPS).transpose(1, 2)[:, None]  # (B,1,F,25)
        map_ = self.drop_map(self.narrow(self.stages(images))).flatten(1)  # (B,F)
        logits: Tensor = self.classifier(self.dropout(self.norm(self.hidden(map_)).relu()))
        return logits
