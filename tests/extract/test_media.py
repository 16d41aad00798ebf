"""Decoding: true times, upright pictures of every size and format, limits, and the right track (F21)."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from extract.audio import RATE_HZ, Heard, decode_audio
from extract.config import Limits
from extract.media import Decoded, MediaError, decode, probe
from extract.scaler import Scaler
from features.errors import UserError
from features.outcome import Outcome
from tests.hostile import jpeg, outcome_of, put, rewritten, sound, tracks, turned, write
from tests.media import SHARED, needs_shared

REAL = SHARED / "odd/real"
Images = npt.NDArray[np.uint8]


def times_ms(path: Path) -> list[float]:
    """Of all frames; those of the packets must agree."""
    found = Decoded()
    numbers = [number for number, _, _ in decode(path, Limits(), found)]
    assert numbers == list(range(len(found.times_us)))
    assert probe(path, Limits()).times_us.tolist() == found.times_us
    return [time_us / 1000 for time_us in found.times_us]


def images(path: Path, resize: int = 32, crop: int = 32, how: str = "bilinear", pixels: Any = "rgb24") -> Images:
    """(F, crop, crop, 3) or (F, crop, crop)."""
    scale = Scaler(resize, crop, how, pixels)
    return np.stack([scale(frame) for _, _, frame in decode(path, Limits(), Decoded())])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six frames, 40 ms apart, each of one grey."""
    return write(tmp_path_factory.mktemp("clip") / "clip.mp4")


