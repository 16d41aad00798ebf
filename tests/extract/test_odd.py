"""Every odd file of ../shared/data ends in one stated outcome, and the table agrees with what others decoded of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from extract.config import Limits
from extract.decoders import Decoders, End
from extract.media import Decoded, decode, probe
from extract.samples import Job, SoundJob
from extract.samplings import Every, Segments
from features.outcome import Name, Outcome
from tests.media import SHARED, needs_shared

ODD = SHARED / "odd"
CLIP = 16  # frames

# file: (pictures, a clip of 16 pictures out of it, sound)
TABLE: dict[str, tuple[Name, Name, Name]] = {
    "derived/anim.gif": ("ok", "too_short", "no_audio"),
    "derived/audio_8k_pcm.wav": ("no_video", "no_video", "ok"),
    "derived/audio_only.m4a": ("no_video", "no_video", "ok"),
    "derived/empty.mp4": ("undecodable", "undecodable", "undecodable"),
    "derived/five_frames.avi": ("ok", "too_short", "no_audio"),
    "derived/fps_1.mp4": ("ok", "too_short", "no_audio"),
    "derived/gray.mkv": ("ok", "too_short", "no_audio"),
    "derived/h264_aac_ref.mp4": ("ok", "ok", "ok"),
    "derived/mjpeg.avi": ("ok", "too_short", "no_audio"),
    "derived/odd_size_yuv444_101x77.mp4": ("ok", "ok", "no_audio"),
    "derived/one_frame.mp4": ("ok", "too_short", "no_audio"),
    "derived/portrait_90x160.mp4": ("ok", "ok", "no_audio"),
    "derived/text_renamed.mp4": ("undecodable", "undecodable", "undecodable"),
    "derived/three_frames.mp4": ("ok", "too_short", "no_audio"),
    "derived/tiny_16x16.mp4": ("ok", "ok", "no_audio"),
    "derived/truncated_half.avi": ("partial", "partial", "ok"),
    "derived/vfr.mp4": ("ok", "ok", "no_audio"),
    "derived/vp8.webm": ("ok", "ok", "no_audio"),
    "derived/vp9_opus.webm": ("ok", "ok", "ok"),
    "real/av1_video.mkv": ("ok", "ok", "no_audio"),
    "real/big_buck_bunny_432_433.webm": ("ok", "ok", "ok"),
    "real/bikes.mp4": ("ok", "ok", "no_audio"),
    "real/bottle-detection.mp4": ("ok", "ok", "no_audio"),
    "real/bt709_full_range.mp4": ("ok", "ok", "no_audio"),
    "real/cockatoo.mp4": ("ok", "ok", "ok"),
    "real/corrupted.mp4": ("partial", "partial", "no_audio"),
    "real/flipping_a_pancake.mkv": ("ok", "ok", "ok"),
    "real/h264_10bits.mp4": ("ok", "ok", "no_audio"),
    "real/h265_video.mp4": ("ok", "too_short", "no_audio"),
    "real/mmaction2_demo.mp4": ("ok", "ok", "no_audio"),
    "real/mmaction2_test.avi": ("ok", "ok", "ok"),
    "real/nasa_13013.mp4.audio.mp3": ("no_video", "no_video", "ok"),
    "real/no_duration.webm": ("ok", "ok", "ok"),
    "real/part_0.mp4": ("ok", "ok", "no_audio"),
    "real/realshort.mp4": ("ok", "ok", "ok"),
    "real/sine_mono_s16.wav": ("no_video", "no_video", "ok"),
    "real/smpte-2997.mp4": ("ok", "ok", "ok"),
    "real/swiz3n.mpg": ("ok", "ok", "ok"),
    "real/tiny_AudioVideoInterleave.avi": ("undecodable", "undecodable", "no_audio"),
    "real/tiny_Mpeg4.mp4": ("no_video", "no_video", "no_audio"),
    "real/tiny_WindowsMediaVideo.wmv": ("undecodable", "undecodable", "no_audio"),
    "real/tiny_mp4-with-audio.mp4": ("no_video", "no_video", "ok"),
    "real/tiny_wav.wav": ("no_video", "no_video", "no_audio"),
    "real/tiny_webm.webm": ("ok", "too_short", "no_audio"),
    "real/v_GGSY1Qvo990.mp4": ("ok", "ok", "ok"),
    "real/v_biking_01_01.mpg": ("ok", "ok", "no_audio"),
    "real/video_0.mov": ("ok", "too_short", "no_audio"),
    "real/video_270.mov": ("ok", "too_short", "no_audio"),
    "real/video_90.mov": ("ok", "too_short", "no_audio"),
    "real/yes.mkv": ("ok", "ok", "no_audio"),
}


def expected(known: dict[str, Any]) -> tuple[Name, Name, Name]:
    """The row of the table that follows from a manifest entry: what a full decode by other hands found in the file."""
    if "open_error" in known:
        return "undecodable", "undecodable", "undecodable"
    pictures: Name = "ok"
    if not any(stream.startswith("video") for stream in known["streams"]):
        pictures = "no_video"
    elif known["decoded_frames"] == 0:
        pictures = "undecodable"
    elif "decode_error" in known or known["decoded_frames"] < known["header_frames"]:
        pictures = "partial"
    short = pictures in ("ok", "partial") and known["decoded_frames"] < CLIP
    lost: Name = "undecodable" if pictures == "partial" else "too_short"
    heard = known.get("audio", {})
    seconds = heard["samples"] / heard["rate"] if heard.get("samples") else 0.0
    sound: Name = "no_audio" if seconds == 0 else "ok"
    return pictures, lost if short else pictures, sound


def manifest() -> dict[str, Any]:
    known: dict[str, Any] = json.loads((ODD / "manifest.json").read_text())
    return known


@needs_shared
def test_the_table_follows_from_the_manifest() -> None:
    assert {name: expected(known) for name, known in manifest().items()} == TABLE


JOBS = (
    Job(Every(kind="every"), 32, 32, "bilinear", Limits()),
    Job(Segments(n=1), 32, 32, "bilinear", Limits(), frames=CLIP),
    SoundJob(0.96, 0.01, Limits()),
)


@pytest.fixture(scope="module")
def ends() -> dict[str, list[Outcome]]:
    """The outcomes of every file for the three jobs at once, out of the decoder processes."""
    paths = {number: ODD / name for number, name in enumerate(TABLE)}
    found: dict[str, list[Outcome]] = {}
    with Decoders(JOBS, paths, 2) as decoders:
        for item in decoders:
            if isinstance(item, End):
                found.setdefault(list(TABLE)[item.video], []).append(item.outcome)
    return found


@needs_shared
@pytest.mark.parametrize("name", TABLE)
def test_every_odd_file_ends_in_its_outcome(name: str, ends: dict[str, list[Outcome]]) -> None:
    assert tuple(outcome.outcome for outcome in ends[name]) == TABLE[name], ends[name]
    known, pictures = manifest()[name], ends[name][0]
    if "decode_error" in known:  # they stopped at the first damage; we go on behind it
        assert known["decoded_frames"] < pictures.decoded < pictures.promised
    else:
        assert pictures.decoded == known.get("decoded_frames", 0)


@needs_shared
@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row[0] == "ok"])
def test_times_ascend_and_are_those_that_the_packets_promise(name: str) -> None:
    """Also of AVI with B frames, whose own times go back and forth."""
    found = Decoded()
    sizes = {(frame.width, frame.height) for _, _, frame in decode(ODD / name, Limits(), found)}
    assert found.times_us == sorted(set(found.times_us))
    assert found.times_us == probe(ODD / name, Limits()).times_us.tolist()
    assert sizes == {tuple(size) for size in manifest()[name]["sizes"]}
