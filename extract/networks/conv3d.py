"""Convolutions in space and time whose gradients are right in bf16 steps on a CPU.

There, oneDNN's bf16 gradient of a 3D kernel leaves memory unwritten where maps are small (torch 2.14, 3x3x3 over
2x4x4): it comes out as 1e27, or as NaN. So a kernel that learns is applied in fp32; all else stays as it was.

    Conv3d(832, 832, (1, 4, 4))                      # as torch.nn.Conv3d
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv3d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], padding: list[int] | tuple[int, ...]
) -> Tensor:
    """(B,C,T,H,W) -> (B,C',T',H',W'), as `torch.nn.functional.conv3d`."""
    learns = weight.requires_grad and torch.is_grad_enabled()
    if not (learns and x.device.type == "cpu" and torch.is_autocast_enabled("cpu")):
        return F.conv3d(x, weight, bias, stride, padding)
    with torch.autocast("cpu", enabled=False):
        return F.conv3d(x.float(), weight, bias, stride, padding)


class Conv3d(nn.Conv3d):
    """`torch.nn.Conv3d` without dilation, groups or padding modes."""

    def forward(self, input: Tensor) -> Tensor:
        """(B,C,T,H,W) -> (B,C',T',H',W')."""
        return conv3d(input, self.weight, self.bias, self.stride, self.padding)  # type: ignore[arg-type]