def sketch(path: Path, frames: int = 1) -> Path:
    """A picture whose corners differ: red, green, blue and white quarters."""
    image = np.zeros((48, 64, 3), np.uint8)
    image[:24, :32, 0] = image[:24, 32:, 1] = image[24:, :32, 2] = 255
    image[24:, 32:] = 255
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "qp": "4"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p"
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("clip.mp4", "libx264", {"preset": "medium", "bf": "3"}),
        ("clip.avi", "mpeg4", {}),
        ("clip.mkv", "mpeg4", {"bf": "2"}),
        ("clip.mpg", "mpeg2video", {"bf": "2"}),
        ("clip.ts", "libx264", {}),
        ("clip.flv", "libx264", {}),
        ("clip.mov", "libx265", {}),
        ("clip.webm", "libvpx-vp9", {}),
        ("clip.wmv", "wmv2", {}),
    ],
)
def test_times_of_a_constant_rate(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    """Frame n is 40 n ms after the first one, and is the n-th picture."""
    path = write(tmp_path / name, codec, frames=20, options=options)
    found = times_ms(path)
    np.testing.assert_allclose(np.array(found) - found[0], 40 * np.arange(20), atol=1)
    levels = images(path, pixels="gray").mean(axis=(1, 2))
    expected = (np.array([20 + 20 * (n % 11) for n in range(20)]) - 16) * 255 / 219
    np.testing.assert_allclose(levels, expected.clip(0, 255), atol=4)
    assert outcome_of(path).outcome == "ok"


VARIABLE_MS = [0, 40, 80, 480, 520, 1500, 1510, 1600, 2000]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_times_of_a_variable_rate(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"vfr.{suffix}", times_ms=VARIABLE_MS, options={"preset": "medium", "bf": "2"})
    assert times_ms(path) == VARIABLE_MS


def test_a_first_time_that_is_not_zero_is_kept(tmp_path: Path) -> None:
    assert times_ms(write(tmp_path / "late.mkv", times_ms=[700, 740, 780])) == [700, 740, 780]
    assert times_ms(write(tmp_path / "late.mp4", times_ms=[700, 740, 780])) == [700, 740, 780]


def test_an_edit_list_moves_the_start(tmp_path: Path) -> None:
    """It begins 80 ms into the media, so that the third picture is shown at 0."""
    whole = write(tmp_path / "whole.mp4", frames=10, options={"g": "1"})
    path = rewritten(tmp_path / "cut.mp4", whole, elst=put(12, ">i", 80 * 16))  # ticks of 1/16000 s
    assert times_ms(path) == [40 * n for n in range(8)]
    np.testing.assert_array_equal(images(path), images(whole)[2:])
    assert outcome_of(path).outcome == "ok"


NEGATIVE = {"avoid_negative_ts": "disabled", "copyts": "1"}


def test_negative_times_stay(tmp_path: Path) -> None:
    path = write(tmp_path / "early.ts", times_ms=[-80, -40, 0, 40, 80], container_options=NEGATIVE)
    assert times_ms(path) == [-80, -40, 0, 40, 80]


def test_times_that_are_missing_here_and_there(tmp_path: Path) -> None:
    """Matroska loses those below 0; a picture without one comes a step after the one before."""
    how = {"preset": "medium", "bf": "2"}
    path = write(tmp_path / "early.mkv", times_ms=[-80, -40, 0, 40, 80], container_options=NEGATIVE, options=how)
    with av.open(str(path)) as container:
        assert None in [packet.pts for packet in container.demux(video=0) if packet.size]
    found = Decoded()
    assert len(list(decode(path, Limits(), found))) == 5
    assert found.times_us == sorted(found.times_us) and found.times_us[-1] == 80_000


def test_what_an_edit_list_hides_is_not_missing(tmp_path: Path) -> None:
    path = write(tmp_path / "early.mp4", times_ms=[-200, -160, 0, 40])
    assert times_ms(path) == [0, 40]
    assert outcome_of(path) == Outcome(outcome="ok", decoded=2, promised=2)


@pytest.mark.parametrize(
    ("box", "at", "layout", "values"),
    [
        ("mvhd", 12, ">II", (1000, 0)),
        ("mvhd", 12, ">II", (1000, 0xFFFFFFFE)),  # 50 days
        ("mvhd", 12, ">II", (1, 1_000_000_000)),
        ("mdhd", 12, ">II", (16_000, 0)),
        ("mdhd", 12, ">II", (16_000, 0xFFFFFFFE)),
        ("tkhd", 20, ">I", (0,)),
    ],
)
def test_a_duration_in_the_header_means_nothing(
    clip: Path, tmp_path: Path, box: str, at: int, layout: str, values: tuple[int, ...]
) -> None:
    path = rewritten(tmp_path / "lies.mp4", clip, **{box: put(at, layout, *values)})
    assert times_ms(path) == times_ms(clip)
    assert outcome_of(path) == outcome_of(clip)


def test_a_rate_of_thousands(clip: Path, tmp_path: Path) -> None:
    path = rewritten(
        tmp_path / "fast.mp4", rewritten(tmp_path / "a.mp4", clip, mdhd=put(12, ">I", 90_000)), stts=put(12, ">I", 1)
    )
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 90_000
    np.testing.assert_allclose(times_ms(path), np.arange(6) / 90, atol=0.001)


def test_a_rate_of_nothing(clip: Path, tmp_path: Path) -> None:
    """All pictures at once: libavformat makes up times, not all in order; they are kept and put in order."""
    path, found = rewritten(tmp_path / "still.mp4", clip, stts=put(12, ">I", 0)), Decoded()
    assert len(list(decode(path, Limits(), found))) == 6
    assert found.times_us == sorted(found.times_us)


def test_missing_times(tmp_path: Path) -> None:
    """A raw stream has none; libavformat counts the pictures, but is one too far at the last of MPEG-1."""
    found = times_ms(write(tmp_path / "raw.m1v", "mpeg1video", frames=10, fps=25))
    assert found[:9] == [40 * n for n in range(9)] and len(found) == 10


def test_times_beyond_all_numbers_do_not_overflow(tmp_path: Path) -> None:
    path = tmp_path / "far.mkv"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        for packet in [*stream.encode(av.VideoFrame(16, 16, "yuv420p")), *stream.encode()]:
            packet.pts = packet.dts = 2**62
            packet.time_base = Fraction(1, 1000)
            container.mux(packet)
    assert times_ms(path)[0] > 1e15 and outcome_of(path).outcome == "ok"


EIGHT = [
    ((1, 0, 0, 1), lambda x: x),
    ((0, 1, -1, 0), lambda x: np.rot90(x, -1, (1, 2))),
    ((-1, 0, 0, -1), lambda x: np.rot90(x, 2, (1, 2))),
    ((0, -1, 1, 0), lambda x: np.rot90(x, 1, (1, 2))),
    ((-1, 0, 0, 1), lambda x: x[:, :, ::-1]),
    ((1, 0, 0, -1), lambda x: x[:, ::-1]),
    ((0, 1, 1, 0), lambda x: x.swapaxes(1, 2)),
    ((0, -1, -1, 0), lambda x: np.rot90(x, 2, (1, 2)).swapaxes(1, 2)),
]


@pytest.mark.parametrize(("matrix", "turn"), EIGHT, ids=[str(matrix) for matrix, _ in EIGHT])
@pytest.mark.parametrize("pixels", ["rgb24", "gray"])
def test_pictures_are_turned_and_mirrored_as_the_file_asks(
    tmp_path: Path, matrix: tuple[int, int, int, int], turn: Any, pixels: str
) -> None:
    """x' = ax + cy, y' = bx + dy with y down: (0 1; -1 0) turns what points right down, a quarter clockwise."""
    straight = sketch(tmp_path / "clip.mp4")
    given = images(turned(tmp_path / "turned.mp4", straight, matrix), 48, 48, pixels=pixels)
    np.testing.assert_array_equal(given, turn(images(straight, 48, 48, pixels=pixels)))


@pytest.mark.parametrize("matrix", [(1, 0, 0, 1), (0, 1, -1, 0)])
def test_a_wide_crop_is_of_the_picture_that_is_seen(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    path = turned(tmp_path / "turned.mp4", sketch(tmp_path / "clip.mp4"), matrix)
    scale = Scaler(48, 40, "bilinear", width_px=60)
    frame = next(decode(path, Limits(), Decoded()))[2]
    whole = scale.whole(frame)
    assert whole.shape == ((48, 64, 3) if matrix[0] else (80, 60, 3))
    top, left = (whole.shape[0] - 40) // 2, (whole.shape[1] - 60) // 2
    np.testing.assert_array_equal(scale(frame), whole[top : top + 40, left : left + 60])


@needs_shared
@pytest.mark.parametrize(("name", "quarters"), [("video_0.mov", 0), ("video_90.mov", -1), ("video_270.mov", 1)])
def test_phone_videos_stand_upright(name: str, quarters: int) -> None:
    """Three pictures of one keyboard, held differently: the turn that makes the letters upright was seen by eye."""
    with av.open(str(REAL / name)) as container:
        raw = next(container.decode(video=0)).to_ndarray(format="rgb24")  # (320, 568, 3) as coded
    upright = np.rot90(raw[:, 124:444], quarters)
    assert np.corrcoef(images(REAL / name, 320, 320)[0].ravel(), upright.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("pixels", ["rgb24", "gray"])
@pytest.mark.parametrize("how", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (2, 2), (17, 33), (130, 20), (20, 130), (4, 90), (320, 240)])
def test_any_size_comes_out_square(tmp_path: Path, width: int, height: int, how: str, pixels: str) -> None:
    """Of one grey, whatever the way there."""
    path = write(tmp_path / "clip.mkv", "ffv1", width, height, frames=2)
    given = images(path, 40, 33, how, pixels)
    assert given.shape == ((2, 33, 33, 3) if pixels == "rgb24" else (2, 33, 33)) and given.dtype == np.uint8
    np.testing.assert_allclose(given[1], (40 - 16) * 255 / 219, atol=2)


@pytest.mark.parametrize(
    ("pix_fmt", "codec"),
    [
        ("yuv420p", "ffv1"),
        ("yuv444p", "libx264"),
        ("yuv422p10le", "ffv1"),
        ("yuv420p10le", "libx264"),
        ("gray", "ffv1"),
        ("gray10le", "ffv1"),
        ("yuva420p", "ffv1"),
        ("yuvj420p", "libx264"),
    ],
)
def test_any_pixel_format_gives_the_same_grey(tmp_path: Path, pix_fmt: str, codec: str) -> None:
    """Luma 40 of 16..235 or of 0..255. The half-seen pictures of yuva420p come out whole."""
    path = write(tmp_path / "clip.mkv", codec, frames=2, pix_fmt=pix_fmt)
    full = pix_fmt in ("yuvj420p", "gray", "gray10le")
    expected = 40 if full else (40 - 16) * 255 / 219
    np.testing.assert_allclose(images(path)[1], expected, atol=2)
    np.testing.assert_allclose(images(path, pixels="gray")[1], expected, atol=2)


def test_gray_is_the_luma_of_the_colours(tmp_path: Path) -> None:
    path = sketch(tmp_path / "clip.mp4")
    luma = images(path, 48, 48) @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    np.testing.assert_allclose(images(path, 48, 48, pixels="gray"), luma, atol=3)


@needs_shared
def test_bt709_of_full_range() -> None:
    """Against ITU-R BT.709 done by hand, at the size of the picture and of its chroma."""
    path = REAL / "bt709_full_range.mp4"
    frame = next(decode(path, Limits(), Decoded()))[2]
    planes = [np.frombuffer(p, np.uint8).reshape(p.height, p.line_size)[:, : p.width] for p in frame.planes]
    y, u, v = planes[0].astype(float), *(np.kron(p, np.ones((2, 2))) - 128 for p in planes[1:])
    rgb = np.stack([y + 1.5748 * v, y - 0.18732 * u - 0.46812 * v, y + 1.8556 * u], -1).clip(0, 255)
    assert np.abs(Scaler(720, 720, "bilinear")(frame) - rgb[:, 280:1000]).mean() < 2


def test_a_sliver_does_not_fill_the_memory(tmp_path: Path) -> None:
    """A short side of 2 px scaled to 256 would make the long one half a million."""
    path = write(tmp_path / "clip.mkv", "ffv1", 4096, 2, frames=1)
    with pytest.raises(MediaError, match=r"^4096x2 pixels would become 524288x256$") as caught:
        images(path, 256, 224)
    assert caught.value.outcome == "too_large"


def test_one_scaler_serves_pictures_of_all_sizes(tmp_path: Path) -> None:
    scale = Scaler(32, 32, "bilinear")
    for number, (width, height) in enumerate([(64, 48), (17, 33), (64, 48)]):
        path = write(tmp_path / f"{number}.mkv", "ffv1", width, height)
        given = [scale(frame) for _, _, frame in decode(path, Limits(), Decoded())]
        np.testing.assert_array_equal(np.stack(given), images(path))


def test_interlaced_pictures_stay_woven(tmp_path: Path) -> None:
    """Both fields of a picture, line by line, as the encoder got them."""
    path = tmp_path / "woven.mpg"
    image = np.zeros((48, 64, 3), np.uint8)
    image[::2] = 200
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg2video", rate=25, options={"flags": "+ildct+ilme", "qmax": "2"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    given = images(path, 48, 48)
    assert len(given) == 3 and given[:, ::2].mean() > 180 and given[:, 1::2].mean() < 20


def test_interlaced_pictures_are_scaled_as_they_are_woven(tmp_path: Path) -> None:
    """Not a field at a time, which would leave the combs of a moving edge at full contrast."""
    path = tmp_path / "moving.mpg"
    image = np.zeros((480, 640, 3), np.uint8)
    image[::2, 320:] = image[1::2, 360:] = 255
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg2video", rate=25, options={"flags": "+ildct+ilme", "qmax": "2"})
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    frame = next(decode(path, Limits(), Decoded()))[2]
    assert frame.interlaced_frame
    edge = images(path, 120, 120)[0, 20:100, 63:67]  # between 320 and 360 of 640, in a crop of 120 of 160
    assert edge.min() > 90 and edge.max() < 165
    assert np.ptp(images(path, 120, 120, pixels="gray")[0, 20:100, 64].astype(int)) < 20
    assert images(path, 1, 1).shape[1:] == (1, 1, 3)


@pytest.mark.parametrize(("matrix", "outcome"), [(3, "ok"), (8, "undecodable")])
def test_colours_that_nobody_converts(tmp_path: Path, matrix: int, outcome: str) -> None:
    """A reserved matrix is none that is told; of YCgCo the video is at fault, and not the decoder."""
    path = tmp_path / "colours.mpg"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.colorspace = matrix
        for grey in (40, 200):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), grey, np.uint8), "rgb24")))
        container.mux(stream.encode())
    found = outcome_of(path)
    assert found.outcome == outcome
    if outcome == "ok":
        assert abs(int(images(path)[1].mean()) - 200) < 4
    else:
        assert found.reason == "its colours (matrix 8 of ISO/IEC 23091-2) are not converted"


