"""Bad, odd and hostile videos by script: each has one outcome, none of them costs memory or opens another file
(F15, F20, F21, F23, F24)."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pytest

from extract.config import Limits
from extract.media import Decoded, MediaError, decode, probe
from extract.samples import Job, samples
from extract.samplings import Clips, Every
from features.outcome import Outcome
from tests.hostile import alias, lists, outcome_of, put, repeated, resized, rewritten, write

ROOT = Path(__file__).resolve().parents[2]
PEAK_MB = 64  # above its start, of a process that meets a bomb


def in_child(*paths: Path) -> list[tuple[str, str, float, int]]:
    """(path, outcome, seconds, peak MB so far) of each file, found by a process of its own."""
    code = "import sys; from tests.hostile import tell; tell(sys.argv[1:])"
    command = [sys.executable, "-c", code, *map(str, paths)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


@contextmanager
def opens(path: Path) -> Iterator[Callable[[], int]]:
    """Counts how often anybody has opened or read `path` (inotify)."""
    if sys.platform != "linux":
        pytest.skip("inotify is Linux's")
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    assert watch >= 0 and libc.inotify_add_watch(watch, os.fsencode(path), 0x21) >= 0  # IN_ACCESS | IN_OPEN

    def count() -> int:
        try:
            return len(os.read(watch, 1 << 16)) // 16
        except BlockingIOError:
            return 0

    try:
        yield count
    finally:
        os.close(watch)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """100 frames of noise that moves, header at the end."""
    return noisy(tmp_path / "whole.mp4")


def noisy(path: Path, **options: str) -> Path:
    generator = np.random.default_rng(0)
    with av.open(str(path), "w", container_options=options) as container:
        stream = container.add_stream("libx264", rate=25, options={"threads": "1", "preset": "ultrafast", "g": "25"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(100):
            image = generator.integers(0, 255, (48, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_f20_damage_has_its_outcome(whole: Path, tmp_path: Path) -> None:
    data, front = whole.read_bytes(), noisy(tmp_path / "front.mp4", movflags="faststart").read_bytes()
    middle, length = len(data) // 2, len(data)
    flipped = bytearray(data)
    for at in np.random.default_rng(1).integers(2000, length * 9 // 10, 60):
        flipped[at] ^= 4
    files = {
        "empty.mp4": (b"", "undecodable"),
        "text.mp4": (b"<html><body>404 Not Found</body></html>", "undecodable"),
        "no_moov.mp4": (data[:middle], "undecodable"),
        "cut.mp4": (front[: length * 6 // 10], "partial"),
        "flipped.mp4": (bytes(flipped), "partial"),
        "zeroed.mp4": (data[: middle - 5000] + bytes(10_000) + data[middle + 5000 :], "partial"),
        "random.mp4": (data[:48] + np.random.default_rng(2).bytes(20_000), "undecodable"),
    }
    for name, (content, expected) in files.items():
        (tmp_path / name).write_bytes(content)
        outcome = outcome_of(tmp_path / name)
        assert (outcome.outcome, bool(outcome.reason)) == (expected, True), name
        assert outcome.promised == (100 if expected == "partial" else 0)
        assert 0 < outcome.decoded <= 100 if expected == "partial" else outcome.decoded == 0


def test_f20_the_ratio_of_a_cut_file_is_known(tmp_path: Path) -> None:
    data = noisy(tmp_path / "front.mp4", movflags="faststart").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 6 // 10])
    outcome = outcome_of(tmp_path / "cut.mp4")
    assert 50 <= outcome.decoded <= 65 and outcome.promised == 100


def test_f20_damage_that_leaves_too_little(whole: Path, tmp_path: Path) -> None:
    """All packets are there and a few decode: clips are chosen again from those, and what needs more has failed."""
    data, path = whole.read_bytes(), tmp_path / "hurt.mp4"
    path.write_bytes(
        data[: len(data) // 12] + bytes(data.index(b"moov") - len(data) // 12 - 4) + data[data.index(b"moov") - 4 :]
    )
    how = {"resize_px": 16, "crop_px": 16, "interpolation": "bilinear", "limits": Limits(), "frames": 16}
    jobs = {0: Job(Clips(), **how), 1: Job(Every(kind="every"), **how)}
    *rows, (_, clips), (_, stacks) = samples(path, jobs)
    assert isinstance(clips, Outcome) and isinstance(stacks, Outcome)
    assert 0 < clips.decoded < 16 and clips.promised == 100
    assert len(rows) == 1 and (clips.outcome, clips.rows) == ("partial", 1)
    assert stacks.outcome == "undecodable" and stacks.reason.startswith(f"{clips.decoded} of 100 frames decoded")
    short = list(samples(write(tmp_path / "short.mp4", frames=9), {1: jobs[1]}))
    assert [item.outcome for _, item in short if isinstance(item, Outcome)] == ["too_short"]


def test_f20_names_that_ffmpeg_would_read_as_something_else(whole: Path, tmp_path: Path) -> None:
    names = ["concat:a|b.mp4", "pipe:0", "-i.mp4", "a%03d.mp4", "http:x.mp4", "*.mp4", "übung – 視頻.mp4", "a\nb.mp4"]
    for name in names:
        path = tmp_path / name
        path.write_bytes(whole.read_bytes())
        assert outcome_of(path).outcome == "ok", name


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "dangling.mp4").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(tmp_path, os.O_RDONLY)
        try:
            server.bind(f"/proc/self/fd/{here}/socket.mp4")  # the address may be 107 bytes long, the folder is longer
        finally:
            os.close(here)
    for name, expected, reason in [
        ("folder.mp4", "refused", "not a regular file"),
        ("socket.mp4", "refused", "not a regular file"),
        ("dangling.mp4", "undecodable", "cannot be read: No such file or directory"),
        ("absent.mp4", "undecodable", "cannot be read: No such file or directory"),
        ("loop.mp4", "undecodable", "cannot be read: Too many levels of symbolic links"),
        ("n" * 300, "undecodable", "cannot be read: File name too long"),
        ("a\0b.mp4", "undecodable", "cannot be read: embedded null byte"),
    ]:
        outcome = outcome_of(tmp_path / name)
        assert (outcome.outcome, outcome.reason) == (expected, reason)
    assert outcome_of(Path(os.devnull)).outcome == "refused"


def test_f15_a_fifo_waits_for_its_writer(tmp_path: Path) -> None:
    """For the wall clock of a decoder process to end; it is not refused at once."""
    path, ends = tmp_path / "fifo.mp4", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: ends.append(outcome_of(path).outcome), daemon=True)
    reader.start()
    reader.join(0.3)
    assert reader.is_alive() and not ends
    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))  # an error where nobody reads
    reader.join(10)
    assert ends == ["undecodable"]


# ---- bombs


def big(path: Path, side_px: int, codec: str, pix_fmt: str) -> Path:
    """One black picture of `side_px` squared."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"threads": "1", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = side_px, side_px, pix_fmt
        frame = av.VideoFrame(side_px, side_px, pix_fmt)
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts", "flv"])
def test_f23_a_small_file_of_8192_squared(tmp_path: Path, suffix: str) -> None:
    path = big(tmp_path / f"big.{suffix}", 8192, "libx264", "yuv420p")
    assert path.stat().st_size < 250_000
    [(_, outcome, seconds, peak_mb)] = in_child(path)
    # FLV has no list of streams, so libavformat decodes one picture before it can be told a limit
    assert outcome == "too_large" and seconds < 5 and peak_mb < (256 if suffix == "flv" else PEAK_MB)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """Six key frames of VP8."""
    return write(tmp_path / "keys.webm", "libvpx", options={"g": "1"})


