"""Rows, as they are decoded or stored, into the normalised input of a network.

    reads      a row                                    the network's input
    rgb        uint8 (H, W, 3), or clip (T, H, W, 3)    (3, H, W), (3, T, H, W): (x / 255 - mean) / std
    flow       uint8 (H, W, 2 l): x1, y1, x2, y2, ...   (2 l, H, W): (x - 128) / 255 / mean of std;
                                                        of clips (2, l, H, W)
    rgbdiff    uint8 (l + 1, H, W, 3)                   (3 l, H, W): differences of frames / 255 / std
    stacked    uint8 (2, H, W, 3)                       (6, H, W): the second frame as rgb, and its difference
    logmel     float (96, 64)                           (1, 96, 64) as it is

The readings are those of Temporal Segment Networks (ECCV 2016), whose flow of no motion is 128: zero here, as in the
flow that I3D was trained on. `stacked` is of "Video Transformer Network" (Kozlov et al., 2019), Table 1.

    FromRows("flow", mean, std)(maps)                # (B, H, W, 10) -> (B, 10, H, W)
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Reads = Literal["rgb", "flow", "rgbdiff", "stacked", "logmel"]
STILL = 128 / 255  # the grey of no motion


class FromRows(nn.Module):
    """(B, *row) -> (B, C, H, W) or (B, C, T, H, W) float32. `mean` and `std` are those of RGB values in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, reads: Reads, mean: tuple[float, ...], std: tuple[float, ...], *, clips: bool = False) -> None:
        """`clips`: for a network that takes flow as clips of two channels."""
        super().__init__()
        self.reads, self.clips = reads, clips
        colours = torch.tensor([mean, std], dtype=torch.float32)
        if reads == "flow":
            colours = torch.stack([torch.full((1,), STILL), colours[1].mean().reshape(1)])
        elif reads == "rgbdiff":
            colours = torch.stack([torch.zeros_like(colours[1]), colours[1]])
        self.register_buffer("mean", colours[0] * 255, persistent=False)
        self.register_buffer("std", colours[1] * 255, persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        if self.reads == "logmel":
            return rows.float().unsqueeze(1)
        values = (rows.float() - self.mean) / self.std
        if self.reads == "rgbdiff":
            values = values[:, 1:] - values[:, :-1]  # (B, l, H, W, 3)
            return values.permute(0, 1, 4, 2, 3).flatten(1, 2)
        if self.reads == "stacked":
            return torch.cat([values[:, 1], values[:, 1] - values[:, 0]], dim=3).permute(0, 3, 1, 2)
        if self.reads == "flow" and self.clips:
            return values.reshape(*values.shape[:3], -1, 2).permute(0, 4, 3, 1, 2)
        if rows.ndim == 5:
            return values.permute(0, 4, 1, 2, 3)
        return values.permute(0, 3, 1, 2)


def channels(reads: Reads, row_shape: tuple[int, ...], *, clips: bool = False, own: int = 3) -> int:
    """Input channels of a network that reads rows of this shape, of one that takes `clips` or of one of pictures that
    is made for `own`, 3 of colours or 1 of grey."""
    if reads == "flow" and clips:
        return 2
    if reads == "logmel":
        return 1
    if reads == "stacked":
        return 2 * row_shape[-1]
    if reads == "rgb":
        return own  # grey rows become three that are alike, by the means of the colours
    return 3 * (row_shape[0] - 1) if reads == "rgbdiff" else row_shape[-1]