@pytest.mark.parametrize(("suffix", "codec"), [("ts", "libx264"), ("mpg", "mpeg2video")])
@pytest.mark.parametrize("later_s", [0, 3600])
def test_joined_pieces_have_one_clock(tmp_path: Path, suffix: str, codec: str, later_s: int) -> None:
    """The second piece begins where the first ends, whether its own clock begins anew or an hour later."""

    def piece(name: str, start_s: int) -> bytes:
        path = tmp_path / f"{name}.{suffix}"
        with av.open(str(path), "w") as container:
            pictures: Any = container.add_stream(codec, rate=25)
            sounds: Any = container.add_stream("mp2", rate=48_000, layout="mono")
            pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
            for k in range(50):
                frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 4 * k, np.uint8), format="rgb24")
                frame.pts, frame.time_base = start_s * 25 + k, Fraction(1, 25)
                container.mux(pictures.encode(frame))
                heard = av.AudioFrame.from_ndarray(np.full((1, 1920), 1000, np.int16), format="s16", layout="mono")
                heard.sample_rate, heard.pts, heard.time_base = 48_000, start_s * 48_000 + k * 1920, Fraction(1, 48_000)
                container.mux(sounds.encode(heard))
            container.mux([*pictures.encode(), *sounds.encode()])
        return path.read_bytes()

    joined = tmp_path / f"joined.{suffix}"
    joined.write_bytes(piece("first", 0) + piece("second", later_s))
    found, heard = Decoded(), Heard()
    assert len(list(decode(joined, Limits(), found))) == 100 and not found.errors
    assert probe(joined, Limits()).times_us.tolist() == found.times_us
    assert 3.9e6 < found.times_us[-1] - found.times_us[0] < 4.1e6 and np.diff(found.times_us).max() <= 80_000
    sound_s = sum(map(len, decode_audio(joined, Limits(), heard))) / RATE_HZ
    assert 3.9 < sound_s < 4.2 and heard.promised_s == 0


