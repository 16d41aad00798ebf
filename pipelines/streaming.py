"""A trained end-to-end head on frames as they come, on OpenVINO: one call a frame.

model = export(head, Path("vtn"))                      # vtn/model.xml: frame and state in, logits and state out
stream = Stream(model, precision="bf16", threads=2)
logits = stream(frame)                                 # (S,S,3) uint8 -> (K,) float32
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from features.atomic import make_folder
from heads.end_to_end import EndToEnd
from heads.streaming import Online

_HINTS: Final = {"fp32": "f32", "bf16": "bf16"}


def export(head: EndToEnd, folder: Path) -> Path:
    """Write the step of `head` as an OpenVINO model into `folder`, which is made; returns the path of its xml.

    Inputs are the frame (1,S,S,C) uint8 and the state, outputs the logits (1,K) and the next state, in that order.
    """
    import openvino
    import torch

    from extract.openvino_core import save

    online = Online(head).eval()
    frame = torch.zeros(online.frame_shape, dtype=torch.uint8)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is what OpenVINO converts; torch would like it to go
        inputs = (frame, *online.begin(frame))
        traced = torch.jit.trace(online, inputs, check_trace=False)  # type: ignore[no-untyped-call]
    kinds = {torch.uint8: openvino.Type.u8, torch.float32: openvino.Type.f32}
    model = openvino.convert_model(traced, input=[(tuple(x.shape), kinds[x.dtype]) for x in inputs])
    path = make_folder(folder) / "model.xml"
    save(model, path)
    return path


class Stream:
    """Scores of the last frames, after every new one. The first stands for those that never were."""

    def __init__(self, model: Path, *, precision: Literal["fp32", "bf16"] = "fp32", threads: int = 1) -> None:
        """`model` as `export` wrote it."""
        from extract.openvino_core import CORE

        options = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        compiled = CORE.compile_model(CORE.read_model(model), "CPU", options)
        self._request = request = compiled.create_infer_request()
        self._frame, self._logits = request.get_input_tensor(0).data, request.get_output_tensor(0).data
        states = range(1, len(compiled.outputs))
        self._states = [(request.get_input_tensor(k).data, request.get_output_tensor(k).data) for k in states]
        self._more = [request.get_input_tensor(k).data for k in range(2, len(compiled.inputs))]
        self._begun = False

    def __call__(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """(S,S,C) uint8 -> logits (K,), a copy."""
        self._frame[0] = frame
        if not self._begun:
            self._begin(frame)
        self._request.infer()
        for given, found in self._states:  # what is known now is what was known before the next frame
            given[:] = found
        logits: npt.NDArray[np.float32] = self._logits[0].copy()
        return logits

    def begin_again(self) -> None:
        """The next frame is the first of another stream."""
        self._begun = False

    def _begin(self, frame: npt.NDArray[np.uint8]) -> None:
        """Fill the ring with the embedding of the first frame, which the network gives as its newest."""
        for state in self._more:
            state[0] = frame
        (ring, newest), *_ = self._states
        ring[:] = 0
        self._request.infer()
        ring[:] = newest[:, -1:]
        self._begun = True
