"""Decoding: one outcome for every file, true times, upright pictures, limits (F13, F15, F20, F21, F23, F24)."""

from __future__ import annotations

import json
import os
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from extract.config import Clips, Every, Fps, Limits, Sampling, Segments, Uniform
from extract.decoders import Job, samples
from extract.media import MediaError, probe
from features.outcome import Outcome
from tests.media import SHARED, damaged_media, needs_shared, write_video

ODD = SHARED / "odd"
EVERY = Every(kind="every")


def job(sampling: Sampling = EVERY, resize: int = 32, crop: int = 32, **limits: Any) -> Job:
    return Job(sampling, resize, crop, "bilinear", Limits(**limits))


def decoded(path: Path, how: Job | None = None) -> tuple[list[int], npt.NDArray[np.uint8], Outcome]:
    """Times (L,), samples (L, ...), outcome."""
    *rows, outcome = samples(path, how or job())
    assert isinstance(outcome, Outcome) and outcome.rows == len(rows)
    images = [row[1] for row in rows]  # type: ignore[index]
    return [row[0] for row in rows], np.stack(images) if images else np.empty((0,), np.uint8), outcome  # type: ignore[index]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", frames=12, fps=10)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    return damaged_media(tmp_path_factory.mktemp("broken"))


@pytest.mark.parametrize("name", ["cut", "empty", "text", "concat", "sound"])
def test_every_damaged_file_has_its_outcome(broken: dict[str, tuple[Path, str]], name: str) -> None:
    path, expected = broken[name]
    _, images, outcome = decoded(path, job(Uniform(n=4)))
    assert outcome.outcome == expected and outcome.reason
    assert len(images) == (min(4, outcome.decoded) if expected == "partial" else 0)


def test_a_cut_file_can_be_dropped_by_its_ratio(broken: dict[str, tuple[Path, str]]) -> None:
    path, _ = broken["cut"]
    *_, kept = decoded(path)
    assert 0 < kept.decoded < kept.promised == 40
    assert kept.reason.startswith(f"{kept.decoded} of 40 frames decoded")
    given = list(samples(path, job(Uniform(n=4), min_decoded_ratio=0.9)))
    assert isinstance(given[-1], Outcome) and given[-1].outcome == "undecodable" and given[-1].rows == 0


def test_names_that_ffmpeg_would_read_as_something_else(clip: Path, tmp_path: Path) -> None:
    for name in ("concat:a|b.mp4", "pipe:0", "-i.mp4", "a%03d.mp4", "http:x.mp4", "übung – 視頻.mp4"):
        path = tmp_path / name
        path.write_bytes(clip.read_bytes())
        assert decoded(path)[2].outcome == "ok", name


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile {}\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><BaseURL>{}</BaseURL></MPD>',
    ],
    ids=["ffconcat", "hls", "sdp", "dash"],
)
def test_a_file_that_names_other_files_is_not_followed(clip: Path, tmp_path: Path, text: str) -> None:
    path = tmp_path / "list.mp4"
    path.write_text(text.format(clip))
    assert decoded(path)[2].outcome in ("refused", "undecodable")


def test_what_is_no_file(clip: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.mp4")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "dangling.mp4").symlink_to(tmp_path / "nowhere")
    expected = {
        "fifo.mp4": ("refused", "not a regular file"),
        "folder.mp4": ("refused", "not a regular file"),
        "dangling.mp4": ("undecodable", "cannot be read: No such file or directory"),
        "absent.mp4": ("undecodable", "cannot be read: No such file or directory"),
    }
    for name, (outcome, reason) in expected.items():
        found = decoded(tmp_path / name)[2]
        assert (found.outcome, found.reason) == (outcome, reason)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"max_pixels": 64 * 48 - 1}, "64x48 pixels, limit 3071"),
        ({"max_frames": 11}, "12 frames promised, limit 11"),
        ({"max_duration_s": 1}, "1 s long, limit 1 s"),
    ],
)
def test_what_is_too_large_is_refused_before_a_frame_is_decoded(
    clip: Path, limits: dict[str, int], reason: str
) -> None:
    with pytest.raises(MediaError, match=reason):
        probe(clip, Limits(**limits))
    outcome = decoded(clip, job(**limits))[2]
    assert outcome == Outcome(outcome="too_large", reason=reason)