@pytest.mark.parametrize("side_px", [8192, 16383])  # the second is more than libavcodec ever takes
def test_f23_a_huge_picture_from_the_start_and_on_the_way(keys: Path, tmp_path: Path, side_px: int) -> None:
    first = resized(tmp_path / "first.webm", keys, side_px, side_px, 0)
    later = resized(tmp_path / "later.webm", keys, side_px, side_px, 3)
    for _, outcome, seconds, peak_mb in in_child(first, later):
        assert outcome == "too_large" and seconds < 5 and peak_mb < PEAK_MB
    with pytest.raises(MediaError, match=r"^a picture of over 9437184 pixels, or of none$"):
        list(decode(later, Limits(), Decoded()))


def test_f23_a_size_over_the_limit_on_the_way(keys: Path, tmp_path: Path) -> None:
    """Too small for libavcodec to refuse it, and larger than the limit all the same."""
    path = resized(tmp_path / "later.webm", keys, 80, 64, 3)
    assert outcome_of(path, Limits(max_pixels=64 * 48)).reason == "80x64 pixels, limit 3072"
    assert {(f.width, f.height) for _, _, f in decode(path, Limits(), Decoded())} == {(64, 48), (80, 64)}


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("a.mp4", "libx264", "yuv420p"),
        ("a.mp4", "libx265", "yuv420p"),
        ("a.webm", "libvpx", "yuv420p"),
        ("a.webm", "libvpx-vp9", "yuv420p"),
        ("a.avi", "mpeg4", "yuv420p"),
        ("a.mpg", "mpeg2video", "yuv420p"),
        ("a.mov", "png", "rgb24"),
        ("a.wmv", "wmv2", "yuv420p"),
        ("a.flv", "flv", "yuv420p"),
        ("a.avi", "huffyuv", "yuv422p"),
    ],
)
def test_f23_every_codec_knows_the_limit(tmp_path: Path, name: str, codec: str, pix_fmt: str) -> None:
    path = write(tmp_path / name, codec, 640, 480, 2, pix_fmt=pix_fmt)
    outcome = outcome_of(path, Limits(max_pixels=100 * 100))
    assert outcome.outcome == "too_large" and outcome.decoded == 0
    assert outcome_of(path, Limits(max_pixels=640 * 480)).outcome == "ok"