def test_an_avi_that_leaves_pictures_out_is_whole(tmp_path: Path) -> None:
    """Its header counts them, its index does not."""
    path = tmp_path / "dropped.avi"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for k in (n for n in range(72) if n % 6 != 3):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 3 * k, np.uint8), format="rgb24")
            frame.pts, frame.time_base = k, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 72
    assert (found := outcome_of(path)).outcome == "ok" and found.decoded == found.promised == 60


def test_a_cover_is_no_video(tmp_path: Path) -> None:
    song = sound(tmp_path / "song.mp3", cover=jpeg())
    with av.open(str(song)) as container:
        assert len(container.streams.video) == 1
    assert outcome_of(song) == Outcome(outcome="no_video", reason="no picture track")
    with pytest.raises(MediaError, match=r"^no picture track$"):
        next(decode(song, Limits(), Decoded()))


def test_the_first_track_that_is_no_cover(tmp_path: Path) -> None:
    for cover in (b"", jpeg()):
        path = tracks(tmp_path / f"tracks{len(cover)}.mp4", [(64, 48), (32, 32)], cover)
        with av.open(str(path)) as container:
            assert len(container.streams.video) == 2 + bool(cover)
        assert {(f.width, f.height) for _, _, f in decode(path, Limits(), Decoded())} == {(64, 48)}


