"""Log-mel patches against Google's, against librosa's STFT, and whatever the blocks are (F22)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extract.audio import RATE_HZ, Heard, decode_audio
from extract.config import Limits
from extract.logmel import FFT, HOP, SPAN, WINDOW, logmel, mel_matrix, patches, samples
from features.outcome import Outcome
from tests.media import SHARED, needs_shared
from tests.sounds import write_sound

NOISE = np.random.default_rng(0).uniform(-1, 1, 3 * RATE_HZ).astype(np.float32)


@needs_shared
def test_googles_patches() -> None:
    """Its sine was made in double precision, and its wave stored in single: rounding it moves empty bands by 7e-5."""
    reference = np.load(SHARED / "vggish-ref/vggish_logmel_reference.npz")
    for name in sorted({key.split("/")[0] for key in reference}):
        wave = reference[f"{name}/wave"]
        if name == "sine_1khz_16k_3s":
            exact = np.sin(2 * np.pi * 1000 * np.arange(len(wave)) / RATE_HZ)
            assert np.abs(exact - wave).max() < 3e-8
            wave = exact
        assert np.abs(logmel(wave) - reference[f"{name}/logmel"]).max() < 1e-5
        found = [patch for _, patch in patches([wave], Heard())]
        assert np.abs(np.stack(found) - reference[f"{name}/examples"]).max() < 1e-5


@needs_shared
def test_yamnets_front_end() -> None:
    reference = np.load(SHARED / "weights/yamnet/reference_outputs.npz")
    for name in sorted({key.split("/")[0] for key in reference}):
        found = logmel(reference[f"{name}/wave16k"], offset=0.001)
        assert np.abs(found - reference[f"{name}/logmel"]).max() < 1e-5, name


def test_the_magnitudes_are_librosas() -> None:
    """Its window stands in the middle of the FFT's frame, ours at its start; a magnitude does not see that."""
    import librosa

    shifted = np.pad(NOISE, ((FFT - WINDOW) // 2, FFT))
    stft = np.abs(librosa.stft(shifted, n_fft=FFT, hop_length=HOP, win_length=WINDOW, center=False))
    expected = np.log(stft.T @ mel_matrix() + 0.01)
    found = logmel(NOISE)
    assert np.abs(found - expected[: len(found)]).max() < 1e-4


def test_silence_and_what_is_too_short() -> None:
    assert np.allclose(logmel(np.zeros(SPAN, np.float32)), np.log(0.01))
    assert logmel(np.zeros(SPAN, np.float32)).shape == (96, 64)
    assert logmel(np.zeros(WINDOW - 1, np.float32)).shape == (0, 64)
    assert len(list(patches([np.zeros(SPAN, np.float32)], Heard()))) == 1
    assert list(patches([], Heard())) == list(patches([NOISE[:0]], Heard())) == []
    ((time_us, patch),) = patches([NOISE[:300], NOISE[300:5000]], Heard())
    padded = np.concatenate([NOISE[:5000], np.zeros(SPAN - 5000, np.float32)])
    assert time_us == SPAN / 2 / RATE_HZ * 1e6 and np.array_equal(patch, logmel(padded))


@given(st.lists(st.integers(0, 9000), max_size=12), st.sampled_from([0.01, 0.24, 0.48, 0.96, 1.5]))
def test_patches_do_not_depend_on_the_blocks(cuts: list[int], hop_s: float) -> None:
    places = np.minimum(np.cumsum([0, *cuts]), len(NOISE))
    blocks = [NOISE[a:b] for a, b in zip(places, [*places[1:], len(NOISE)], strict=True)]
    found = list(patches(blocks, Heard(start_us=7_000_000), hop_s=hop_s))
    whole = logmel(NOISE)
    step = round(hop_s * 100)
    starts = range(0, len(whole) - 95, step)
    assert [t for t, _ in found] == [7_000_000 + round((s * HOP + SPAN / 2) / RATE_HZ * 1e6) for s in starts]
    for (_, patch), start in zip(found, starts, strict=True):
        assert np.array_equal(patch, whole[start : start + 96])


def ends(path: Path, limits: Limits | None = None) -> Outcome:
    *_, outcome = samples(path, limits or Limits())
    assert isinstance(outcome, Outcome)
    return outcome


def test_outcomes(tmp_path: Path) -> None:
    long, short = (write_sound(tmp_path / f"{n}.wav", NOISE[:n], RATE_HZ) for n in (3 * RATE_HZ, SPAN - 1))
    assert ends(long) == Outcome(outcome="ok", rows=3)
    assert ends(short) == Outcome(outcome="ok", rows=1)
    assert ends(write_sound(tmp_path / "silent.wav", 0 * NOISE, RATE_HZ)) == Outcome(outcome="ok", rows=3)
    assert ends(long, Limits(max_duration_s=2.0)).outcome == "too_large"
    assert ends(tmp_path / "none.wav").outcome == "undecodable"
    whole = write_sound(tmp_path / "whole.mp4", NOISE, RATE_HZ, "aac", format="fltp")
    assert ends(whole).outcome == "ok"
    flac = write_sound(tmp_path / "cut.flac", NOISE, RATE_HZ, "flac")
    flac.write_bytes(flac.read_bytes()[: flac.stat().st_size * 3 // 4])
    assert (
        ends(flac).outcome == "partial" and ends(flac).rows == 2 and "of 3.00 s of sound decoded" in ends(flac).reason
    )


@needs_shared
@pytest.mark.parametrize("name", ["baby_5000ms", "baby_975ms", "dog_975ms", "jingle_975ms", "torchvggish_test"])
def test_the_wav_files_are_heard_as_in_the_reference(name: str) -> None:
    path = SHARED / f"weights/yamnet/audio/{name}.wav"
    found = np.concatenate(list(decode_audio(path, Limits(), Heard())))[:15_600]
    known = np.load(SHARED / "weights/yamnet/reference_outputs.npz")[f"{name}.wav/wave16k"]
    assert np.abs(found - known).max() < 1e-6
