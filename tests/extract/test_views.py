"""Views: several crops of each sample as rows, one after the other, as they are and mirrored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from extract.config import Limits, Pixels, Rgb, Tvl1, recipe
from extract.media import Decoded, decode
from extract.samples import Array, job_of, samples, seen
from extract.scaler import Scaler
from features.errors import UserError
from features.outcome import Outcome
from tests.media import write_video

VIEWS = ("left", "centre", "right", "left_mirrored", "centre_mirrored", "right_mirrored")


@pytest.mark.parametrize("shape", [(5, 9, 3), (9, 5, 3), (5, 5, 3), (6, 9)])
def test_squares_of_a_picture(shape: tuple[int, ...]) -> None:
    image = np.arange(np.prod(shape)).reshape(shape)
    for view in VIEWS:
        cut = seen(image, (4, 4), view)  # type: ignore[arg-type]
        assert cut.shape == (4, 4, *shape[2:])
        cut = cut[:, ::-1] if view.endswith("mirrored") else cut
        place = {"left": 0, "centre": (max(shape[:2]) - 4) // 2, "right": max(shape[:2]) - 4}[view.partition("_")[0]]
        middle = (min(shape[:2]) - 4) // 2
        top, left = (place, middle) if shape[0] > shape[1] else (middle, place)
        assert np.array_equal(cut, image[top : top + 4, left : left + 4])


def rows_of(path: Path, config: Any) -> tuple[list[tuple[int, Array]], Outcome]:
    items = [item for _, item in samples(path, {0: job_of(config, config.transform.recipe())})]
    return [item for item in items if isinstance(item, tuple)], items[-1]  # type: ignore[return-value]


@pytest.mark.parametrize("size", [(64, 48), (48, 64)])
@pytest.mark.parametrize("sampling", [{"kind": "every", "k": 5}, {"kind": "spread", "n": 2, "frames": 3, "stride": 2}])
def test_rows_of_views(tmp_path: Path, size: tuple[int, int], sampling: dict[str, Any]) -> None:
    """Against a loop over the decoded frames; the views of a sample share its time."""
    path = write_video(tmp_path / "v.mp4", frames=11, width=size[0], height=size[1])
    value = {"kind": "pixels", "sampling": sampling, "transform": {"resize": 32, "crop": 28, "views": VIEWS}}
    found, outcome = rows_of(path, Pixels.model_validate(value))
    scale = Scaler(32, 28, "bilinear")
    whole = [(time, scale.whole(frame)) for _, time, frame in decode(path, Limits(), Decoded())]
    clips = [[0], [5], [10]] if sampling["kind"] == "every" else [[0, 2, 4], [6, 8, 10]]
    expected = []
    for clip in clips:
        for view in VIEWS:
            frames = np.stack([seen(whole[f][1], (28, 28), view) for f in clip])  # type: ignore[arg-type]
            expected.append(((whole[clip[0]][0] + whole[clip[-1]][0]) // 2, frames if len(clip) > 1 else frames[0]))
    assert [time for time, _ in found] == [time for time, _ in expected] and outcome.rows == len(expected)
    for (_, row), (_, other) in zip(found, expected, strict=True):
        assert np.array_equal(row, other)
    plain = Pixels.model_validate({**value, "transform": {"resize": 32, "crop": 28}})
    middle, _ = rows_of(path, plain)
    assert all(np.array_equal(row, found[6 * k + 1][1]) for k, (_, row) in enumerate(middle))


def test_views_are_part_of_the_recipe_and_the_middle_alone_is_no_news() -> None:
    plain, both = (
        Pixels.model_validate({"kind": "pixels", "transform": {"resize": 256, "crop": 224, "views": views}})
        for views in (["centre"], ["centre", "centre_mirrored"])
    )
    assert "views" not in recipe(plain)["transform"] and recipe(plain) == recipe(Pixels(kind="pixels"))
    assert recipe(both)["transform"]["views"] == ["centre", "centre_mirrored"]
    network = {"name": "i3d", "library": "framepool", "weights": "w.pt"}
    assert "inflate" not in recipe(Rgb.model_validate({"kind": "rgb", "network": network}))["network"]
    inflated = Rgb.model_validate({"kind": "rgb", "network": {**network, "inflate": "mean"}})
    assert recipe(inflated)["network"]["inflate"] == "mean"


@pytest.mark.parametrize(("size", "whole_px"), [((64, 48), (36, 48)), ((48, 64), (57, 43)), ((80, 40), (36, 72))])
def test_rows_may_be_wider_than_high(tmp_path: Path, size: tuple[int, int], whole_px: tuple[int, int]) -> None:
    """36 by 43 of a picture that is scaled to a short side of 36, or until it is 43 wide."""
    path = write_video(tmp_path / "v.mp4", frames=6, width=size[0], height=size[1])
    value = {
        "kind": "pixels",
        "sampling": {"kind": "every", "k": 5},
        "transform": {"resize": 36, "crop": 36, "width": 43},
    }
    found, _ = rows_of(path, Pixels.model_validate(value))
    scale = Scaler(36, 36, "bilinear", width_px=43)
    wholes = [scale.whole(frame) for number, _, frame in decode(path, Limits(), Decoded()) if number % 5 == 0]
    assert [whole.shape for whole in wholes] == [(*whole_px, 3)] * 2
    top, left = (whole_px[0] - 36) // 2, (whole_px[1] - 43) // 2
    for (_, row), whole in zip(found, wholes, strict=True):
        assert np.array_equal(row, whole[top : top + 36, left : left + 43])
    if size == (64, 48):
        assert np.array_equal(wholes[0], Scaler(36, 36, "bilinear").whole(next(decode(path, Limits(), Decoded()))[2]))
    value["transform"] |= {"views": ["left", "right_mirrored"]}
    ends, _ = rows_of(path, Pixels.model_validate(value))
    down, right = (whole_px[0] - 36, 0) if whole_px[0] - 36 > whole_px[1] - 43 else (0, whole_px[1] - 43)
    assert np.array_equal(ends[0][1], wholes[0][:36, :43])
    assert np.array_equal(ends[1][1], wholes[0][down : down + 36, right : right + 43][:, ::-1])


def test_a_width_is_of_rows_that_stay_pictures() -> None:
    plain = Pixels.model_validate({"kind": "pixels", "transform": {"resize": 256, "crop": 256}})
    wide = Pixels.model_validate({"kind": "pixels", "transform": {"resize": 256, "crop": 256, "width": 340}})
    assert "width" not in recipe(plain)["transform"] and recipe(wide)["transform"]["width"] == 340
    with pytest.raises(UserError, match="crop, the height, beside width"):
        Pixels.parse({"kind": "pixels", "transform": {"width": 340}}, "c.yaml")
    network = {"name": "resnet18", "weights": "DEFAULT"}
    with pytest.raises(UserError, match="unknown key"):
        Rgb.parse({"kind": "rgb", "network": network, "transform": {"crop": 224, "width": 340}}, "c.yaml")


def test_flow_of_mirrored_frames_is_mirrored_flow(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", frames=4)
    value = {"kind": "tvl1", "sampling": {"kind": "segments", "n": 1}, "pairs": 1}
    value |= {"transform": {"resize": 32, "crop": 32, "views": ["centre", "centre_mirrored"]}}
    (_, plain), (_, mirrored) = rows_of(path, Tvl1.model_validate(value))[0]
    assert plain.shape == (2, 32, 32) and np.array_equal(mirrored, plain[:, :, ::-1])


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(UserError, match=r"each view once, not left, left"):
        Pixels.parse({"kind": "pixels", "transform": {"views": ["left", "left"]}}, "here")
    network = {"name": "resnet18", "weights": "DEFAULT"}
    with pytest.raises(UserError, match=r"no transform.views beside a source"):
        Rgb.parse({"kind": "rgb", "source": "p", "network": network, "transform": {"views": ["left"]}}, "here")
