"""TV-L1: ours and torch's against the slow reference, against OpenCV, known shifts and measured motion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch

from extract import tvl1 as constants
from extract.media import opened
from extract.tvl1 import tvl1
from extract.tvl1_torch import tvl1_batch
from features.errors import UserError
from tests.extract.slow_tvl1 import slow_tvl1
from tests.media import SHARED, needs_shared

Grey = npt.NDArray[np.uint8]
Flow = npt.NDArray[np.float32]
SIZES = [(30, 40), (15, 23), (47, 33), (16, 16), (3, 3)]


def texture(height: int, width: int, seed: int = 0) -> Any:
    """Smooth noise, grey levels in float."""
    smooth = cv2.GaussianBlur(np.random.default_rng(seed).standard_normal((height, width)), (0, 0), 2)
    return 128 + 50 * smooth / smooth.std()


def as_grey(picture: Any) -> Grey:
    return np.ascontiguousarray(picture.round().clip(0, 255).astype(np.uint8))


def turned(height: int, width: int, seed: int = 0) -> tuple[Grey, Grey]:
    """A texture, and the same moved by about 2 px and a little turned."""
    first = texture(height + 20, width + 20, seed)
    motion = np.array([[1.01, 0.02, -2.2], [-0.01, 0.99, 1.3]])
    second = cv2.warpAffine(first, motion, (width + 20, height + 20), flags=cv2.INTER_CUBIC)
    return as_grey(first[10:-10, 10:-10]), as_grey(second[10:-10, 10:-10])


def by_opencv(first: Grey, second: Grey) -> Flow:
    return np.ascontiguousarray(cv2.optflow.DualTVL1OpticalFlow_create().calc(first, second, None).transpose(2, 0, 1))


def by_torch(first: Grey, second: Grey) -> Flow:
    found: Flow = tvl1_batch(torch.tensor(first)[None], torch.tensor(second)[None])[0].numpy()
    return found


def distance_px(a: Flow, b: Flow) -> float:
    """The mean length of the difference of two flows (2, H, W)."""
    return float(np.hypot(*(a - b)).mean())


def adjacent_frames(path: Path, at: int) -> tuple[Grey, Grey]:
    with opened(path) as container:
        frames = container.decode(video=0)
        first, second = [f.to_ndarray(format="gray") for n, f in zip(range(at + 2), frames, strict=False) if n >= at]
    return first, second


def pair_of_pictures(name: str) -> tuple[Grey, Grey]:
    first, second = (cv2.imread(str(SHARED / "flow" / name.format(n)), cv2.IMREAD_GRAYSCALE) for n in (1, 2))
    return first, second


def test_the_parameters_are_those_of_opencv() -> None:
    theirs = cv2.optflow.DualTVL1OpticalFlow_create()
    got = [getattr(theirs, f"get{name}")() for name in ("Tau", "Lambda", "Theta", "ScalesNumber", "ScaleStep")]
    got += [theirs.getWarpingsNumber(), theirs.getOuterIterations(), theirs.getInnerIterations(), theirs.getEpsilon()]
    names = ("TAU", "LAMBDA", "THETA", "SCALES", "SCALE_STEP", "WARPS", "OUTER", "INNER", "EPSILON")
    assert got == [getattr(constants, name) for name in names]
    assert (theirs.getMedianFiltering(), theirs.getGamma(), theirs.getUseInitialFlow()) == (5, 0, False)


@pytest.mark.parametrize("size", SIZES)
def test_all_take_the_steps_of_the_reference(size: tuple[int, int]) -> None:
    first, second = turned(*size)
    expected = slow_tvl1(first, second)
    assert np.hypot(*expected).mean() > 0.5  # px: there is motion to find
    for version in (tvl1, by_torch, by_opencv):
        assert distance_px(version(first, second), expected) < 1e-3


def test_the_number_of_scales() -> None:
    assert constants.sizes(256, 340) == [(256, 340), (205, 272), (164, 218), (131, 174), (105, 139)]
    assert constants.sizes(20, 400) == [(20, 400), (16, 320)]
    assert constants.sizes(19, 400) == [(19, 400)]


@pytest.mark.parametrize(
    ("version", "shift"), [(tvl1, (1, 0)), (tvl1, (0, 1)), (tvl1, (-1, 0)), (tvl1, (0, -1)), (by_torch, (1, 0))]
)
def test_a_shift_of_one_pixel(version: Any, shift: tuple[int, int]) -> None:
    x, y = shift
    picture = as_grey(texture(120, 140))
    first, second = picture[10:-10, 10:-10], picture[10 - y : 110 - y, 10 - x : 130 - x]
    inside = version(first, second)[:, 16:-16, 16:-16]
    assert np.abs(inside - np.reshape(shift, (2, 1, 1))).max() < 0.05


@pytest.mark.parametrize("version", [tvl1, by_torch])
def test_pictures_without_motion_or_without_texture(version: Any) -> None:
    picture = as_grey(texture(40, 50))
    flat = np.full_like(picture, 7)
    assert np.abs(version(picture, picture)).max() < 1e-6
    assert version(flat, flat + 100).tobytes() == np.zeros((2, 40, 50), np.float32).tobytes()


def test_noise_gives_finite_flow_whatever_the_strides() -> None:
    """Positions far outside of the picture, and views that are not contiguous."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 40, 90), np.uint8)
    first, second = noise[:, ::-1, ::2]
    found = tvl1(first, second)
    assert np.isfinite(found).all() and np.abs(found).max() > 1
    assert np.array_equal(found, tvl1(first.copy(), second.copy()))


