"""The one place that opens media: probe, then decode sequentially with true times.

Media are hostile. Only containers of a list are opened, none of which names other files, and only through FFmpeg's
`file` protocol. How many packets there are and what time they span is read before a picture is decoded, and libavcodec
is told the largest picture before it sees the first, so that it refuses a larger one without allocating it, also where
the size changes on the way. What hangs (a FIFO, a network mount) is for the caller's clock.

    video = probe(path, Limits())
    scale = Scaler(256, 224, "bilinear")                # of extract.scaler
    for number, time_us, frame in decode(path, Limits(), Decoded()):
        image = scale(frame)                        # uint8 (224, 224, 3) RGB, upright

`framepool stream` alone asks for more: `decode_live` also reads cameras, and addresses of the listed schemes, each with
the protocols that it needs and no others.

Times are microseconds of presentation as the file has them: they need not start at 0, and may be negative; where the
clock jumps because pieces were joined (MPEG, Ogg) the next piece follows the one before. Interlaced pictures stay woven
as they are, alpha is dropped, and pixels count as square.
"""

from __future__ import annotations

import re
import stat
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from heapq import heappop, heappush
from importlib import import_module
from typing import Any, Literal

import av
import av.error
import numpy as np
import numpy.typing as npt
from av.codec.hwaccel import HWAccel
from av.stream import Disposition
from av.video.frame import VideoFrame

from extract.clock import Clock
from extract.config import Limits
from extract.span import Media, Span
from features.errors import UserError
from features.outcome import Name

CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,asf,flv,mpeg,mpegts,mpegvideo,ogg,gif,mxf,nut,ivf,yuv4mpegpipe,mjpeg,"
    "wav,mp3,flac,aac"
)
ONLY = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
LIVE = {  # schemes of addresses, and the protocols that FFmpeg may speak for each
    **dict.fromkeys(("http", "https"), "http,https,httpproxy,tls,tcp"),
    "rtsp": "rtsp,rtp,udp,tcp",
    "rtmp": "rtmp,tcp",
    "tcp": "tcp",
    "udp": "udp",
}
FOREVER = ("rtsp", "rtmp", "udp")  # what goes on whether somebody reads or not
CAMERA = re.compile(r"/dev/video\d+")
ANSWER_S = 10.0  # how long an address or a camera may be silent
MOST_LOST = 1000  # packets that do not decode, before the rest is given up
DISORDER = 3  # pictures by which a container's times may be out of order
LAST_US = 1 << 62


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
    step_us: int = 0  # from one picture to the next, as the header says

    @property
    def duration_us(self) -> int:
        """From the first picture to the end of the last."""
        return int(self.times_us[-1] - self.times_us[0]) + self.step_us if len(self.times_us) else 0


@dataclass
class Decoded:
    """What a full decode found; filled while `decode` runs. `errors` counts packets and pictures that are damaged."""

    times_us: list[int] = field(default_factory=list)
    errors: int = 0
    first_error: str = ""

    def damage(self, number: int, what: str) -> None:
        """Count it, found at frame `number`."""
        self.errors += 1
        self.first_error = self.first_error or f"frame {number}: {what}"


