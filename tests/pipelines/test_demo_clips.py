"""The demo's clips hold what it claims: digit in colour, motion in brightness, sound in the tone, nothing across."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from features.errors import UserError
from pipelines.datasets import demo
from pipelines.datasets.demo import Clip


def decoded(data: bytes) -> np.ndarray:
    """(T, 1.5 S, S) planes Y, U, V as they stand in the file."""
    with av.open(io.BytesIO(data)) as container:
        return np.stack([frame.to_ndarray(format="yuv420p") for frame in container.decode(video=0)])


def grey(data: bytes) -> np.ndarray:
    """(T, S, S) grey of the RGB frames, as an optical flow sees them."""
    with av.open(io.BytesIO(data)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])


def encoded(clip: Clip) -> bytes:
    return demo.encode(demo.picture(clip), demo.tone(clip))


def one_of(label: str) -> Clip:
    return next(clip for clip in demo.clips(demo.FULL) if clip.label == label)


def test_classes_and_splits() -> None:
    clips = demo.clips(243)
    assert len(demo.CLASSES) == 27
    assert len({clip.id for clip in clips}) == 243
    assert len({(clip.digit, clip.image) for clip in clips}) == 243, "a digit image occurs twice"
    counts = Counter((clip.label, clip.split) for clip in clips)
    assert all(counts[label, "train"] == 6 and counts[label, "test"] == 3 for label in demo.CLASSES)
    assert all(2 <= clip.duration_s <= 3 for clip in clips)


@pytest.mark.parametrize("count", [1, 6, 12, 54, 81, 108])
def test_fewer_clips_are_the_first_ones(count: int) -> None:
    clips = demo.clips(count)
    assert clips == demo.clips(243)[:count]
    classes = Counter(clip.label for clip in clips)
    assert max(classes.values()) - min(classes.values()) <= 1
    if count >= 6:
        assert {clip.split for clip in clips} == {"train", "test"}
        assert all(len({getattr(clip, factor) for clip in clips}) == 3 for factor in demo.FACTORS)
    if count >= 54:
        assert set(classes) == set(demo.CLASSES)


def test_wrong_count() -> None:
    with pytest.raises(UserError, match=r"^no such number of clips: demo: expected 1 to 243, got 244$"):
        demo.clips(244)


def test_video_list() -> None:
    videos = demo.videolist(243)
    assert videos.splits == ("1",)
    assert videos.classes == demo.CLASSES
    assert not videos.multi_label
    assert all(v.path == f"{v.id}.mp4" and v.id.startswith(videos.classes[v.labels[0]] + "/") for v in videos.videos)
    assert len({v.group for v in videos.videos}) == 243
    assert demo.videolist(108).videos == videos.videos[:108]


def test_same_clip_same_bytes_and_the_length_it_says() -> None:
    clip = demo.clips(1)[0]
    assert encoded(clip) == encoded(clip)
    with av.open(io.BytesIO(encoded(clip))) as container:
        names = [stream.codec_context.name for stream in container.streams]
        assert names == ["h264", "aac"]
        assert sum(1 for _ in container.decode(video=0)) == round(clip.duration_s * demo.FPS)


def test_brightness_holds_nothing_of_the_digit() -> None:
    """The same noise with another digit decodes to the same brightness, to the bit: no grey-level flow can differ."""
    clip = one_of("3-left-low")
    other = clip._replace(label="7-left-low", image=60)
    planes, others = decoded(encoded(clip)), decoded(encoded(other))
    np.testing.assert_array_equal(planes[:, : demo.SIDE_PX], others[:, : demo.SIDE_PX])
    assert np.abs(planes[:, demo.SIDE_PX :].astype(int) - others[:, demo.SIDE_PX :]).max() > 30


def test_no_colour_is_clipped() -> None:
    """Else the grey of the RGB frames would show the digit, although their brightness does not."""
    for clip in demo.clips(6):
        data = encoded(clip)
        luma = (decoded(data)[:, : demo.SIDE_PX] - 16.0) * 255 / 219
        assert np.abs(grey(data) - luma).max() <= 3


def test_flow_tells_the_motions_apart() -> None:
    for motion, (dy, dx) in demo.MOTIONS.items():
        for clip in [c for c in demo.clips(54) if c.motion == motion][:3]:
            a, b = grey(encoded(clip))[:2]
            flow = cv2.calcOpticalFlowFarneback(a, b, np.zeros((*a.shape, 2), np.float32), 0.5, 3, 15, 3, 5, 1.2, 0)
            x, y = flow.mean((0, 1))
            assert x * dx + y * dy > 1.5, clip.id
            assert abs(x * dy) + abs(y * dx) < 0.3, clip.id


def test_a_still_does_not_show_the_motion() -> None:
    """Whatever its motion is, a clip starts with the same picture."""
    clip = one_of("3-left-low")
    first = [next(demo.picture(clip._replace(label=f"3-{motion}-low"))) for motion in demo.MOTIONS]
    for other in first[1:]:
        for plane, expected in zip(other, first[0], strict=True):
            np.testing.assert_array_equal(plane, expected)


def test_the_sound_is_in_the_tone() -> None:
    for sound, expected_hz in demo.SOUNDS_HZ.items():
        for clip in [c for c in demo.clips(54) if c.sound == sound][:3]:
            with av.open(io.BytesIO(encoded(clip))) as container:
                samples = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
            peak_hz = np.abs(np.fft.rfft(samples)).argmax() * demo.RATE_HZ / len(samples)
            assert abs(peak_hz / expected_hz - 1) < 0.08, clip.id
            assert abs(len(samples) / demo.RATE_HZ - clip.duration_s) < 0.2


def test_what_is_rendered_changes_only_with_numerics() -> None:
    """Where this fails because pictures or sound were changed on purpose: bump NUMERICS, write the new numbers."""
    clip = demo.clips(1)[0]
    y, u, v = next(demo.picture(clip))
    found = [y.mean(), y[:8, :8].mean(), u.mean(), v.mean(), np.abs(demo.tone(clip)).mean() * 1000]
    assert demo.NUMERICS == 1
    np.testing.assert_allclose(found, [130.00, 125.23, 127.69, 131.99, 106.31], atol=0.05)


def test_render_writes_what_is_missing_or_damaged(tmp_path: Path) -> None:
    lines: list[str] = []
    demo.render(tmp_path, 3, log=lines.append)
    paths = [tmp_path / f"{clip.id}.mp4" for clip in demo.clips(4)]
    before = [(p.read_bytes(), p.stat().st_mtime_ns) for p in paths[:3]]
    paths[1].write_bytes(before[1][0][:1000])
    demo.render(tmp_path, 4, log=lines.append)
    after = [(p.read_bytes(), p.stat().st_mtime_ns) for p in paths]
    assert [data for data, _ in after[:3]] == [data for data, _ in before]
    assert [a == b for a, b in zip(after, before, strict=False)] == [True, False, True]
    assert lines[0] == "demo: 0 of 3 clips are there, 3 to render"
    assert lines[-2] == "demo: 2 of 4 clips are there, 2 to render"
    assert not [p for p in tmp_path.rglob("*") if p.name.endswith(".tmp")]


def test_render_again_after_numerics_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo.render(tmp_path, 1, log=lambda _: None)
    lines: list[str] = []
    demo.render(tmp_path, 1, log=lines.append)
    monkeypatch.setattr(demo, "NUMERICS", demo.NUMERICS + 1)
    demo.render(tmp_path, 1, log=lines.append)
    assert lines[:2] == ["demo: 1 of 1 clips are there, 0 to render", "demo: 0 of 1 clips are there, 1 to render"]


@pytest.mark.slow
def test_workers_give_the_same_bytes(tmp_path: Path) -> None:
    for workers in (1, 2):
        demo.render(tmp_path / str(workers), 6, workers=workers, log=lambda _: None)
    for clip in demo.clips(6):
        one, two = (tmp_path / str(workers) / f"{clip.id}.mp4" for workers in (1, 2))
        assert one.read_bytes() == two.read_bytes()
