"""OpenVINO's one core of this process, which lives as long as it does.

The CPU plugin of a core sets the stack that signals are handled on, and puts back the one that it found when it goes.
Of two, the first to go unmaps its own and the second puts just that back: the next signal, the one that was to stop a
job in good order, is a segmentation fault (openvino 2026.4, src/plugins/intel_cpu, SigAltStackSetup)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import openvino

from features.atomic import writing

CORE: Final = openvino.Core()


def save(graph: Any, path: Path) -> None:
    """Write an OpenVINO graph in full precision to `path` (.xml, its weights beside it)."""
    with writing(path):
        try:
            openvino.save_model(graph, path, compress_to_fp16=False)
        except RuntimeError as error:  # how its streams say that a disk is full
            raise OSError(str(error)) from None
