"""Every sampler against a slow, readable reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extract.sampling import equal_intervals, rows
from extract.samplings import Clips, Every, Fps, Sampling, Segments, Spread, Uniform

counts, small = st.integers(1, 400), st.integers(1, 40)


def times(total: int, step_us: int = 40_000) -> np.ndarray:
    return np.arange(total, dtype=np.int64) * step_us


@given(counts, small)
def test_uniform(total: int, n: int) -> None:
    found = []
    for j in range(n):
        middle = int((j + 0.5) * total / n)
        if middle not in found:
            found.append(middle)
    assert rows(Uniform(n=n), times(total)).tolist() == [[f] for f in found]


@given(counts, small)
def test_every(total: int, k: int) -> None:
    assert rows(Every(kind="every", k=k), times(total)).tolist() == [[f] for f in range(total) if f % k == 0]


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(-1000, 1000), st.sampled_from([1, 2, 7.5, 30])
)
def test_fps(steps_ms: list[int], start_ms: int, fps: float) -> None:
    """The frame on screen at each tick, or due within a millisecond and half a step, by true time, whatever the steps
    between frames and the first time are."""
    at_us = (start_ms + np.cumsum([0, *steps_ms])) * 1000
    early_us = min(1000.0, float(np.median(steps_ms)) * 500)
    found: list[int] = []
    tick = 0
    while tick / fps * 1e6 < at_us[-1] - at_us[0] + early_us:
        shown = max(f for f in range(len(at_us)) if at_us[f] - at_us[0] <= tick / fps * 1e6 + early_us)
        if shown not in found:
            found.append(shown)
        tick += 1
    assert rows(Fps(kind="fps", fps=fps), at_us).tolist() == [[f] for f in found]


def test_fps_of_times_that_a_container_rounded_to_milliseconds() -> None:
    """Every frame, every second one, every third, of 30 a second."""
    at_us = np.round(np.arange(300) * 1000 / 30).astype(np.int64) * 1000
    for fps, every in ((30, 1), (15, 2), (10, 3)):
        assert rows(Fps(kind="fps", fps=fps), at_us)[:, 0].tolist() == list(range(0, 300, every))


@given(counts, small, st.integers(1, 20))
def test_segments(total: int, n: int, length: int) -> None:
    """TSN's test snippets: the middle one of the ``total - length + 1`` starts of each of n equal segments."""
    found = []
    if total >= length:
        for j in range(n):
            tick = (total - length + 1) / n
            start = int(tick / 2 + tick * j)
            if abs(tick / 2 + tick * j - round(tick / 2 + tick * j)) < 1e-9:  # floating point may fall short of it
                start = round(tick / 2 + tick * j)
            if [start + i for i in range(length)] not in found:
                found.append([start + i for i in range(length)])
    chosen = rows(Segments(n=n, length=length), times(total), length)
    assert chosen.tolist() == found and chosen.shape == (len(found), length)


@pytest.mark.parametrize("total", [3, 25, 26, 100, 101, 250])
def test_segments_are_the_published_formula(total: int) -> None:
    """mmaction2 and TSN sample int(tick / 2 + tick * x) for x in range(n): n distinct frames where there are enough."""
    tick = total / 25
    published = sorted({int(tick / 2.0 + tick * x) for x in range(25)})
    assert rows(Segments(n=25), times(total)).ravel().tolist() == published


@given(counts, st.integers(1, 20), st.integers(1, 5), st.none() | small)
def test_clips(total: int, frames: int, stride: int, hop: int | None) -> None:
    found, start = [], 0
    while True:
        clip = [start + i * stride for i in range(frames)]
        if clip[-1] >= total:
            if not found:
                found.append([f % total for f in clip])
            break
        found.append(clip)
        start += hop or frames * stride
    chosen = rows(Clips(frames=frames, stride=stride, hop=hop), times(total), frames, stride)
    assert chosen.tolist() == found


@given(counts, st.integers(1, 12), st.integers(1, 20), st.integers(1, 5))
def test_spread(total: int, n: int, frames: int, stride: int) -> None:
    """From the first frame to the last; each start once; shorter than a clip, the video again and again."""
    last = max(0, total - 1 - (frames - 1) * stride)
    starts = [last // 2] if n == 1 else sorted({j * last // (n - 1) for j in range(n)})
    expected = [[(start + i * stride) % total for i in range(frames)] for start in starts]
    sampling = Spread(kind="spread", n=n, frames=frames, stride=stride)
    assert rows(sampling, times(total), frames, stride).tolist() == expected
    viewed = rows(sampling, times(total), frames, stride, views=3)
    assert len(viewed) == n and np.unique(viewed, axis=0).tolist() == np.unique(expected, axis=0).tolist()


ALL = [
    Uniform(n=5),
    Every(kind="every", k=2),
    Fps(kind="fps", fps=3),
    Segments(n=4, length=3),
    Clips(frames=6, stride=2, hop=1),
    Spread(kind="spread", n=4, frames=6, stride=2),
]
SNIPPETS = [(1, 1), (3, 1), (6, 2)]


@pytest.mark.parametrize(("frames", "stride"), SNIPPETS)
@pytest.mark.parametrize("sampling", ALL, ids=lambda s: s.kind)
@given(total=counts)
def test_what_holds_of_all(sampling: Sampling, frames: int, stride: int, total: int) -> None:
    chosen = rows(sampling, times(total), frames, stride)
    assert chosen.dtype == np.int64 and chosen.shape[1:] == (frames,)
    assert ((chosen >= 0) & (chosen < total)).all()
    assert (np.diff(chosen[:, 0]) > 0).all()
    whole = total >= (frames - 1) * stride + 1
    assert (len(chosen) > 0) == (whole or isinstance(sampling, Clips | Spread))
    if whole:
        assert (chosen == chosen[:, :1] + np.arange(frames) * stride).all()


@pytest.mark.parametrize("sampling", ALL, ids=lambda s: s.kind)
def test_a_video_without_frames_has_no_rows(sampling: Sampling) -> None:
    assert rows(sampling, times(0), 3).shape == (0, 3)


def test_every_frame_but_the_last_starts_a_pair() -> None:
    assert rows(Every(kind="every"), times(4), 2).tolist() == [[0, 1], [1, 2], [2, 3]]
    assert rows(Every(kind="every", k=2), times(7), 2, 3).tolist() == [[0, 3], [2, 5]]


def test_equal_intervals_never_overflow_or_round() -> None:
    assert equal_intervals(10**15, 3).tolist() == [10**15 // 6, 10**15 // 2, 5 * 10**15 // 6]
    assert equal_intervals(7, 7).tolist() == list(range(7))