def test_tracks_that_come_up_on_the_way(tmp_path: Path) -> None:
    """Transport streams can be joined as they are; the middle one of these has a track more."""
    one, two = write(tmp_path / "one.ts", "mpeg2video", frames=100), tracks(tmp_path / "two.ts", [(64, 48), (32, 32)])
    path = tmp_path / "both.ts"
    path.write_bytes(one.read_bytes() * 100 + two.read_bytes() + one.read_bytes() * 100)
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    outcome = outcome_of(path)
    assert outcome.outcome in ("ok", "partial") and outcome.decoded > 19_990


def test_one_frame(tmp_path: Path) -> None:
    path = write(tmp_path / "one.mp4", frames=1)
    assert times_ms(path) == [0] and outcome_of(path) == Outcome(outcome="ok", decoded=1, promised=1)


def test_limits_are_exact(clip: Path) -> None:
    for limits, reason in [
        ({"max_pixels": 64 * 48 - 1}, "64x48 pixels, limit 3071"),
        ({"max_frames": 5}, "6 frames promised, limit 5"),
        ({"max_duration_s": 0.199}, "0 s long, limit 0 s"),
    ]:
        with pytest.raises(MediaError, match=f"^{reason}$") as caught:
            probe(clip, Limits.model_validate(limits))
        assert caught.value.outcome == "too_large"
    fitting = Limits(max_pixels=64 * 48, max_frames=6, max_duration_s=0.2)
    assert outcome_of(clip, fitting).outcome == "ok"


