"""Any sound track becomes mono at 16 kHz, in its place in time (F22)."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from extract.audio import RATE_HZ, Heard, decode_audio, duration_s
from extract.config import Limits
from extract.logmel import patches
from extract.media import MediaError
from tests.media import write_video
from tests.sounds import beep, click_and_flash, write_sound


def heard(path: Path, limits: Limits | None = None) -> tuple[np.ndarray[Any, Any], Heard]:
    found = Heard()
    return np.concatenate(list(decode_audio(path, limits or Limits(), found))), found


def tone(seconds: float, rate_hz: int) -> np.ndarray[Any, Any]:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000, 44_100, 48_000, 96_000])
def test_any_rate_is_resampled_near_librosa(tmp_path: Path, rate_hz: int) -> None:
    """Another filter than soxr's, but the same sound: a tone in the middle of the band to 60 dB, away from the ends."""
    import librosa

    sound, _ = heard(write_sound(tmp_path / "a.wav", tone(3, rate_hz), rate_hz))
    coded = np.rint(tone(3, rate_hz) * 32767) / 32768
    whole = librosa.resample(coded.astype(np.float32), orig_sr=rate_hz, target_sr=RATE_HZ, res_type="soxr_hq")
    assert abs(len(sound) - 3 * RATE_HZ) <= 1
    inside = slice(1000, 2 * RATE_HZ)
    assert np.abs(sound[inside] - whole[inside]).max() < 1e-3


def test_blocks_are_small_whatever_the_packets_are(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", tone(30, 48_000), 48_000)
    assert max(len(block) for block in decode_audio(path, Limits(), Heard())) < RATE_HZ


@pytest.mark.parametrize(
    ("suffix", "codec", "format", "layout"),
    [
        ("wav", "pcm_u8", "u8", "mono"),
        ("wav", "pcm_s16le", "s16", "stereo"),
        ("wav", "pcm_s32le", "s32", "mono"),
        ("wav", "pcm_f32le", "flt", "5.1"),
        ("mp4", "aac", "fltp", "stereo"),
        ("flac", "flac", "s16", "mono"),
        ("mkv", "libopus", "flt", "stereo"),
        ("mp4", "libmp3lame", "s16p", "mono"),
        ("mp3", "libmp3lame", "fltp", "stereo"),
    ],
)
def test_codecs_formats_and_layouts(tmp_path: Path, suffix: str, codec: str, format: str, layout: str) -> None:
    rate_hz = 48_000
    sound, found = heard(
        write_sound(tmp_path / f"a.{suffix}", tone(2, rate_hz), rate_hz, codec, format=format, layout=layout)
    )
    assert abs(len(sound) / RATE_HZ - 2) < 0.08 and found.samples == len(sound) and not found.errors
    middle = sound[RATE_HZ // 2 : 3 * RATE_HZ // 2]
    assert abs(np.abs(middle).max() - 0.5) < 0.05
    spectrum = np.abs(np.fft.rfft(middle))
    assert spectrum.argmax() == 440


def test_clipping_and_nonsense_stay_finite(tmp_path: Path) -> None:
    wild = tone(1, RATE_HZ) * 4
    wild[100:200] = np.nan
    wild[300:400] = np.inf
    sound, _ = heard(write_sound(tmp_path / "a.wav", wild, RATE_HZ, "pcm_f32le", format="flt"))
    assert np.isfinite(sound).all() and np.abs(sound).max() <= 8


def test_a_hole_is_silence(tmp_path: Path) -> None:
    """Half a second of packets is missing from the second second on; what follows stays in its place."""
    path = write_sound(
        tmp_path / "a.mkv", beep(3, RATE_HZ, at_s=2.0), RATE_HZ, gaps=lambda start: 8000 * (start >= RATE_HZ)
    )
    sound, _ = heard(path)
    assert abs(len(sound) / RATE_HZ - 3.5) < 0.01
    assert abs(np.argmax(np.abs(sound) > 0.1) / RATE_HZ - 2.5) < 0.005


def test_the_first_track_that_decodes(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.mkv", [beep(2, RATE_HZ, 0.5), beep(2, RATE_HZ, 1.5)], RATE_HZ)
    sound, _ = heard(path)
    assert abs(np.argmax(np.abs(sound) > 0.1) / RATE_HZ - 0.5) < 0.005


def test_no_sound(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4")
    for call in (lambda: heard(path), lambda: duration_s(path, Limits())):
        with pytest.raises(MediaError, match="no sound track") as error:
            call()
        assert error.value.outcome == "no_audio"


def test_an_empty_track(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", np.zeros(2, np.float32), RATE_HZ)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(MediaError, match="no sound decodes"):
        heard(path)


def test_the_limit_of_duration_holds_also_where_the_header_is_silent(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.mkv", tone(3, RATE_HZ), RATE_HZ)
    with pytest.raises(MediaError, match="s of sound, limit 2 s"):
        heard(path, Limits(max_duration_s=2.0))
    far = write_sound(tmp_path / "far.mkv", tone(1, RATE_HZ), RATE_HZ, gaps=lambda start: 10**9 * (start > 0))
    with pytest.raises(MediaError, match="s of sound, limit"):
        heard(far)
    assert duration_s(path, Limits()) == pytest.approx(3, abs=0.1)


RATES = [(25, False), (Fraction(30000, 1001), False), (24, True)]


@pytest.mark.parametrize(("fps", "variable"), RATES, ids=str)
@pytest.mark.parametrize("offset_s", [0.0, 0.4])
def test_a_beep_is_where_it_is(tmp_path: Path, fps: Fraction, variable: bool, offset_s: float) -> None:
    """The last patch that does not hold the beep ends within one hop before it."""
    path = click_and_flash(tmp_path / "a.mp4", fps, variable=variable, sound_offset_s=offset_s)
    found = Heard()
    loud = [
        time_us for time_us, patch in patches(decode_audio(path, Limits(), found), found, hop_s=0.01) if patch.max() > 0
    ]
    assert found.start_us == pytest.approx(offset_s * 1e6, abs=70_000)
    if offset_s == 0.0:
        assert abs((loud[0] + 487_500) / 1e6 - 1.0) < 0.03
    else:
        assert loud[0] > 0.8e6
