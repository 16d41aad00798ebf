"""Rows as networks read them: pictures, clips, flow, differences, both, sound."""

from __future__ import annotations

import pytest
import torch

from extract.networks import (
    FromRows,
    Reads,
    build,
    channels,
)
from tests.extract.photos import relative

MEAN, STD = (0.1, 0.2, 0.3), (0.2, 0.3, 0.7)


def bytes_of(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_rows_of_pictures_and_clips() -> None:
    rows = bytes_of(2, 4, 5, 6, 3)  # (B, T, H, W, C)
    clips = FromRows("rgb", MEAN, STD)(rows)
    assert clips.shape == (2, 3, 4, 5, 6)
    images = FromRows("rgb", MEAN, STD)(rows[:, 1])
    assert torch.equal(images, clips[:, :, 1])
    for b, t, y, x, c in [(0, 0, 0, 0, 0), (1, 3, 4, 5, 2), (0, 2, 1, 3, 1)]:
        expected = (int(rows[b, t, y, x, c]) / 255 - MEAN[c]) / STD[c]
        assert float(clips[b, c, t, y, x]) == pytest.approx(expected, abs=1e-5)


def test_rows_of_flow() -> None:
    rows = bytes_of(2, 5, 6, 4)
    maps = FromRows("flow", MEAN, STD)(rows)
    assert maps.shape == (2, 4, 5, 6) and channels("flow", (5, 6, 4)) == 4
    assert float(maps[1, 3, 4, 5]) == pytest.approx((int(rows[1, 4, 5, 3]) - 128) / 255 / 0.4, abs=1e-5)
    assert not FromRows("flow", MEAN, STD)(torch.full((1, 2, 2, 2), 128, dtype=torch.uint8)).any()


def test_rows_of_differences() -> None:
    rows = bytes_of(2, 4, 5, 6, 3)
    maps = FromRows("rgbdiff", MEAN, STD)(rows)
    assert maps.shape == (2, 9, 5, 6) and channels("rgbdiff", (4, 5, 6, 3)) == 9
    for pair in range(3):
        for c in range(3):
            expected = (int(rows[1, pair + 1, 2, 3, c]) - int(rows[1, pair, 2, 3, c])) / 255 / STD[c]
            assert float(maps[1, 3 * pair + c, 2, 3]) == pytest.approx(expected, abs=1e-5)


def test_rows_of_pictures_above_their_differences() -> None:
    rows = bytes_of(2, 2, 5, 6, 3)
    found = FromRows("stacked", MEAN, STD)(rows)
    values = (rows.float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(found[:, :3], values[:, 1].permute(0, 3, 1, 2))
    torch.testing.assert_close(found[:, 3:], (values[:, 1] - values[:, 0]).permute(0, 3, 1, 2), rtol=1e-4, atol=1e-5)
    assert channels("stacked", (2, 5, 6, 3)) == 6


def test_rows_of_sound() -> None:
    patches = torch.randn(2, 96, 64)
    assert torch.equal(FromRows("logmel", (0.0,), (1.0,))(patches), patches[:, None])
    assert channels("logmel", (96, 64)) == 1 and channels("rgb", (5, 6, 3)) == channels("rgb", (4, 5, 6, 3)) == 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("reads", "shape"),
    [
        ("rgbdiff", (3, 64, 64, 3)),
        *(
            pytest.param(*row, marks=pytest.mark.slow)
            for row in [("rgb", (64, 64, 3)), ("flow", (64, 64, 4)), ("logmel", (96, 64))]
        ),
    ],
)
def test_rows_and_a_layer_convert_to_openvino(reads: Reads, shape: tuple[int, ...]) -> None:
    import openvino

    network = build("test_resnet", in_chans=channels(reads, shape), reads=reads, layer="layer2")
    whole = torch.nn.Sequential(FromRows(reads, MEAN, STD), network.trunk).eval()
    rows = torch.randn(2, *shape) if reads == "logmel" else bytes_of(2, *shape)
    with torch.inference_mode():
        expected = whole(rows).numpy()
        traced = torch.jit.trace(whole, rows, check_trace=False)  # type: ignore[no-untyped-call]
    kind = openvino.Type.f32 if reads == "logmel" else openvino.Type.u8
    converted = openvino.convert_model(traced, input=[(list(rows.shape), kind)])
    compiled = openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert relative(compiled(rows.numpy())[0], expected) < 1e-5