def probe(path: Media, limits: Limits) -> Probe:
    """Read the header and every packet's time; decodes nothing. Raises `MediaError` for what gives no rows."""
    with opened(path, limits.max_pixels) as container:
        stream = _pictures(container)
        _check_pixels(stream.width, stream.height, limits)
        if stream.frames > limits.max_frames:
            raise MediaError("too_large", f"{stream.frames} frames promised, limit {limits.max_frames}")
        step_us, indexed = _step_us(stream), len(stream.index_entries)
        times: list[int] = []
        first, last = LAST_US, -LAST_US
        for packet in _packets(container, stream):
            if isinstance(packet, av.error.FFmpegError) or packet.size == 0 or packet.is_discard:
                continue  # what cannot be read, decoding says
            times.append(_time_us(packet, times[-1] + step_us if times else 0))
            first, last = min(first, times[-1]), max(last, times[-1])
            if (seconds := (last - first) * 1e-6) > limits.max_duration_s:
                raise MediaError("too_large", f"{seconds:.0f} s long, limit {limits.max_duration_s:.0f} s")
            if len(times) > limits.max_frames:
                raise MediaError("too_large", f"more than {limits.max_frames} frames")
        promised = _promised(container, stream)
        if container.format.name == "avi" and max(len(times), promised // 2) <= indexed:
            promised = indexed  # the header counts pictures that were left out, too; a file that is cut has no index
        return Probe(np.sort(np.array(times, dtype=np.int64)), promised, step_us)


def decode(
    path: Media, limits: Limits, found: Decoded, hardware: Literal["cuda"] | None = None
) -> Iterator[tuple[int, int, VideoFrame]]:
    """Decode every frame in display order; yield (number, time_us, frame as coded), and fill `found`.

    Damaged packets are passed over and counted, and so are pictures that the decoder patched up. Times never descend.
    With `hardware` the device decodes, and software what the device does not know. Raises `MediaError` when there is no
    picture track, or at a frame that is larger than the limits; `UserError` where there is no such device.
    """
    with opened(path, limits.max_pixels, hardware) as container:
        stream = _pictures(container)
        stream.codec_context.thread_count = 1  # the decoder processes are the parallelism
        stream.codec_context.options = {"max_pixels": _coded(limits.max_pixels)}
        for time_us, frame in _in_order(_frames(container, stream, limits, found), _step_us(stream)):
            number = len(found.times_us)
            if number >= limits.max_frames:
                raise MediaError("too_large", f"more than {limits.max_frames} frames")
            found.times_us.append(max(time_us, found.times_us[-1]) if number else time_us)
            yield number, found.times_us[-1], frame


def opened(
    path: Media, max_pixels: int = 4096 * 2304, hardware: Literal["cuda"] | None = None
) -> av.container.InputContainer:
    """Open `path` for reading; the one road to `av.open`. Raises `MediaError`; `UserError` where there is no
    such `hardware`.

    Finding out about streams can decode the first pictures; `max_pixels` bounds them. A FIFO blocks until somebody
    writes to it.
    """
    options = {**ONLY, "max_pixels": _coded(max_pixels)}
    if hardware:
        try:
            return _opened(path, options, HWAccel(hardware))
        except av.error.FFmpegError as error:
            _memory(error)
            opened(path, max_pixels).close()  # else it is no media
            got, fix = error.strerror, "set decoder: software, or run where the driver is"
            raise UserError(f"no {hardware} device that decodes", got=got, fix=fix) from None
    try:
        return _opened(path, options)
    except av.error.InvalidDataError:
        raise MediaError("undecodable", "not media, or its header is broken") from None
    except av.error.ArgumentError:  # how FFmpeg says that a format is not on the whitelist
        raise MediaError("refused", "its container is not one of the allowed ones") from None
    except (av.error.FFmpegError, OSError, ValueError) as error:
        _memory(error)
        raise MediaError("undecodable", f"cannot be opened: {getattr(error, 'strerror', error)}") from None


def scheme_of(source: str) -> str:
    """The scheme of an address, "camera" for /dev/video0 and its like, "" for the path of a file."""
    scheme, separator, _ = source.partition("://")
    return "camera" if CAMERA.fullmatch(source) else scheme.lower() if separator else ""


def decode_live(source: str, limits: Limits) -> Iterator[tuple[int, VideoFrame]]:
    """(time_us, frame) of an address or a camera, in display order, to its end if it has one. Times never descend.

    Raises `MediaError`: ``refused`` for another scheme than those of `LIVE`, what opening and decoding can say, and
    after the frames that came ``timeout`` or ``undecodable`` where a connection falls silent or breaks off.
    """
    scheme = scheme_of(source)
    if scheme == "camera":
        yield from _camera(source, limits)
        return
    if scheme not in LIVE:
        raise MediaError("refused", f"scheme {scheme!r} is not one of {', '.join(LIVE)}")
    options = {
        "format_whitelist": f"{CONTAINERS},rtsp,mpjpeg",
        "protocol_whitelist": LIVE[scheme],
        "max_pixels": _coded(limits.max_pixels),
    }
    if scheme == "rtsp":
        options["rtsp_transport"] = "tcp"  # what is lost on the way would be grey
    try:
        container = av.open(source, options=options, metadata_errors="replace", timeout=ANSWER_S)
    except av.error.ArgumentError:
        raise MediaError("refused", "its container is not one of the allowed ones") from None
    except (av.error.FFmpegError, OSError, ValueError) as error:
        _memory(error)
        raise MediaError("undecodable", f"cannot be opened: {getattr(error, 'strerror', error)}") from None
    with container:
        stream, last = _pictures(container), -LAST_US
        stream.codec_context.options = {"max_pixels": _coded(limits.max_pixels)}
        for time_us, frame in _in_order(_frames(container, stream, limits, Decoded(), live=True), _step_us(stream)):
            last = max(last, time_us)
            yield last, frame


def _camera(source: str, limits: Limits) -> Iterator[tuple[int, VideoFrame]]:
    """By OpenCV, as PyAV's FFmpeg comes without Video4Linux; times are those at which frames arrive."""
    cv2: Any = import_module("cv2")
    camera = cv2.VideoCapture(source, cv2.CAP_V4L2)
    try:
        if not camera.isOpened():
            raise MediaError("undecodable", "no camera that can be opened")
        start = time.monotonic()
        while (got := camera.read())[0]:
            _check_pixels(got[1].shape[1], got[1].shape[0], limits)
            yield round((time.monotonic() - start) * 1e6), VideoFrame.from_ndarray(got[1], format="bgr24")
    finally:
        camera.release()


def _opened(media: Media, options: dict[str, str], hwaccel: HWAccel | None = None) -> av.container.InputContainer:
    named = _named(media)
    container: av.container.InputContainer = av.open(named, options=options, metadata_errors="replace", hwaccel=hwaccel)
    return container


def _named(media: Media) -> Any:
    """What FFmpeg opens, once it is known to be a file with something in it."""
    path, part = (media.path, media.size) if isinstance(media, Span) else (media, None)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) and (part is not None or not stat.S_ISFIFO(status.st_mode)):
            raise MediaError("refused", "not a regular file")
        if stat.S_ISREG(status.st_mode) and (status.st_size if part is None else part) == 0:
            raise MediaError("undecodable", "empty file")
        # The explicit protocol keeps a name such as `pipe:0` or `concat:a|b` a plain file name.
        return media.stream() if isinstance(media, Span) else f"file:{media}"
    except (OSError, ValueError) as error:
        raise MediaError("undecodable", f"cannot be read: {getattr(error, 'strerror', error)}") from None


