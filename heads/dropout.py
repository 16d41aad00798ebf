"""Dropout whose mask costs 16 random bits an element: on CPUs several times as fast as torch's.

At a drop rate of 0.9 over 64 units of 1280 dims the mask is otherwise most of a training step. The rate is rounded to
a multiple of 2^-16 and what is kept is scaled by the rounded rate, so the mean is exact. Other devices use torch's
own.

    Dropout(0.9)(x)                                             # x (*,) -> (*,)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LEVELS = 1 << 16


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`, drawn from the same global generator."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0 or input.device.type != "cpu":
            return super().forward(input)
        dropped = min(round(self.p * _LEVELS), _LEVELS - 1)
        bits = torch.empty(-(-input.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        keep = (bits[: input.numel()] >= dropped - _LEVELS // 2).view(input.shape)
        return input * keep.to(input.dtype).mul_(_LEVELS / (_LEVELS - dropped))