def test_mirrored_pictures_give_mirrored_flow() -> None:
    first, second = turned(60, 80)
    found, mirrored = tvl1(first, second), tvl1(first[:, ::-1], second[:, ::-1])[..., ::-1]
    assert distance_px(found, mirrored * np.reshape([-1, 1], (2, 1, 1))) < 0.05
    assert distance_px(found, mirrored) > 1


def test_a_pair_does_not_depend_on_its_batch() -> None:
    """Pairs that come to rest at different times."""
    pairs = [turned(30, 40, seed) for seed in range(2)] + [(as_grey(texture(30, 40)),) * 2]
    first, second = (torch.tensor(np.stack(frames)) for frames in zip(*pairs, strict=True))
    together = tvl1_batch(first, second).numpy()
    for pair, found in zip(pairs, together, strict=True):
        assert by_torch(*pair).tobytes() == found.tobytes()


@pytest.mark.parametrize(
    ("first", "second", "got"),
    [
        (np.zeros((8, 8), np.uint8), np.zeros((8, 9), np.uint8), r"uint8 \(8, 8\) and uint8 \(8, 9\)"),
        (np.zeros((8, 8)), np.zeros((8, 8)), r"float64 \(8, 8\)"),
        (np.zeros((2, 8), np.uint8), np.zeros((2, 8), np.uint8), r"uint8 \(2, 8\)"),
        (np.zeros((1, 8, 8), np.uint8), np.zeros((1, 8, 8), np.uint8), r"uint8 \(1, 8, 8\)"),
    ],
)
def test_what_has_no_flow(first: Any, second: Any, got: str) -> None:
    message = "no flow between these: flow: expected uint8, one shape of {} sides, 3 px high and wide or more, got "
    with pytest.raises(UserError, match=message.format(2) + got):
        tvl1(first, second)
    with pytest.raises(UserError, match=message.format(3)):
        tvl1_batch(torch.tensor(first[0]), torch.tensor(second[0]))


@needs_shared
@pytest.mark.parametrize("at", [10, 30])
def test_adjacent_frames_as_opencv(at: int) -> None:
    first, second = adjacent_frames(SHARED / "ucf6-orig/PlayingPiano/v_PlayingPiano_g03_c02.avi", at)
    assert first.shape == (240, 320)
    expected = by_opencv(first, second)
    assert distance_px(tvl1(first, second), expected) < 0.02 and np.abs(expected).max() > 0.5


@needs_shared
@pytest.mark.slow
def test_twenty_pairs_as_opencv() -> None:
    clips = sorted((SHARED / "ucf6-orig").rglob("*.avi"))[:20]
    pairs = [adjacent_frames(clip, 20 + 3 * n) for n, clip in enumerate(clips)]
    assert len(pairs) == 20
    assert [d for d in (distance_px(tvl1(*pair), by_opencv(*pair)) for pair in pairs) if d > 0.02] == []
    for pair in pairs[:3]:
        assert distance_px(by_torch(*pair), tvl1(*pair)) < 0.02


@needs_shared
@pytest.mark.slow
def test_a_pair_with_large_motion_as_opencv() -> None:
    pair = pair_of_pictures("pyflow_car/car{}.jpg")
    assert distance_px(tvl1(*pair), by_opencv(*pair)) < 0.02


@needs_shared
@pytest.mark.slow
def test_the_error_on_measured_motion_is_that_of_opencv() -> None:
    """KITTI, the half with the smaller motion. It is too far for 5 scales, so neither comes to rest, and one grey level
    of one pixel moves OpenCV's own flow by 0.06 px on average: what is compared is the error."""
    part = np.s_[100:375, 300:940]
    first, second = (np.ascontiguousarray(frame[part]) for frame in pair_of_pictures("kitti/frame{}.png"))
    coded = cv2.imread(str(SHARED / "flow/kitti/flow_gt.png"), cv2.IMREAD_UNCHANGED)[part].astype(np.float32)
    truth, valid = (coded[..., :0:-1].transpose(2, 0, 1) - 2**15) / 64, coded[..., 0] > 0
    ours, theirs = (np.hypot(*(f(first, second) - truth))[valid].mean() for f in (tvl1, by_opencv))
    assert ours <= 1.005 * theirs < 35
