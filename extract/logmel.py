"""Log-mel patches of sound, as VGGish and YAMNet were trained on them.

Hershey et al. 2017, and Google's `mel_features`: windows of 25 ms every 10 ms, periodic Hann, the magnitude (not power)
of an FFT of 512, 64 bands of the HTK mel scale between 125 and 7,500 Hz, natural log of the band plus an offset (0.01;
YAMNet 0.001). Incomplete windows and patches are dropped; sound that is shorter than a patch is padded to one.
librosa's STFT gives the same magnitudes (a test compares them), but importing it would cost every decoder process
seconds and 250 MB.

    for time_us, patch in patches(blocks, heard): ...               # patch (96, 64) float32
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

from extract.audio import RATE_HZ, Heard, Sound, decode_audio
from extract.config import Limits
from extract.media import MediaError
from extract.span import Media
from features.outcome import Outcome

WINDOW, HOP, FFT = 400, 160, 512  # samples
BANDS, LOWEST_HZ, HIGHEST_HZ = 64, 125.0, 7500.0
FRAMES: Final = 96  # of a patch
SPAN: Final = (FRAMES - 1) * HOP + WINDOW  # samples that a patch covers: 0.975 s
SHORT: Final = 0.95  # of what is promised; less is `partial`
_HANN: Final = 0.5 - 0.5 * np.cos(2 * np.pi / WINDOW * np.arange(WINDOW))  # periodic
Patch = npt.NDArray[np.float32]  # (96, 64)


def samples(
    path: Media, limits: Limits, *, hop_s: float = 0.96, offset: float = 0.01, heard: Heard | None = None
) -> Iterator[tuple[int, Patch] | Outcome]:
    """(time_us, patch) of each patch of a file, then its outcome; the time is the middle of what the patch covers.

    What the decode finds goes into `heard`.
    """
    heard, count = heard or Heard(), 0
    try:
        for item in patches(decode_audio(path, limits, heard), heard, hop_s=hop_s, offset=offset):
            count += 1
            yield item
    except MediaError as error:
        yield Outcome(outcome=error.outcome, reason=error.reason)
        return
    seconds = heard.samples / RATE_HZ
    reason = f"{seconds:.2f} {f'of {heard.promised_s:.2f} ' if heard.promised_s else ''}s of sound decoded"
    reason += f"; {heard.first_error}" if heard.errors else ""
    if count == 0:
        yield Outcome(outcome="too_short", reason=f"{seconds:.3f} s of sound, a patch takes {SPAN / RATE_HZ} s")
    elif heard.errors or seconds < min(SHORT * heard.promised_s, heard.promised_s - 0.5):
        yield Outcome(outcome="partial", reason=reason, rows=count)
    else:
        yield Outcome(outcome="ok", rows=count)


def patches(
    blocks: Iterable[Sound], heard: Heard, *, hop_s: float = 0.96, offset: float = 0.01
) -> Iterator[tuple[int, Patch]]:
    """(time_us, (96, 64)) every `hop_s`, a multiple of 10 ms, from blocks of 16 kHz sound of any sizes. Sound that is
    shorter than a patch is followed by silence."""
    step, first = round(hop_s * RATE_HZ / HOP), 0
    kept, at = np.zeros((0, BANDS), np.float32), 0  # log-mel frames from number `at` on
    for frames in _frames(_long_enough(blocks), offset):
        kept = np.concatenate([kept, frames])
        while at + len(kept) >= first + FRAMES:
            middle = (first * HOP + SPAN / 2) / RATE_HZ
            yield heard.start_us + round(middle * 1e6), kept[first - at : first - at + FRAMES].copy()
            first += step
        drop = min(max(first - at, 0), len(kept))
        kept, at = kept[drop:], at + drop


def _long_enough(blocks: Iterable[Sound]) -> Iterator[Sound]:
    samples = 0
    for block in blocks:
        samples += len(block)
        yield block
    if 0 < samples < SPAN:
        yield np.zeros(SPAN - samples, np.float32)


def logmel(sound: Sound, offset: float = 0.01) -> npt.NDArray[np.float32]:
    """(n,) at 16 kHz -> (frames, 64)."""
    if len(sound) < WINDOW:
        return np.zeros((0, BANDS), np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(sound.astype(np.float64), WINDOW)[::HOP]
    magnitude = np.abs(np.fft.rfft(windows * _HANN, FFT))
    return np.log(magnitude @ mel_matrix() + offset).astype(np.float32)


@cache
def mel_matrix() -> npt.NDArray[np.float64]:
    """(257, 64): triangles that are linear in mel, not scaled by their area; nothing of 0 Hz."""

    def mel(hz: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return 1127.0 * np.log(1.0 + hz / 700.0)

    bins = mel(np.linspace(0.0, RATE_HZ / 2, FFT // 2 + 1))[:, None]
    lowest, highest = mel(np.array([LOWEST_HZ, HIGHEST_HZ]))
    edges = np.linspace(lowest, highest, BANDS + 2)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    weights: npt.NDArray[np.float64] = np.maximum(
        0.0, np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre))
    )
    weights[0] = 0.0
    return weights


def _frames(blocks: Iterable[Sound], offset: float) -> Iterator[npt.NDArray[np.float32]]:
    """Log-mel frames (n, 64) of the stream, each once."""
    kept = np.zeros(0, np.float32)
    for block in blocks:
        kept = np.concatenate([kept, block])
        count = (len(kept) - WINDOW) // HOP + 1
        if count > 0:
            yield logmel(kept[: (count - 1) * HOP + WINDOW], offset)
            kept = kept[count * HOP :]
