"""Sound as the audio networks take it: the first track that decodes, mono, 16 kHz, float32 in [-1, 1], block by block.

Blocks follow one another without a hole: silence stands for what a container leaves out, so that a sample's place says
its time. Times are microseconds on the clock of the pictures (`extract.media`).

    heard = Heard()
    for block in decode_audio(path, Limits(), heard): ...          # (n,) float32
    heard.start_us + 1e6 * sample / RATE_HZ                         # when a sample sounds
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import av
import av.error
import numpy as np
import numpy.typing as npt
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream

from extract.clock import Clock, may_jump
from extract.config import Limits
from extract.media import MOST_LOST, MediaError, opened
from extract.span import Media

RATE_HZ: Final = 16_000
JITTER_S: Final = 0.05  # between what a packet's time says and where its sound comes to stand: not worth a hole
LOUDEST: Final = 8.0  # what is clipped would have been 1
BLOCKS_HZ: Final = 2  # blocks a second, about
Sound = npt.NDArray[np.float32]


@dataclass
class Heard:
    """What a decode found; filled while it runs. `promised_s` is what the header says, 0 where it does not."""

    start_us: int = 0
    samples: int = 0  # at RATE_HZ
    promised_s: float = 0.0
    errors: int = 0
    first_error: str = ""


def duration_s(path: Media, limits: Limits) -> float:
    """What the header says of the sound's length, or lets guess. Raises `MediaError`."""
    with opened(path, limits.max_pixels) as container:
        return _told_s(container, _tracks(container)[0])


def decode_audio(path: Media, limits: Limits, heard: Heard) -> Iterator[Sound]:
    """Blocks (n,) of the sound. Damaged packets are passed over and counted.

    Raises `MediaError`: ``no_audio`` where no track gives a sample, ``too_large`` over the limit of duration, and what
    opening a file can say.
    """
    tracks = 1
    for number in range(16):
        if number >= tracks:
            break
        with opened(path, limits.max_pixels) as container:
            found = _tracks(container)
            tracks = len(found)
            heard.promised_s = _promised_s(container, found[number])
            if heard.promised_s > limits.max_duration_s:
                raise _too_long(heard.promised_s, limits)
            yield from _resampled(_native(container, found[number], limits, heard), heard)
        if heard.samples:
            return
    raise MediaError("no_audio", f"no sound decodes{'; ' if heard.first_error else ''}{heard.first_error}")


def _tracks(container: av.container.InputContainer) -> list[AudioStream]:
    if not container.streams.audio:
        raise MediaError("no_audio", "no sound track")
    return list(container.streams.audio)


def _promised_s(container: av.container.InputContainer, stream: AudioStream) -> float:
    """0 where it is a guess: of clocks that may jump, of ADTS by its first bit rate, or of all tracks together."""
    if may_jump(container) or container.format.name == "aac" or (not stream.duration and len(container.streams) > 1):
        return 0.0
    return _told_s(container, stream)


def _told_s(container: av.container.InputContainer, stream: AudioStream) -> float:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) * 1e-6


def _too_long(seconds: float, limits: Limits) -> MediaError:
    return MediaError("too_large", f"{seconds:.0f} s of sound, limit {limits.max_duration_s:.0f} s")


def _native(
    container: av.container.InputContainer, stream: AudioStream, limits: Limits, heard: Heard
) -> Iterator[tuple[int, Sound]]:
    """(rate, mono samples) of each frame, with silence where a container leaves sound out."""
    clock_s: float | None = None  # where the next sample comes to stand
    total_s, base, tick_s = 0.0, None, 0.0
    for frame in _frames(container, stream, heard):
        mono, rate = _mono(frame), frame.sample_rate
        if not len(mono) or rate < 1:
            continue
        if frame.time_base != base:
            base, tick_s = frame.time_base, float(frame.time_base or 0)
        at_s = frame.pts * tick_s if frame.pts is not None and tick_s else clock_s or 0.0
        if clock_s is None:
            clock_s, heard.start_us = at_s, round(at_s * 1e6)
        hole_s = at_s - clock_s
        if hole_s > JITTER_S:
            if total_s + hole_s > limits.max_duration_s:
                raise _too_long(total_s + hole_s, limits)
            silence = round(hole_s * rate)
            for at in range(0, silence, rate):
                yield rate, np.zeros(min(rate, silence - at), np.float32)
            clock_s += silence / rate
            total_s += silence / rate
        elif hole_s < -JITTER_S:  # sound that was there already
            mono = mono[round(-hole_s * rate) :]
        clock_s += len(mono) / rate
        total_s += len(mono) / rate
        if total_s > limits.max_duration_s:
            raise _too_long(total_s, limits)
        if len(mono):
            yield rate, mono


def _frames(container: av.container.InputContainer, stream: AudioStream, heard: Heard) -> Iterator[AudioFrame]:
    packets, clock = container.demux(stream), Clock(container)
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                return
            yield from stream.decode(clock(packet))
        except (av.error.EOFError, IndexError):
            return
        except av.error.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            heard.errors += 1
            heard.first_error = heard.first_error or f"sample {heard.samples}: {error.strerror}"
            if heard.errors > MOST_LOST:
                return


def _mono(frame: AudioFrame) -> Sound:
    """Mean over channels, whole numbers scaled to [-1, 1]."""
    values: Any = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, len(frame.layout.channels)).T
    if values.dtype.kind in "iu":
        middle = np.float32(128 if values.dtype.kind == "u" else 0)
        values = (values.astype(np.float32) - middle) * np.float32(2.0 ** (1 - 8 * values.dtype.itemsize))
    mono: Sound = values[0] if len(values) == 1 else values.mean(axis=0, dtype=np.float32)
    if not np.abs(mono).max(initial=0) <= LOUDEST:  # a float codec can be made to say anything
        mono = np.nan_to_num(mono, nan=0.0, posinf=1.0, neginf=-1.0).clip(-LOUDEST, LOUDEST)
    return mono.astype(np.float32, copy=False)


def _resampled(native: Iterator[tuple[int, Sound]], heard: Heard) -> Iterator[Sound]:
    """To RATE_HZ, by FFmpeg's resampler, which needs no more than a few milliseconds at a time; a track may change its
    rate on the way."""
    resampler: Any = None
    now = 0
    waiting: list[Sound] = []

    def out(frame: AudioFrame | None) -> Iterator[Sound]:
        for resampled in resampler.resample(frame) if resampler is not None else ():
            block: Sound = resampled.to_ndarray()[0]
            heard.samples += len(block)
            if len(block):
                yield block

    def told() -> AudioFrame:
        frame = AudioFrame.from_ndarray(np.concatenate(waiting)[None], format="fltp", layout="mono")
        frame.sample_rate = now
        waiting.clear()
        return frame

    for rate, mono in native:
        if rate != now:
            if waiting:
                yield from out(told())
            yield from out(None)
            resampler, now = av.AudioResampler(format="fltp", layout="mono", rate=RATE_HZ), rate
        waiting.append(mono)
        if sum(map(len, waiting)) >= now // BLOCKS_HZ:
            yield from out(told())
    if waiting:
        yield from out(told())
    yield from out(None)
