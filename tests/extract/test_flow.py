"""The backends of flow, maps as bytes, and the engine that makes them."""

from __future__ import annotations

from contextlib import closing
from typing import get_args

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from extract.config import Tvl1
from extract.flow import BACKENDS, DIS_SMALLEST_PX, FlowEngine, flow, from_uint8, to_uint8
from features.errors import UserError
from tests.extract.test_tvl1 import as_grey, distance_px, texture, turned

Grey = npt.NDArray[np.uint8]
BOUND_PX = 20.0


def moving(seed: int = 0, frames: int = 4, size: tuple[int, int] = (48, 56), step: tuple[int, int] = (2, 1)) -> Grey:
    """A stack of frames of a texture that moves by `step` px, x and y, a frame."""
    (h, w), (x, y) = size, step
    picture = as_grey(texture(h + 40, w + 40, seed))
    return np.stack([picture[20 - y * t : 20 - y * t + h, 20 - x * t : 20 - x * t + w] for t in range(frames)])


def made(stacks: Grey, backend: str = "framepool", threads: int = 1) -> Grey:
    with closing(FlowEngine(backend, BOUND_PX, threads=threads)) as engine:
        return engine.finish(engine.start(stacks))


def test_the_backends_are_those_of_the_config() -> None:
    assert get_args(Tvl1.model_fields["backend"].annotation) == BACKENDS


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_backend_finds_the_motion(backend: str) -> None:
    first, second = moving(frames=2, size=(80, 96))
    found = flow(first, second, backend)
    assert found.shape == (2, 80, 96) and found.dtype == np.float32 and found.flags.c_contiguous
    middle = found[:, 20:-20, 20:-20].mean((1, 2))
    assert np.abs(middle - [2, 1]).max() < 0.15


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mirrored_pair_has_the_opposite_x(backend: str) -> None:
    first, second = turned(60, 80)
    found, mirrored = (flow(a, b, backend) for a, b in ((first, second), (first[:, ::-1], second[:, ::-1])))
    assert distance_px(found, mirrored[..., ::-1] * np.reshape([-1, 1], (2, 1, 1))) < 0.1
    maps, other = to_uint8(found, 5.0).astype(int), to_uint8(mirrored[..., ::-1], 5.0).astype(int)
    assert np.abs(255 - other[0] - maps[0]).mean() < 2 and np.abs(other[1] - maps[1]).mean() < 2


def test_opencv_is_asked_for_what_the_docstring_says() -> None:
    theirs = cv2.FarnebackOpticalFlow_create()
    names = ("NumLevels", "PyrScale", "WinSize", "NumIters", "PolyN", "PolySigma", "FastPyramids", "Flags")
    assert [getattr(theirs, f"get{name}")() for name in names] == [5, 0.5, 13, 10, 5, 1.1, False, 0]
    medium = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    assert flow(*turned(60, 80), "dis").transpose(1, 2, 0).tobytes() == medium.calc(*turned(60, 80), None).tobytes()


def test_a_small_picture_leaves_opencv_as_it_was() -> None:
    """One DualTVL1OpticalFlow would keep to the scales of the smallest picture that it saw."""
    before = flow(*turned(60, 80), "opencv")
    flow(*turned(8, 8), "opencv")
    assert flow(*turned(60, 80), "opencv").tobytes() == before.tobytes()


def test_bytes() -> None:
    px = np.array([-25, -20, -10, -0.1, 0, 0.1, 10, 20, 25], np.float32)
    assert to_uint8(px, BOUND_PX).tolist() == [0, 0, 64, 127, 128, 128, 191, 255, 255]
    every = np.arange(256, dtype=np.uint8)
    assert np.array_equal(to_uint8(from_uint8(every, BOUND_PX), BOUND_PX), every)
    assert np.allclose(from_uint8(every, BOUND_PX), -from_uint8(255 - every, BOUND_PX), atol=1e-5)
    inside = np.linspace(-15, 15, 1001, dtype=np.float32)
    back = from_uint8(to_uint8(inside, 15.0), 15.0)
    assert back.dtype == np.float32 and np.abs(back - inside).max() <= 15 / 255 + 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_are_the_flows_of_consecutive_frames(backend: str) -> None:
    stacks = np.stack([moving(0), moving(1, step=(-1, 2))])
    rows = made(stacks, backend)
    assert rows.shape == (2, 48, 56, 6) and rows.dtype == np.uint8
    for row, stack in zip(rows, stacks, strict=True):
        for pair in range(3):
            expected = to_uint8(flow(stack[pair], stack[pair + 1], backend), BOUND_PX)
            assert np.array_equal(row[..., 2 * pair : 2 * pair + 2], expected.transpose(1, 2, 0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_and_company_change_no_byte(backend: str) -> None:
    stacks = np.stack([moving(seed, frames=3, step=(seed, 1)) for seed in range(3)])
    alone = np.concatenate([made(stacks[n : n + 1], backend) for n in range(3)])
    assert made(stacks, backend, threads=3).tobytes() == alone.tobytes()


def test_several_batches_are_on_their_way() -> None:
    batches = [moving(seed, frames=3)[None] for seed in range(3)]
    with closing(FlowEngine("framepool", BOUND_PX, threads=2)) as engine:
        tickets = [engine.start(batch) for batch in batches]
        found = [engine.finish(ticket) for ticket in tickets]
    assert [rows.tobytes() for rows in found] == [made(batch).tobytes() for batch in batches]


def test_a_failure_comes_out_at_the_finish() -> None:
    with closing(FlowEngine("framepool", BOUND_PX, threads=2)) as engine:
        ticket = engine.start(np.zeros((2, 3, 2, 9), np.uint8))
        with pytest.raises(
            UserError, match=r"no flow between these: .* 3 px high and wide or more, got uint8 \(2, 9\)"
        ):
            engine.finish(ticket)


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match=r"no such backend of flow: flow: got 'farnebeck'; did you mean 'farneback'\?"):
        flow(*turned(8, 8), "farnebeck")
    with pytest.raises(UserError, match="no such backend of flow"):
        FlowEngine("tvl1", BOUND_PX)
    with pytest.raises(UserError, match="flow on CUDA: flow: expected backend framepool, got dis; set device: cpu"):
        FlowEngine("dis", BOUND_PX, device="cuda")
    small = np.zeros((DIS_SMALLEST_PX - 1, 300), np.uint8)
    with pytest.raises(UserError, match=r"32 px high and wide or more, got uint8 \(31, 300\)"):
        flow(small, small, "dis")
    with pytest.raises(UserError, match=r"got uint8 \(31, 300\) and uint8 \(300, 31\)"):
        flow(small, small.T, "opencv")


def test_one_batch_of_all_pairs_as_on_cuda() -> None:
    stacks = np.stack([moving(0, 3, (30, 40)), moving(1, 3, (30, 40), (-1, 2))])
    rows = np.empty((2, 30, 40, 4), np.uint8)
    with closing(FlowEngine("framepool", BOUND_PX)) as engine:
        engine._batch(stacks, rows)
    assert np.abs(rows.astype(int) - made(stacks).astype(int)).mean() < 0.1


def test_cuda() -> None:
    import torch

    stacks = np.stack([moving(0), moving(1, step=(-1, 2))])
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="flow on CUDA: flow: expected a CUDA device, got none; set device: cpu"):
            FlowEngine("framepool", BOUND_PX, device="cuda")
        return
    with closing(FlowEngine("framepool", BOUND_PX, device="cuda")) as engine:
        rows = engine.finish(engine.start(stacks))
    assert np.abs(rows.astype(int) - made(stacks).astype(int)).mean() < 0.1
