"""Scenes hold what their labels say at the times that they say, and nothing else."""

from __future__ import annotations

import io
from collections import Counter
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from features.errors import UserError
from pipelines.datasets import scenes
from pipelines.datasets.demo import FPS, MOTIONS, RATE_HZ, SOUNDS_HZ
from pipelines.datasets.scenes import CLASSES, FRAMES, Scene


def some(track: str, count: int = 4) -> list[Scene]:
    return [scene for scene in scenes.scenes(40) if any(e.track == track for e in scene.events)][:count]


def test_labels_times_and_splits() -> None:
    videos = scenes.videolist(scenes.FULL)
    assert videos.multi_label and videos.classes == CLASSES and len(CLASSES) == 9
    counts = Counter(label for video in videos.videos for label in video.labels)
    assert min(counts.values()) > scenes.FULL // 5 and set(counts) == set(range(9))
    assert Counter(video.splits for video in videos.videos) == {("train",): 160, ("test",): 80}
    assert {len(video.labels) for video in videos.videos} == set(range(7)), "some scenes have no label, some six"
    for video in videos.videos:
        own = (videos.actions or {})[video.id]
        assert sorted(label for label, _, _ in own) == list(video.labels)
        assert all(0 <= start < start + 0.999 < end <= FRAMES / FPS for _, start, end in own)
    assert scenes.videolist(40).videos == videos.videos[:40]
    images = [(e.name, e.image) for s in scenes.scenes(scenes.FULL) for e in s.events if e.track == "digit"]
    assert len(set(images)) == len(images), "a digit image occurs twice"
    with pytest.raises(UserError, match=r"^no such number of scenes: scenes: expected 1 to 240, got 241$"):
        scenes.scenes(241)


def test_things_of_a_track_follow_each_other() -> None:
    for scene in scenes.scenes(scenes.FULL):
        for track in scenes.TRACKS:
            own = [e for e in scene.events if e.track == track]
            assert len({e.name for e in own}) == len(own) <= 2
            assert all(a.end <= b.start for a, b in pairwise(own))


def test_colour_is_there_while_a_digit_is() -> None:
    for scene in some("digit"):
        for frame, (_, u, v) in enumerate(scenes.picture(scene)):
            coloured = bool((u != 128).any() or (v != 128).any())
            assert coloured == (scene.happening("digit", frame) is not None)


def test_the_field_moves_as_it_is_labelled_and_else_stands_still() -> None:
    for scene in some("motion"):
        before: np.ndarray | None = None
        for frame, (y, _, _) in enumerate(scenes.picture(scene)):
            moved = scene.happening("motion", frame)
            if before is not None:
                step = (0, 0) if moved is None else MOTIONS[moved.name]
                assert any(np.array_equal(y, np.roll(before, (k * step[0], k * step[1]), (0, 1))) for k in (2, 3))
                assert moved is None or not np.array_equal(y, before)
            before = y


def test_the_tone_sounds_as_it_is_labelled() -> None:
    for scene in some("sound"):
        wave = scenes.sound(scene)
        for frame in range(0, FRAMES - 12, 12):
            ends = [scene.happening("sound", frame), scene.happening("sound", frame + 11)]
            part = wave[frame * RATE_HZ // FPS : (frame + 12) * RATE_HZ // FPS]
            if ends == [None, None]:
                assert part.std() < 0.03
            elif ends[0] == ends[1] and ends[0] is not None:
                peak_hz = np.abs(np.fft.rfft(part)).argmax() * RATE_HZ / len(part)
                assert abs(peak_hz / SOUNDS_HZ[ends[0].name] - 1) < 0.08


def test_what_is_rendered_changes_only_with_numerics(tmp_path: Path) -> None:
    """Where this fails because pictures or sound were changed on purpose: bump NUMERICS, write the new numbers."""
    scene = next(s for s in scenes.scenes(40) if {e.track for e in s.events} == set(scenes.TRACKS))
    frames = list(scenes.picture(scene))
    found = [np.mean([y[:8, :8].mean() for y, _, _ in frames]), np.mean([v.mean() for _, _, v in frames])]
    found.append(float(np.abs(scenes.sound(scene)).mean()) * 1000)
    assert scenes.NUMERICS == 1
    np.testing.assert_allclose(found, (136.60, 128.55, 30.97), atol=0.05)
    scenes.render(tmp_path, 1, log=lambda _: None)
    with av.open(io.BytesIO((tmp_path / "scene-000.mp4").read_bytes())) as container:
        assert sum(1 for _ in container.decode(video=0)) == FRAMES
