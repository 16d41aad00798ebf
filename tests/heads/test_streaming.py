"""A stream gives what clips give, frame by frame, in torch and in OpenVINO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import heads
from features.errors import UserError
from heads.streaming import Online
from pipelines.streaming import Stream, export
from tests.heads.made import SMALL_CNN, rows

CASES: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "vtn": ("vtn", (4, 32, 32, 3), {"dim": 16, "heads": 2, "blocks": 2}),
    "vtn-windows": ("vtn", (32, 32, 3), {"dim": 16, "heads": 2, "blocks": 1, "profile": "code", "encoder_frames": 4}),
    "vtn-short": ("vtn", (4, 32, 32, 3), {"dim": 16, "heads": 2, "blocks": 1, "length": 3}),
    "vtn-rgbdiff": ("vtn", (4, 32, 32, 3), {"dim": 16, "heads": 2, "blocks": 1, "reads": "rgbdiff"}),
    "vtn-codes": (
        "vtn",
        (4, 32, 32, 3),
        {"dim": 16, "heads": 2, "blocks": 1, "codes": "+", "classes": ("none", "a", "b", "a+b", "c")},
    ),
    "stacked_lstm": ("stacked_lstm", (4, 32, 32, 3), {"hidden": 9}),
}
ALL = pytest.mark.parametrize("case", CASES)


def make(case: str, **more: Any) -> Any:
    kind, shape, options = CASES[case]
    options = {**options, **more}
    frames, reads = options.pop("encoder_frames", 16), options.pop("reads", "rgb")
    torch.manual_seed(0)
    cnn = {**SMALL_CNN, "crop_px": 32, "frames": frames, "reads": reads}
    return heads.build(kind, {"pixels": shape}, 5, network=cnn, **options).eval()


def of_clip(head: Any, frames: torch.Tensor) -> torch.Tensor:
    """(4,32,32,3) -> (K,)."""
    clip = frames[None, None] if head.encoder.clips else frames[None]
    return head({"pixels": clip}, {"pixels": torch.ones(clip.shape[:2], dtype=torch.bool)})[0]  # type: ignore[no-any-return]


@torch.no_grad()
def expected(head: Any, film: torch.Tensor) -> list[torch.Tensor]:
    """After each frame the score of a clip of the last four; at first the first frame stands for those before."""
    before = film[:1].expand(3, -1, -1, -1)
    whole = torch.cat([before, film])
    return [of_clip(head, whole[t : t + 4]) for t in range(len(film))]


@ALL
def test_a_stream_gives_what_clips_give(case: str) -> None:
    head, film = make(case), rows((32, 32, 3), 7)
    online = Online(head)
    state = online.begin(film[:1])
    with torch.no_grad():
        for t, score in enumerate(expected(head, film)):
            logits, *rest = online(film[t : t + 1], *state)
            state = tuple(rest)
            torch.testing.assert_close(logits[0], score, rtol=1e-4, atol=1e-5)


SLOW = [pytest.param(case, marks=pytest.mark.slow) for case in ("vtn-rgbdiff", "stacked_lstm")]


@pytest.mark.parametrize("case", ["vtn", *SLOW])
def test_openvino_gives_the_same(case: str, tmp_path: Path) -> None:
    head, film = make(case), rows((32, 32, 3), 6)
    stream = Stream(export(head, tmp_path / "model"))
    for t, score in enumerate(expected(head, film)):
        np.testing.assert_allclose(stream(film[t].numpy()), score.numpy(), rtol=1e-3, atol=1e-4)


def test_a_stacked_encoder_knows_the_frame_before_the_first() -> None:
    """From the fifth frame on: the difference of the oldest token is that of the film, not zero."""
    head, film = make("vtn", reads="stacked"), rows((32, 32, 3), 6)
    online = Online(head)
    state = online.begin(film[:1])
    with torch.no_grad():
        for t in range(6):
            logits, *rest = online(film[t : t + 1], *state)
            state = tuple(rest)
        images, _ = head.encoder.images(film[None, 1:], torch.ones(1, 5, dtype=torch.bool))
        tokens = head.encoder.network.trunk(images[0, 1:])[None]
        there = {"pixels": torch.ones(1, 4, dtype=torch.bool)}
        torch.testing.assert_close(logits, head.head({"pixels": tokens}, there), rtol=1e-4, atol=1e-5)


def test_flow_does_not_stream() -> None:
    network = {**SMALL_CNN, "reads": "flow", "frames": 2}
    head: Any = heads.build("vtn", {"tvl1": (32, 32, 2)}, 3, network=network)
    with pytest.raises(UserError, match="flow does not stream frame by frame"):
        Online(head)