def test_frames_are_counted_where_the_header_does_not_promise(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mkv", frames=12)
    assert probe(path, Limits()).promised == 0
    assert outcome_of(path, Limits(max_frames=11)).reason == "more than 11 frames"
    assert outcome_of(path, Limits(max_frames=12)).outcome == "ok"


def test_a_span_of_times_over_the_limit_is_too_large(tmp_path: Path) -> None:
    path = write(tmp_path / "long.mkv", times_ms=[0, 40, 60_000_000])
    assert outcome_of(path) == Outcome(outcome="too_large", reason="60000 s long, limit 14400 s")


DEVICE = Path("/dev/nvidiactl").exists()


@pytest.mark.skipif(DEVICE, reason="this machine has a CUDA device")
def test_hardware_that_is_not_there_is_said_of_what_it_would_decode(clip: Path, tmp_path: Path) -> None:
    """A codec that no device knows needs none."""
    with pytest.raises(UserError, match=r"no cuda device that decodes: .*; set decoder: software"):
        next(decode(clip, Limits(), Decoded(), hardware="cuda"))
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(MediaError, match="not media"):
        next(decode(tmp_path / "text.mp4", Limits(), Decoded(), hardware="cuda"))
    path = write(tmp_path / "clip.mkv", "ffv1")
    assert len(list(decode(path, Limits(), Decoded(), hardware="cuda"))) == 6


@pytest.mark.skipif(not DEVICE, reason="no CUDA device here")
def test_hardware_gives_the_same_pictures(clip: Path) -> None:
    soft = [frame.to_ndarray(format="gray") for _, _, frame in decode(clip, Limits(), Decoded())]
    found = Decoded()
    hard = [frame.to_ndarray(format="gray") for _, _, frame in decode(clip, Limits(), found, hardware="cuda")]
    np.testing.assert_array_equal(hard, soft)
    assert found.errors == 0