def test_frames_are_counted_where_the_header_does_not_promise(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mkv", frames=12)
    assert probe(path, Limits()).promised == 0
    assert decoded(path, job(max_frames=11))[2].reason == "more than 11 frames"
    assert decoded(path, job(max_frames=12))[2].outcome == "ok"


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "libx264"), ("avi", "mpeg4"), ("mkv", "libx264")])
def test_times_of_a_constant_rate(tmp_path: Path, suffix: str, codec: str) -> None:
    path = write_video(tmp_path / f"clip.{suffix}", frames=12, fps=10, codec=codec)
    times_us, images, outcome = decoded(path)
    assert times_us == [100_000 * n for n in range(12)] and outcome == Outcome(
        outcome="ok", rows=12, decoded=12, promised=12
    )
    assert codec == "mpeg4" or len({image.tobytes() for image in images}) == 12
    np.testing.assert_array_equal(probe(path, Limits()).times_us, times_us)


def write_timed(path: Path, times_ms: list[int], width: int = 64, height: int = 48) -> Path:
    """A clip whose frames show at `times_ms`, each of one grey."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"threads": "1", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, time_ms in enumerate(times_ms):
            frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 10 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


VARIABLE_MS = [0, 40, 80, 480, 520, 1500, 1510, 1600, 2000]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_times_of_a_variable_rate(tmp_path: Path, suffix: str) -> None:
    path = write_timed(tmp_path / f"vfr.{suffix}", VARIABLE_MS)
    times_us, images, _ = decoded(path)
    assert times_us == [t * 1000 for t in VARIABLE_MS]
    np.testing.assert_allclose(images.mean(axis=(1, 2, 3)), 10 * np.arange(9), atol=3)
    times_us, images, _ = decoded(path, job(Fps(kind="fps", fps=2)))
    shown = [0, 3, 4, 5, 8]  # on screen at 0, 0.5, 1.0, 1.5 and 2.0 s
    assert times_us == [VARIABLE_MS[n] * 1000 for n in shown]
    np.testing.assert_allclose(images.mean(axis=(1, 2, 3)), [10 * n for n in shown], atol=3)


def test_a_first_time_that_is_not_zero_is_kept(tmp_path: Path) -> None:
    times_us, _, _ = decoded(write_timed(tmp_path / "late.mkv", [700, 740, 780]))
    assert times_us == [700_000, 740_000, 780_000]


def test_a_span_of_times_over_the_limit_is_too_large(tmp_path: Path) -> None:
    path = write_timed(tmp_path / "long.mkv", [0, 40, 60_000_000])
    for sampling in (Uniform(n=2), Fps(kind="fps", fps=30)):
        outcome = decoded(path, job(sampling))[2]
        assert outcome.outcome == "too_large" and "60000 s long, limit 14400 s" in outcome.reason


def turned(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """`path` with another display matrix (a b; c d) in its track header."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 20 + 16  # version and flags, times and ids of version 0, layer to volume
    assert struct.unpack(">9i", data[at : at + 36]) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    a, b, c, d = (v << 16 for v in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    turned = path.with_name(f"turned{matrix}.mp4")
    turned.write_bytes(data)
    return turned


@pytest.mark.parametrize(
    ("matrix", "quarters"), [((1, 0, 0, 1), 0), ((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)]
)
def test_pictures_are_turned_as_the_file_asks(clip: Path, matrix: tuple[int, int, int, int], quarters: int) -> None:
    """x' = ax + cy, y' = bx + dy with y down: (0 1; -1 0) turns what points right down, a quarter clockwise."""
    whole = job(resize=48, crop=48)
    _, straight, _ = decoded(clip, whole)
    _, images, _ = decoded(turned(clip, matrix), whole)
    np.testing.assert_array_equal(images, np.rot90(straight, quarters, axes=(1, 2)))


@pytest.mark.parametrize(("width", "height"), [(2, 2), (16, 16), (18, 34), (130, 20), (20, 130), (64, 48), (320, 240)])
def test_any_size_comes_out_square(tmp_path: Path, width: int, height: int) -> None:
    path = write_timed(tmp_path / "clip.mp4", [0, 40, 80], width, height)
    _, images, outcome = decoded(path, job(resize=40, crop=33))
    assert images.shape == (3, 33, 33, 3) and images.dtype == np.uint8 and outcome.outcome == "ok"


def test_a_sliver_does_not_fill_the_memory(tmp_path: Path) -> None:
    """A short side of 2 px scaled to 224 would make the long one half a million."""
    path = write_timed(tmp_path / "clip.mp4", [0, 40], 4096, 2)
    outcome = decoded(path, job(resize=256, crop=224))[2]
    assert outcome.outcome == "too_large" and outcome.reason == "4096x2 pixels would become 524288x256"


def test_one_frame_and_fewer_frames_than_a_clip(tmp_path: Path) -> None:
    path = write_video(tmp_path / "one.mp4", frames=1)
    assert decoded(path, job(Uniform(n=25)))[0] == [0]
    times_us, images, _ = decoded(path, job(Clips(kind="clips", frames=4)))
    assert times_us == [0] and images.shape == (1, 4, 32, 32, 3)
    short = decoded(path, job(Segments(kind="segments", n=2, length=4)))[2]
    assert short.outcome == "too_short" and short.reason == "1 frames, a sample takes more"


@needs_shared
@pytest.mark.parametrize(("name", "quarters"), [("video_0.mov", 0), ("video_90.mov", -1), ("video_270.mov", 1)])
def test_phone_videos_stand_upright(name: str, quarters: int) -> None:
    """Three pictures of one keyboard, held differently: the turn that makes the letters upright was seen by eye."""
    path = ODD / "real" / name
    with av.open(str(path)) as container:
        raw = next(container.decode(video=0)).to_ndarray(format="rgb24")  # (320, 568, 3) as coded
    _, images, _ = decoded(path, job(resize=320, crop=320))
    upright = np.rot90(raw[:, 124:444], quarters)
    assert np.corrcoef(images[0].ravel(), upright.ravel())[0, 1] > 0.99


def odd_files() -> list[str]:
    return sorted(json.loads((ODD / "manifest.json").read_text())) if ODD.is_dir() else []


@needs_shared
@pytest.mark.parametrize("name", odd_files())
def test_every_odd_file_ends_in_one_outcome(name: str) -> None:
    """Against what a full decode by other hands found in it."""
    known = json.loads((ODD / "manifest.json").read_text())[name]
    times_us, _, outcome = decoded(ODD / name, job(Uniform(n=3)))
    frames, promised = known.get("decoded_frames", 0), known.get("header_frames", 0)
    if "open_error" in known:
        assert outcome.outcome == "undecodable"
    elif not any(s.startswith("video") for s in known["streams"]):
        assert outcome.outcome == "no_video"
    elif "decode_error" in known:  # they stopped at the first damage; we go on behind it
        assert outcome.outcome == "partial" and frames < outcome.decoded < promised
        assert outcome.reason.endswith("Invalid data found when processing input")
    elif frames == 0:
        assert outcome.outcome == "undecodable"
    else:
        assert outcome.outcome == ("partial" if frames < promised else "ok")
        assert outcome.decoded == frames and outcome.rows == min(3, frames)
    assert times_us == sorted(times_us)