@pytest.mark.parametrize("count", [1_000_000, 4_000_000_000])
def test_f23_more_promised_frames_than_fit(tmp_path: Path, count: int) -> None:
    """Of one size, so that the table of sizes is one number."""
    clip = write(tmp_path / "clip.mp4", "mpeg4", 2, 2, frames=6)
    path = rewritten(
        tmp_path / "many.mp4",
        clip,
        stsz=lambda _: np.array([0, 16, count], ">u4").tobytes(),
        stts=put(8, ">II", count, 1),
        stsc=put(12, ">I", count),
    )
    assert path.stat().st_size < 3000
    [(_, outcome, seconds, peak_mb)] = in_child(path)
    assert outcome == "too_large" and seconds < 2 and peak_mb < PEAK_MB
    with pytest.raises(MediaError, match=f"^{count} frames promised, limit 200000$"):
        probe(path, Limits())


@pytest.mark.slow
def test_f23_ten_hours_and_a_million_frames(tmp_path: Path) -> None:
    """Found by reading packets: neither container says how many there are, or how long they last, before its end."""
    hours = repeated(tmp_path / "hours.mkv", 10 * 360, 10_000)
    frames = repeated(tmp_path / "frames.mkv", 1_000_000, 1)
    assert hours.stat().st_size < 2_000_000
    for path, reason in [(hours, "14410 s long, limit 14400 s"), (frames, "more than 200000 frames")]:
        with pytest.raises(MediaError, match=f"^{reason}$"):
            probe(path, Limits())
        [(_, outcome, seconds, peak_mb)] = in_child(path)
        assert outcome == "too_large" and seconds < 10 and peak_mb < PEAK_MB


# ---- files that name other files


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return write(tmp_path / "canary.mp4", "mpeg4", 16, 16)


def test_f24_a_canary_that_is_opened_is_seen(canary: Path) -> None:
    with opens(canary) as count:
        assert count() == 0
        assert outcome_of(canary).outcome == "ok"
        assert count() > 0


@pytest.mark.parametrize("kind", sorted(lists(Path("canary.mp4"))))
def test_f24_a_list_is_not_followed(canary: Path, tmp_path: Path, kind: str) -> None:
    """Under the name of a clip and under its own."""
    suffix = {"hls": "m3u8", "dash": "mpd", "smil": "ism", "ffconcat": "ffconcat", "vobsub": "idx"}.get(kind, kind)
    with opens(canary) as count:
        for name in ("list.mp4", "list.mkv", f"list.{suffix}"):
            (tmp_path / name).write_text(lists(canary)[kind])
            outcome = outcome_of(tmp_path / name)
            assert outcome.outcome in ("refused", "undecodable") and outcome.decoded == 0
        assert count() == 0


def test_f24_formats_that_are_seen_through_are_refused(canary: Path, tmp_path: Path) -> None:
    for kind, name in [("ffconcat", "list.mp4"), ("hls", "list.m3u8"), ("sdp", "list.mp4"), ("vobsub", "list.idx")]:
        (tmp_path / name).write_text(lists(canary)[kind])
        outcome = outcome_of(tmp_path / name)
        assert (outcome.outcome, outcome.reason) == ("refused", "its container is not one of the allowed ones"), kind


def test_f24_a_pattern_of_pictures_is_a_name(tmp_path: Path) -> None:
    write(tmp_path / "frame001.png", "png", pix_fmt="rgb24", frames=1)
    assert outcome_of(tmp_path / "frame%03d.png").reason == "cannot be read: No such file or directory"
    assert outcome_of(tmp_path / "frame001.png").outcome == "refused"


def test_f24_samples_in_another_file_are_not_fetched(canary: Path, tmp_path: Path) -> None:
    """QuickTime: the data reference of a track is an alias of the canary, which FFmpeg would follow if it were told."""
    own = write(tmp_path / "own.mov", "mpeg4", 16, 16)
    path = rewritten(tmp_path / "alias.mov", own, dref=alias(canary))
    with opens(canary) as count:
        follow = {"enable_drefs": "1", "use_absolute_path": "1"}
        with av.open(str(path), options=follow) as container:
            assert sum(1 for packet in container.demux(video=0) if packet.size) == 6
        assert count() > 0
        outcome = outcome_of(path)
        assert count() == 0
    assert outcome.outcome in ("refused", "undecodable") and outcome.decoded == 0
