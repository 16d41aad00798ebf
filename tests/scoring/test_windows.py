"""A window of an untrimmed video has the rows of a clip that is cut there, against choosing frames by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from extract.config import Limits
from extract.media import Decoded, decode
from extract.samples import Job, SoundJob, Told, parts
from extract.sampling import Window, rows
from extract.samplings import Clips, Every, Fps, Segments, Uniform
from extract.scaler import Scaler
from features.outcome import Outcome
from pipelines.scoring.machine import merged
from tests.hostile import sound, write

SAMPLINGS: dict[str, tuple[Any, int]] = {
    "uniform": (Uniform(n=4), 1),
    "every": (Every(kind="every", k=3), 1),
    "fps": (Fps(kind="fps", fps=7.0), 1),
    "snippets": (Segments(n=2, length=3), 3),
    "clips": (Clips(frames=4, hop=2), 4),
}


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("window", [Window(1_000_000, 1_000_000), Window(700_000, 300_000), Window(9_000_000, 1)])
def test_a_window_is_the_clip_that_is_cut_there(tmp_path: Path, name: str, window: Window) -> None:
    sampling, frames = SAMPLINGS[name]
    steps = np.random.default_rng(1).integers(20, 90, 60)  # ms: a rate that varies
    path = write(tmp_path / "v.mkv", times_ms=(steps.cumsum() + 500).tolist())
    job = Job(sampling, 32, 32, "bilinear", Limits(), frames, window=window)
    told = Told()
    *found, (_, _, outcome) = parts(path, {0: job}, told)
    got: dict[int, list[tuple[int, bytes]]] = {}
    for _, part, item in found:
        got.setdefault(part, []).append((item[0], np.ascontiguousarray(item[1]).tobytes()))  # type: ignore[index]
    scale = Scaler(32, 32, "bilinear")
    shown = [(time_us, scale(frame)) for _, time_us, frame in decode(path, Limits(), Decoded())]
    times = np.array([time_us for time_us, _ in shown])
    expected: dict[int, list[tuple[int, bytes]]] = {}
    for number in range(window.count(told.duration_us)):
        start = times[0] + number * window.stride_us
        inside = np.flatnonzero((times >= start) & (times < start + window.span_us))
        for row in rows(sampling, times[inside], frames):
            chosen = [shown[inside[n]] for n in row]
            at = [time_us for time_us, _ in chosen]
            image = chosen[0][1] if frames == 1 else np.stack([image for _, image in chosen])
            expected.setdefault(number, []).append(((min(at) + max(at)) // 2, np.ascontiguousarray(image).tobytes()))
    assert got == expected and len(got) >= 1
    assert isinstance(outcome, Outcome) and outcome.rows == len(found)


def test_patches_belong_to_the_windows_that_hold_their_middle(tmp_path: Path) -> None:
    path = sound(tmp_path / "tone.mp3", seconds=6)
    whole = [item for _, _, item in parts(path, {0: SoundJob(0.48, 0.01, Limits())}, Told())][:-1]
    window, told = Window(2_000_000, 1_000_000), Told()
    *found, (_, _, outcome) = parts(path, {0: SoundJob(0.48, 0.01, Limits(), window)}, told)
    start = told.start_us or 0
    for number in range(7):
        inside = [item[0] for item in whole if 0 <= item[0] - start - number * 1_000_000 < 2_000_000]  # type: ignore[index]
        assert [item[0] for _, part, item in found if part == number] == inside  # type: ignore[index]
    assert isinstance(outcome, Outcome) and outcome.rows == len(found)
    assert told.duration_us == pytest.approx(6e6, rel=0.02)


@pytest.mark.parametrize(
    ("duration_s", "span_s", "stride_s", "count"),
    [(0, 1, 1, 1), (1, 1, 1, 1), (1.1, 1, 1, 2), (4, 1, 0.5, 7), (9, 10, 1, 1)],
)
def test_the_last_window_reaches_the_end(duration_s: float, span_s: float, stride_s: float, count: int) -> None:
    window = Window(round(span_s * 1e6), round(stride_s * 1e6))
    assert window.count(round(duration_s * 1e6)) == count
    assert (count - 1) * stride_s + span_s >= duration_s


def test_neighbours_of_one_label_are_one_segment() -> None:
    """A label that changes, a window without one and a gap each end a segment; another run has its own."""

    def row(start: float, label: str | None, probability: float) -> dict[str, Any]:
        return {
            "source": "s", "video": "v", "run": "r", "start_s": start, "end_s": start + 2,
            "label": label, "probability": probability,
        }  # fmt: skip

    rows = [row(0, "a", 0.5), row(1, "a", 0.7), row(2, "b", 0.9), row(3, "a", 0.4), row(4, None, 0.0), row(9, "a", 1.0)]
    found = [(s["start_s"], s["end_s"], s["label"], s["windows"]) for s in merged(rows)]
    assert found == [(0, 3, "a", 2), (2, 4, "b", 1), (3, 5, "a", 1), (9, 11, "a", 1)]
    assert [s["probability"] for s in merged(rows)] == pytest.approx([0.6, 0.9, 0.4, 1.0])
    assert merged([row(0, None, 0.0)]) == merged([]) == []
