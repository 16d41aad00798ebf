"""Optical flow of grey frames, and the engine that makes uint8 flow maps of stacks of frames.

    u = flow(first, second)                                        # float32 (2, H, W), x then y, px
    with closing(FlowEngine("framepool", bound_px=20.0, threads=2)) as engine:
        rows = engine.finish(engine.start(stacks))                 # uint8 (n, T + 1, H, W) -> uint8 (n, H, W, 2 T)

TV-L1 is ours (`extract.tvl1`; on CUDA `extract.tvl1_torch`) or OpenCV's, which takes some twenty times as long for the
same result. DIS (Kroeger et al. 2016) and Farnebäck (2003), both OpenCV's, are quicker and coarser substitutes.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from features.errors import UserError, nearest

Grey = npt.NDArray[np.uint8]
Maps = npt.NDArray[np.uint8]
Flow = npt.NDArray[np.float32]
BACKENDS: Final = ("framepool", "opencv", "dis", "farneback")
DIS_SMALLEST_PX: Final = 32  # on less, OpenCV 5's writes where it must not


def flow(first: Grey, second: Grey, backend: str = "framepool") -> Flow:
    """The motion from `first` to `second`, uint8 (H, W) each: float32 (2, H, W), x then y, px.

    `backend` is framepool or opencv (TV-L1 with the same parameters), dis (preset medium) or farneback (5 levels of
    1/2, window 13, 10 iterations, polynomials over 5 px with sigma 1.1). Those of OpenCV set it to one thread in this
    process: pairs run side by side instead.

    Raises:
        UserError: no such backend; or frames that are not uint8 of one size, 3 px a side or more, 32 for dis.
    """
    return _method(backend)(first, second)


def to_uint8(flow: Flow, bound_px: float) -> Maps:
    """Flow in px, of any shape, as bytes: 0 is -bound_px or less, 255 is bound_px or more, rest is 128."""
    found: Maps = np.rint(255 * (np.clip(flow, -bound_px, bound_px) + bound_px) / (2 * bound_px)).astype(np.uint8)
    return found


def from_uint8(maps: Maps, bound_px: float) -> Flow:
    """The px that bytes stand for, to bound_px / 255. A map mirrored left to right has 255 - x for its x."""
    found: Flow = maps * np.float32(2 * bound_px / 255) - np.float32(bound_px)
    return found


@dataclass(frozen=True)
class Ticket:
    """Rows that are being made."""

    rows: Maps
    parts: list[Future[None]]


class FlowEngine:
    """Flow maps of stacks of grey frames; several batches can be on their way.

    `backend` as in `flow`; `bound_px` is the motion that 255 stands for. On a CPU, `threads` pairs are computed side by
    side; on CUDA all pairs of a batch in one, and only by framepool. A pair gives the same bytes whatever the threads
    and whatever else is in its batch.

    Raises:
        UserError: no such backend, not on this device, or no such device here.
    """

    def __init__(
        self, backend: str, bound_px: float, *, device: Literal["cpu", "cuda"] = "cpu", threads: int = 1
    ) -> None:
        self._method, self._bound_px, self._device = _method(backend), bound_px, device
        if device == "cuda":
            _check_cuda(backend)
        self._pool = ThreadPoolExecutor(threads if device == "cpu" else 1, "flow")

    def start(self, stacks: Grey) -> Ticket:
        """Take uint8 (n, T + 1, H, W). It is read until `finish`: the caller gives the array up until then."""
        n, frames, h, w = stacks.shape
        rows = np.empty((n, h, w, 2 * (frames - 1)), np.uint8)
        if self._device == "cuda":
            return Ticket(rows, [self._pool.submit(self._batch, stacks, rows)])
        pairs = [(stack, pair) for stack in range(n) for pair in range(frames - 1)]
        return Ticket(rows, [self._pool.submit(self._pair, stacks, rows, *which) for which in pairs])

    def finish(self, ticket: Ticket) -> Maps:
        """uint8 (n, H, W, 2 T), channels x1, y1, x2, y2, ... of the T pairs of consecutive frames of a stack."""
        for part in ticket.parts:
            part.result()
        return ticket.rows

    def close(self) -> None:
        """End the threads; what was not begun is dropped."""
        self._pool.shutdown(cancel_futures=True)

    def _pair(self, stacks: Grey, rows: Maps, stack: int, pair: int) -> None:
        found = self._method(stacks[stack, pair], stacks[stack, pair + 1])
        rows[stack, :, :, 2 * pair : 2 * pair + 2] = to_uint8(found, self._bound_px).transpose(1, 2, 0)

    def _batch(self, stacks: Grey, rows: Maps) -> None:
        import torch

        from extract.tvl1_torch import tvl1_batch

        frames = torch.from_numpy(stacks).to(self._device)
        found = tvl1_batch(frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1)).cpu().numpy()
        n, h, w, channels = rows.shape
        maps = to_uint8(found, self._bound_px).reshape(n, channels, h, w)
        rows[:] = maps.transpose(0, 2, 3, 1)


def _method(backend: str) -> Callable[[Grey, Grey], Flow]:
    from extract.tvl1 import SMALLEST_PX, check, tvl1

    if backend == "framepool":
        return tvl1
    if backend not in BACKENDS:
        raise UserError("no such backend of flow", where="flow", got=repr(backend), fix=nearest(backend, BACKENDS))
    cv2: Any = import_module("cv2")  # its stubs leave out much of it
    cv2.setNumThreads(1)
    makers: dict[str, Callable[[], Any]] = {
        "opencv": cv2.optflow.DualTVL1OpticalFlow_create,
        "dis": lambda: cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM),
        "farneback": cv2.FarnebackOpticalFlow_create,
    }

    def by_opencv(first: Grey, second: Grey) -> Flow:
        check(first, second, smallest_px=DIS_SMALLEST_PX if backend == "dis" else SMALLEST_PX)
        # A fresh one each time: after a small picture, OpenCV's TV-L1 keeps to the few scales that it had.
        return np.ascontiguousarray(makers[backend]().calc(first, second, None).transpose(2, 0, 1))

    return by_opencv


def _check_cuda(backend: str) -> None:
    import torch

    if backend != "framepool":
        raise UserError("flow on CUDA", where="flow", expected="backend framepool", got=backend, fix="set device: cpu")
    if not torch.cuda.is_available():
        raise UserError("flow on CUDA", where="flow", expected="a CUDA device", got="none", fix="set device: cpu")
