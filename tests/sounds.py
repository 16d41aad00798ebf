"""Test media with sound, made by script: clips that beep and flash at once, and tracks of any codec, rate and layout.

click_and_flash(Path("a.mp4"), fps=25)          # two seconds; a white picture and a beep at 1.0 s
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

Sound = npt.NDArray[np.float32]


def beep(seconds: float, rate_hz: int, at_s: float = 1.0, length_s: float = 0.04) -> Sound:
    """Silence with a tone of 1 kHz that begins at `at_s`."""
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    on = (time_s >= at_s) & (time_s < at_s + length_s)
    return (0.8 * np.sin(2 * np.pi * 1000 * time_s) * on).astype(np.float32)


def click_and_flash(
    path: Path,
    fps: int | Fraction = 25,
    at_s: float = 1.0,
    *,
    variable: bool = False,
    sound_offset_s: float = 0.0,
    side_px: int = 64,
) -> Path:
    """Two seconds of grey noise; the pictures from `at_s` on for 40 ms are white, and a beep sounds there.

    `variable`: every third frame is left out, so that an index over a rate is no time. `sound_offset_s`: the sound
    track begins that much later than the pictures; the beep stays where it is.
    """
    rate_hz, ticks = 16_000, 90_000
    path.parent.mkdir(parents=True, exist_ok=True)
    times_s = np.arange(int(2 * fps)) / float(fps)
    if variable:
        times_s = np.delete(times_s, np.s_[2::3])
    noise = np.random.default_rng(0).integers(90, 160, (side_px, side_px), dtype=np.uint8)
    flash = int(np.argmax(times_s >= at_s - 1e-6))
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=fps, options={"threads": "1", "preset": "ultrafast", "bf": "0"})
        video.width = video.height = side_px
        video.pix_fmt = "yuv420p"
        video.codec_context.time_base = video.time_base = Fraction(1, ticks)
        audio = container.add_stream("aac", rate=rate_hz, layout="mono")
        for number, time_s in enumerate(times_s):
            picture = np.full_like(noise, 255) if number == flash else noise
            frame = av.VideoFrame.from_ndarray(np.stack([picture] * 3, -1), format="rgb24")
            frame.pts, frame.time_base = round(time_s * ticks), Fraction(1, ticks)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        sound = beep(2.0, rate_hz, at_s)[round(sound_offset_s * rate_hz) :]
        for start in range(0, len(sound), 1024):
            block = av.AudioFrame.from_ndarray(sound[None, start : start + 1024], format="fltp", layout="mono")
            block.sample_rate, block.time_base = rate_hz, Fraction(1, rate_hz)
            block.pts = start + round(sound_offset_s * rate_hz)
            container.mux(audio.encode(block))
        container.mux(audio.encode(None))
    return path


def write_sound(
    path: Path,
    sound: Sound | Sequence[Sound],
    rate_hz: int,
    codec: str = "pcm_s16le",
    *,
    layout: str = "mono",
    format: str = "s16",
    gaps: Callable[[int], int] = lambda start: 0,
) -> Path:
    """One track, or several, of a sound (n,) in all channels; `gaps` adds samples to the time of a block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tracks = [sound] if isinstance(sound, np.ndarray) else list(sound)
    with av.open(str(path), "w") as container:
        streams = [container.add_stream(codec, rate=rate_hz, layout=layout) for _ in tracks]
        for stream, samples in zip(streams, tracks, strict=True):
            size = stream.codec_context.frame_size or 1024
            for start in range(0, len(samples), size):
                frame = av.AudioFrame.from_ndarray(
                    _coded(samples[start : start + size], layout, format), format, layout
                )
                frame.sample_rate, frame.time_base = rate_hz, Fraction(1, rate_hz)
                frame.pts = start + gaps(start)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return path


def _coded(sound: Sound, layout: str, format: str) -> npt.NDArray[Any]:
    count = len(av.AudioLayout(layout).channels)
    kind = format.removesuffix("p")
    if kind == "flt":
        values: npt.NDArray[Any] = sound
    elif kind == "u8":
        values = np.rint(sound * 127 + 128).astype(np.uint8)
    else:
        values = np.rint(sound * {"s16": 32767, "s32": 2147483000}[kind]).astype(
            {"s16": np.int16, "s32": np.int32}[kind]
        )
    channels = np.stack([values] * count)
    return channels if format.endswith("p") else np.ascontiguousarray(channels.T).reshape(1, -1)
