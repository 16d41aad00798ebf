"""TSN's multi-scale corner crop and mirroring, for a whole batch in one resampling (TSN, 2016, §3.2).

A crop's height and width are scales of the short side, at most one step apart; its place is one of 13: corners,
middle, edges and quarters. All rows of a video share one crop.
Legend: B videos, R rows of the batch, C channels, H W height and width of a map.

    boxes = random_boxes(B, H, W, mirror=True, generator=generator)
    crops = resample(maps, boxes[video_of_row], size_px=224)    # (R,C,H,W) float -> (R,C,224,224)
    crops = crop_rows(rows, boxes, size_px=224, flow=False)     # rows as they are stored: uint8, channels last
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

SCALES: Final = (1.0, 0.875, 0.75, 0.66)  # of colours
MOTION_SCALES: Final = SCALES[:3]  # of flow, and in the authors' code of differences
# (down, right) in quarters of the room that the crop leaves
PLACES: Final = (
    *((0, 0), (0, 4), (4, 0), (4, 4), (2, 2)),  # corners, middle
    *((2, 0), (2, 4), (4, 2), (0, 2)),  # edges
    *((1, 1), (1, 3), (3, 1), (3, 3)),  # quarters
)


def sizes(scales: Sequence[float]) -> Tensor:
    """(K,2): the pairs of `scales` that a crop's height and width may have."""
    return torch.tensor([(h, w) for i, h in enumerate(scales) for j, w in enumerate(scales) if abs(i - j) <= 1])


def random_boxes(
    count: int,
    height_px: int,
    width_px: int,
    *,
    mirror: bool,
    generator: torch.Generator | None,
    scales: Sequence[float] = SCALES,
) -> Tensor:
    """(B,4): top, left, bottom, right of `count` random crops, in pixels; left > right is mirrored."""
    pairs = sizes(scales)
    size = pairs[torch.randint(len(pairs), (count,), generator=generator)] * min(height_px, width_px)
    place = torch.tensor(PLACES)[torch.randint(len(PLACES), (count,), generator=generator)] / 4
    size, room = size.floor(), torch.tensor([height_px, width_px])
    first = (place * (room - size)).floor()
    boxes = torch.cat([first, first + size], dim=1)
    if mirror:
        boxes = mirrored(boxes, generator)
    return boxes


def jittered_boxes(
    count: int, height_px: int, width_px: int, *, mirror: bool, generator: torch.Generator | None
) -> Tensor:
    """(B,4), as `random_boxes`: squares anywhere, of 224 px where the short side was scaled to 256 to 320 px."""
    short = min(height_px, width_px)
    size = (short * 224 / (256 + 64 * torch.rand(count, 1, generator=generator))).expand(-1, 2)
    first = torch.rand(count, 2, generator=generator) * (torch.tensor([height_px, width_px]) - size)
    boxes = torch.cat([first, first + size], dim=1)
    if mirror:
        boxes = mirrored(boxes, generator)
    return boxes


def mirrored(boxes: Tensor, generator: torch.Generator | None) -> Tensor:
    """(B,4) -> (B,4): each of them mirrored or not, with equal chances."""
    flip = torch.rand(len(boxes), generator=generator) < 0.5
    return torch.where(flip[:, None], boxes[:, [0, 3, 2, 1]], boxes)


def centre_box(height_px: int, width_px: int, size_px: int) -> Tensor:
    """(4,): the middle `size_px` square; the largest middle square of a map that is smaller."""
    side = min(height_px, width_px, size_px)
    top, left = (height_px - side) // 2, (width_px - side) // 2
    return torch.tensor([top, left, top + side, left + side], dtype=torch.float32)


def centre(maps: Tensor, size_px: int) -> Tensor:
    """(R,C,H,W) float -> (R,C,size,size): `resample` of `centre_box` without a grid, for graphs that are exported."""
    side = min(*maps.shape[-2:], size_px)
    top, left = ((px - side) // 2 for px in maps.shape[-2:])
    crops = maps[..., top : top + side, left : left + side]
    if side == size_px:
        return crops
    return nn.functional.interpolate(crops, (size_px, size_px), mode="bilinear", align_corners=False)


def resample(maps: Tensor, boxes: Tensor, size_px: int) -> Tensor:
    """(R,C,H,W) float, (R,4) -> (R,C,size,size): each box of each map, bilinear. In fp32 under autocast, too, as
    bf16 has no places between the pixels of a map."""
    if not torch.compiler.is_compiling() and not len(maps):  # of a process without rows
        return maps.new_zeros(0, maps.shape[1], size_px, size_px)
    with torch.autocast(maps.device.type, enabled=False):
        return _sampled(maps, boxes, size_px)


def _sampled(maps: Tensor, boxes: Tensor, size_px: int) -> Tensor:
    height_px, width_px = maps.shape[-2:]
    span = torch.tensor([height_px, width_px], device=maps.device)
    boxes = boxes.to(maps.device)
    middle = (boxes[:, :2] + boxes[:, 2:]) / span - 1  # in [-1, 1], down and right
    half = (boxes[:, 2:] - boxes[:, :2]) / span
    theta = maps.new_zeros(len(maps), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = half[:, 1], half[:, 0]
    theta[:, :, 2] = middle.flip(1)
    grid = nn.functional.affine_grid(theta, [len(maps), maps.shape[1], size_px, size_px], align_corners=False)
    return nn.functional.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)


def crop_rows(rows: Tensor, boxes: Tensor | None, size_px: int, *, flow: bool) -> Tensor:
    """(R,*T,H,W,C) uint8 or float, (R,4) -> (R,*T,size,size,C) float32: the box of each row, alike in all its frames,
    or the middle; of mirrored `flow`, what moved right moves left."""
    count, channels = rows.shape[0], rows.shape[-1]  # no len(): an exported graph must not fix it
    clips = rows.flatten(1, -4) if rows.ndim > 4 else rows[:, None]  # (R,T,H,W,C)
    images = clips.permute(0, 1, 4, 2, 3).flatten(1, 2).float()  # (R,T*C,H,W)
    images = centre(images, size_px) if boxes is None else resample(images, boxes, size_px)
    images = images.reshape(count, clips.shape[1], channels, size_px, size_px).permute(0, 1, 3, 4, 2)  # (R,T,H,W,C)
    if flow and boxes is not None:
        images = turned(images, boxes[:, 1] > boxes[:, 3])
    return images.reshape(count, *rows.shape[1:-3], size_px, size_px, channels)


def turned(flow: Tensor, mirrored: Tensor) -> Tensor:
    """(R,...,2l) of 0 to 255, (R,) bool: x channels the other way round where the picture is mirrored."""
    across = torch.arange(flow.shape[-1], device=flow.device) % 2 == 0
    return torch.where(across & mirrored.view(-1, *[1] * (flow.ndim - 1)), 255 - flow, flow)
