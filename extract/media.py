"""The one place that opens media: probe, then decode sequentially with true times and rotation.

Media are hostile. Only containers of a list are opened, and only the file itself, so that no playlist can name another
file; sizes are checked before a frame is decoded.

    video = probe(path, Limits())
    for frame in decode(path, Scaler(256, 224, "bilinear")): ...

Times are microseconds of presentation; pixels are uint8 (H, W, 3) RGB.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

from extract.config import Limits
from features.outcome import Name

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,asf,flv,mpeg,mpegts,mpegvideo,ogg,gif,wav,mp3,flac,aac"
OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
LONGEST_PX = 1 << 16  # of a picture that is scaled before its crop; slivers would fill the memory
Image = npt.NDArray[np.uint8]


class MediaError(Exception):
    """Why a video gives no rows: its outcome and the reason."""

    def __init__(self, outcome: Name, reason: str) -> None:
        super().__init__(reason)
        self.outcome, self.reason = outcome, reason


@dataclass
class Probe:
    """What a file says of itself without decoding. `times_us` (F,) ascends, one for each coded picture."""

    times_us: npt.NDArray[np.int64]
    promised: int  # frames that the header promises; 0 where it does not say
    rate: Fraction  # of the track, for pictures without a time of their own


@dataclass
class Decoded:
    """What a full decode found; filled while `decode` runs."""

    times_us: list[int] = field(default_factory=list)
    errors: int = 0
    first_error: str = ""


class Scaler:
    """Short side to `resize_px`, centre crop of `crop_px`, RGB, rotated as the file asks; one reused reformatter."""

    def __init__(self, resize_px: int, crop_px: int, interpolation: str) -> None:
        self.resize_px, self.crop_px = resize_px, crop_px
        self._filter = {"bilinear": Interpolation.BILINEAR, "bicubic": Interpolation.BICUBIC}[interpolation]
        self._reformat = VideoReformatter().reformat

    def __call__(self, frame: VideoFrame) -> Image:
        """(crop_px, crop_px, 3)."""
        scale = self.resize_px / min(frame.width, frame.height)
        width, height = (max(self.resize_px, round(side * scale)) for side in (frame.width, frame.height))
        if max(width, height) > LONGEST_PX:
            raise MediaError("too_large", f"{frame.width}x{frame.height} pixels would become {width}x{height}")
        scaled = self._reformat(frame, width=width, height=height, format="rgb24", interpolation=self._filter)
        top, left = (height - self.crop_px) // 2, (width - self.crop_px) // 2
        image = scaled.to_ndarray()[top : top + self.crop_px, left : left + self.crop_px]
        turns = round(frame.rotation / 90) % 4
        return np.rot90(image, turns).astype(np.uint8, copy=False)


def probe(path: Path, limits: Limits) -> Probe:
    """Read the header and every packet's time. Raises `MediaError` for what gives no rows."""
    with _opened(path) as container:
        if container.duration and container.duration * 1e-6 > limits.max_duration_s:
            seconds = container.duration * 1e-6
            raise MediaError("too_large", f"{seconds:.0f} s long, limit {limits.max_duration_s:.0f} s")
        if not container.streams.video:
            raise MediaError("no_video", "no picture track")
        stream = container.streams.video[0]
        _check_pixels(stream.width, stream.height, limits)
        if stream.frames > limits.max_frames:
            raise MediaError("too_large", f"{stream.frames} frames promised, limit {limits.max_frames}")
        rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
        times: list[int] = []
        try:
            for packet in container.demux(stream):
                if packet.size == 0 or packet.is_discard:
                    continue
                ticks = packet.pts if packet.pts is not None else packet.dts
                times.append(_time_us(ticks, packet.time_base, len(times), rate))
                if len(times) > limits.max_frames:
                    raise MediaError("too_large", f"more than {limits.max_frames} frames")
        except av.error.FFmpegError:
            pass  # a cut file: what was read so far is what there is; decoding says the rest
        times_us = np.sort(np.array(times, dtype=np.int64))
        if times and (seconds := (times_us[-1] - times_us[0]) * 1e-6) > limits.max_duration_s:
            raise MediaError("too_large", f"{seconds:.0f} s long, limit {limits.max_duration_s:.0f} s")
        return Probe(times_us, stream.frames, rate)


def decode(
    path: Path, scale: Callable[[VideoFrame], Image], wanted: Callable[[int], bool], limits: Limits, found: Decoded
) -> Iterator[tuple[int, int, Image]]:
    """Decode every frame in display order; yield (number, time_us, image) of those `wanted`, and fill `found`.

    Damaged packets are passed over and counted. Raises `MediaError` when a frame is larger than the limits.
    """
    with _opened(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # the decoder processes are the parallelism
        rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
        for frame in _frames(container, stream, found):
            number = len(found.times_us)
            found.times_us.append(_time_us(frame.pts, frame.time_base, number, rate))
            if number >= limits.max_frames:
                raise MediaError("too_large", f"more than {limits.max_frames} frames")
            if wanted(number):
                _check_pixels(frame.width, frame.height, limits)
                yield number, found.times_us[-1], scale(frame)


def _frames(container: av.container.InputContainer, stream: av.VideoStream, found: Decoded) -> Iterator[VideoFrame]:
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                return
            yield from stream.decode(packet)
        except av.error.EOFError:
            return
        except av.error.FFmpegError as error:
            found.errors += 1
            found.first_error = found.first_error or f"frame {len(found.times_us)}: {error.strerror}"
            if found.errors > 1000:
                return


def _opened(path: Path) -> av.container.InputContainer:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise MediaError("undecodable", f"cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        raise MediaError("refused", "not a regular file")
    if path.stat().st_size == 0:
        raise MediaError("undecodable", "empty file")
    try:
        # The explicit protocol keeps a name such as `pipe:0` or `concat:a|b` a plain file name.
        return av.open(f"file:{path}", options=OPTIONS, metadata_errors="replace")
    except av.error.InvalidDataError:
        raise MediaError("undecodable", "not media, or its header is broken") from None
    except av.error.ArgumentError:  # how FFmpeg says that a format is not on the whitelist
        raise MediaError("refused", "its container is not one of the allowed ones") from None
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise MediaError("undecodable", f"cannot be opened: {getattr(error, 'strerror', error)}") from None


def _time_us(ticks: int | None, base: Fraction | None, number: int, rate: Fraction) -> int:
    if ticks is None or base is None:
        return round(number * 1_000_000 / rate)
    return round(ticks * base * 1_000_000)


def _check_pixels(width: int, height: int, limits: Limits) -> None:
    if width * height > limits.max_pixels:
        raise MediaError("too_large", f"{width}x{height} pixels, limit {limits.max_pixels}")
