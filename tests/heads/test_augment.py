"""TSN's crops: the thirteen places, the pairs of scales, and resampling against a crop and resize by hand."""

from __future__ import annotations

import torch
from torch.nn.functional import interpolate

from heads.augment import MOTION_SCALES, PLACES, SCALES, centre_box, random_boxes, resample, sizes


def test_thirteen_places_and_ten_sizes() -> None:
    assert len(set(PLACES)) == 13
    pairs = sizes(SCALES).tolist()
    assert len(pairs) == 10  # 4 squares, 3 neighbours both ways round
    assert [1.0, 0.75] not in pairs and [1.0, 0.875] in pairs


def test_boxes_lie_inside_and_are_mirrored_half_the_time() -> None:
    boxes = random_boxes(2000, 48, 64, mirror=True, generator=torch.Generator().manual_seed(0))
    left, right = boxes[:, [1, 3]].min(dim=1).values, boxes[:, [1, 3]].max(dim=1).values
    assert (left >= 0).all() and (right <= 64).all() and (boxes[:, 0] >= 0).all() and (boxes[:, 2] <= 48).all()
    assert set((boxes[:, 2] - boxes[:, 0]).tolist()) == {48.0, 42.0, 36.0, 31.0}  # floor(48 * scale)
    assert abs(float((boxes[:, 1] > boxes[:, 3]).float().mean()) - 0.5) < 0.05
    assert (random_boxes(50, 48, 64, mirror=False, generator=None)[:, 1] <= 16 + 17).all()
    motion = random_boxes(200, 48, 64, mirror=False, generator=torch.Generator().manual_seed(0), scales=MOTION_SCALES)
    assert set((motion[:, 2] - motion[:, 0]).tolist()) == {48.0, 42.0, 36.0}


def test_resampling_is_crop_and_bilinear_resize() -> None:
    maps = torch.rand(2, 3, 20, 24)
    whole = resample(maps[:, :, :, :20], torch.tensor([[0.0, 0, 20, 20]]).expand(2, 4), 20)
    torch.testing.assert_close(whole, maps[:, :, :, :20], atol=1e-5, rtol=1e-5)
    crop = resample(maps, torch.tensor([[2.0, 4, 12, 14], [0, 24, 20, 4]]), 20)
    expected = interpolate(maps[:1, :, 2:12, 4:14], size=20, mode="bilinear", align_corners=False)
    torch.testing.assert_close(crop[:1, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(crop[1], maps[1, :, :, 4:24].flip(-1), atol=1e-5, rtol=1e-5)


def test_centre_box() -> None:
    assert centre_box(20, 24, 16).tolist() == [2, 4, 18, 20]
    assert centre_box(20, 24, 64).tolist() == [0, 2, 20, 22]


def test_crops_are_of_fp32_places_in_a_bf16_step() -> None:
    maps = torch.linspace(0, 255, 256).expand(1, 3, 256, 256)
    boxes = random_boxes(1, 256, 256, mirror=True, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = resample(maps, boxes, 224)
    assert torch.equal(found, resample(maps, boxes, 224))
