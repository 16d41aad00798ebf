"""What a worker of the simulation in `benchmarks.score` does: it sleeps as long as a shard takes, and answers as much.

Imports nothing of ours, so that 64 workers fit on a small machine.
"""

from __future__ import annotations

import sys
import time
from typing import Any


def shard(seconds: float, rows: int, classes: int, number: int) -> list[dict[str, Any]]:
    """`rows` rows of `classes` logits after `seconds`."""
    heavy = {"torch", "openvino"} & sys.modules.keys()
    if heavy:
        raise RuntimeError(f"a worker of the simulation imports {heavy}")
    time.sleep(seconds)
    logits = [float(k) for k in range(classes)]
    return [
        {
            "source": "archive.tar",
            "video": f"{number:06d}/{n:03d}.mp4",
            "run": "simulated",
            "duration_s": 10.0,
            "label": "0",
            "probability": 1.0,
            "labels": ["0"],
            "probabilities": [1.0],
            "logits": logits,
            "outcome": "ok",
            "reason": "",
        }
        for n in range(rows)
    ]