def _pictures(container: av.container.InputContainer) -> av.VideoStream:
    """The first track of moving pictures: a cover of an album is none."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            if stream.codec_context is None:
                raise MediaError("undecodable", "no decoder for its pictures")
            return stream
    raise MediaError("no_video", "no picture track")


def _promised(container: av.container.InputContainer, stream: av.VideoStream) -> int:
    if stream.frames and container.format.name.startswith("mov"):  # an edit list hides pictures that the header counts
        return sum(not entry.is_discard for entry in stream.index_entries)
    return stream.frames


def _packets(
    container: av.container.InputContainer, stream: av.VideoStream, *, live: bool = False
) -> Iterator[av.Packet[av.VideoStream] | av.error.FFmpegError]:
    """Packets to the end of the file, the last an empty one; in place of what cannot be read its error. A `live` source
    that breaks off raises `MediaError`."""
    clock = Clock(container)
    for _ in range(MOST_LOST):
        try:
            yield from map(clock, container.demux(stream))
            return
        except av.error.FFmpegError as error:
            _memory(error)
            if live and not isinstance(error, av.error.InvalidDataError):
                late = isinstance(error, av.error.ExitError)
                said = f"nothing came for {ANSWER_S:g} s" if late else f"it broke off: {error.strerror}"
                raise MediaError("timeout" if late else "undecodable", said) from None
            yield error
        except IndexError:  # how PyAV ends when tracks came up on the way
            return


def _frames(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    limits: Limits,
    found: Decoded,
    *,
    live: bool = False,
) -> Iterator[VideoFrame]:
    given = lost = 0
    for packet in _packets(container, stream, live=live):
        try:
            if isinstance(packet, av.error.FFmpegError):
                raise packet
            frames = stream.decode(packet)
        except av.error.EOFError:
            return
        except av.error.FFmpegError as error:
            _memory(error)
            if isinstance(error, av.error.ArgumentError) and stream.codec_context.width == 0:
                # libavcodec forgets the size of a picture that it refuses
                raise MediaError("too_large", f"a picture of over {limits.max_pixels} pixels, or of none") from None
            found.damage(given, str(error.strerror))
            lost += 1
            if lost > MOST_LOST:
                return
            continue
        for frame in frames:
            _check_pixels(frame.width, frame.height, limits)
            if frame.is_corrupt:
                found.damage(given, "patched up by the decoder")
            given += 1
            yield frame


def _in_order(frames: Iterator[VideoFrame], step_us: int) -> Iterator[tuple[int, VideoFrame]]:
    """(time_us, frame). Pictures leave a decoder in the order of display; AVI has times in the order of decoding only,
    so times are sorted within a few pictures. A picture without a time comes one step after the one before it."""
    held: deque[VideoFrame] = deque()
    times: list[int] = []
    last, broken = -step_us, None
    try:
        for frame in frames:
            last = _time_us(frame, last + step_us)
            heappush(times, last)
            held.append(frame)
            if len(held) > DISORDER:
                yield heappop(times), held.popleft()
    except MediaError as error:
        broken = error
    while held:
        yield heappop(times), held.popleft()
    if broken is not None:
        raise broken


def _time_us(timed: av.Packet[av.VideoStream] | VideoFrame, otherwise: int) -> int:
    ticks = timed.pts if timed.pts is not None else timed.dts
    if ticks is None or timed.time_base is None:
        return otherwise
    return max(-LAST_US, min(LAST_US, round(ticks * timed.time_base * 1_000_000)))


def _step_us(stream: av.VideoStream) -> int:
    """From one picture to the next where they have no times of their own; 25 a second where the header is no help."""
    rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
    return round(1_000_000 / rate) if rate > 0 else 40_000


def _coded(max_pixels: int) -> str:
    """For libavcodec, which counts whole blocks of up to 128x128; `_check_pixels` is exact."""
    return str(2 * max_pixels + (1 << 16))


def _check_pixels(width: int, height: int, limits: Limits) -> None:
    if width * height > limits.max_pixels:
        raise MediaError("too_large", f"{width}x{height} pixels, limit {limits.max_pixels}")


def _memory(error: Exception) -> None:
    """No memory is not the file's damage: the process that decodes has met its limit."""
    if isinstance(error, MemoryError):
        raise error
