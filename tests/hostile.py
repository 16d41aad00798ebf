"""Makers of hostile and merely odd media, and what becomes of a file on the road through `extract.media`.

write(Path("a.mkv"), "ffv1", 17, 33, pix_fmt="gray10le"); outcome_of(Path("a.mkv"))   # Outcome(outcome="ok", ...)
"""

from __future__ import annotations

import json
import resource
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition

from extract.config import Limits
from extract.samples import Job, SoundJob, samples
from extract.samplings import Every, Uniform
from features.outcome import Outcome

BOXES = (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"stbl", b"edts")  # of boxes, in ISO/IEC 14496-12
QUIET = {
    "libx264": {"preset": "ultrafast", "threads": "1"},
    "libx265": {"x265-params": "log-level=none:pools=1", "preset": "ultrafast"},
    "libvpx-vp9": {"cpu-used": "8", "threads": "1"},
    "libvpx": {"cpu-used": "8", "threads": "1"},
}


def outcome_of(path: Path, limits: Limits | None = None) -> Outcome:
    """How one file ends for an extractor of every picture; without the rows, which are as many as were decoded."""
    job = Job(Every(kind="every"), 16, 16, "bilinear", limits or Limits())
    *_, (_, outcome) = samples(path, {0: job})
    if not isinstance(outcome, Outcome):
        raise TypeError(outcome)
    return replace(outcome, rows=0)


def seen_and_heard(path: Path) -> Outcome:
    """As `outcome_of`, beside clips and log-mel patches of the same file; refuses a sample that is not finite."""
    jobs = {
        0: Job(Every(kind="every"), 16, 16, "bilinear", Limits()),
        1: Job(Uniform(n=3), 16, 16, "bicubic", Limits(), frames=4, gray=True),
        2: SoundJob(0.48, 0.01, Limits()),
    }
    ends: dict[int, Outcome] = {}
    for number, item in samples(path, jobs):
        if isinstance(item, Outcome):
            ends[number] = item
        elif not np.isfinite(item[1]).all():
            raise ValueError(f"{path}: job {number}: a sample that is not finite at {item[0]}")
    if ends.keys() != jobs.keys():
        raise ValueError(f"{path}: ends of {sorted(ends)}")
    return ends[0]


def tell(paths: Sequence[str], road: Callable[[Path], Outcome] = outcome_of, memory_mb: int = 2048) -> None:
    """Print a line of JSON for each file: [path, outcome, seconds, peak MB of this process above its start].

    Body of a child process; like a decoder process it may have `memory_mb` of address space beside what it starts with.
    """
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + (memory_mb << 20)
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    at_start = peak_mb()
    for path in paths:
        start = time.monotonic()
        try:
            outcome = road(Path(path)).outcome
        except MemoryError:
            outcome = "decoder_killed"
        print(json.dumps([path, outcome, time.monotonic() - start, peak_mb() - at_start]), flush=True)


def peak_mb() -> int:
    """Most memory that this process has held so far."""
    if sys.platform == "linux":  # where what getrusage says includes the parent's, from before exec
        [line] = [n for n in Path("/proc/self/status").read_text().splitlines() if n.startswith("VmHWM:")]
        return int(line.split()[1]) >> 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 20


def write(
    path: Path,
    codec: str = "libx264",
    width: int = 64,
    height: int = 48,
    frames: int = 6,
    *,
    pix_fmt: str = "yuv420p",
    times_ms: Sequence[int] | None = None,
    fps: int = 25,
    options: Mapping[str, str] | None = None,
    container_options: Mapping[str, str] | None = None,
) -> Path:
    """A clip of pictures that differ: frame n has the value 20 + 20 n in every sample of its first plane.

    `times_ms` in place of a constant rate.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    times_ms = times_ms if times_ms is not None else [n * 1000 // fps for n in range(frames)]
    with av.open(str(path), "w", container_options=dict(container_options or {})) as container:
        stream: Any = container.add_stream(codec, rate=fps, options={**QUIET.get(codec, {}), **(options or {})})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        if path.suffix in (".mp4", ".mkv", ".webm", ".mov"):  # the others have the frame rate as their clock
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, time_ms in enumerate(times_ms):
            container.mux(stream.encode(picture(width, height, pix_fmt, number, time_ms)))
        container.mux(stream.encode())
    return path


def picture(width: int, height: int, pix_fmt: str, number: int, time_ms: int) -> av.VideoFrame:
    """Frame `number`: 20 + 20 n everywhere in the first plane, middle values in the others."""
    frame = av.VideoFrame(width, height, pix_fmt)
    for at, plane in enumerate(frame.planes):
        value = 20 + 20 * (number % 11) if at == 0 else 128
        wide = "10" in pix_fmt
        sample = struct.pack("<H", value << 2) if wide else bytes([value])
        plane.update(sample * (plane.buffer_size // len(sample)))
    frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
    return frame


def repeated(path: Path, count: int, step_ms: int) -> Path:
    """One black intra picture of 2x2, `count` times over, each of a few bytes."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 2, 2, "yuv420p"
        coded = [*stream.encode(av.VideoFrame(2, 2, "yuv420p")), *stream.encode()]
        data = bytes(coded[0])
        for number in range(count):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, Fraction(1, 1000)
            packet.pts = packet.dts = number * step_ms
            packet.is_keyframe = True
            container.mux(packet)
    return path


def resized(path: Path, whole: Path, width: int, height: int, first: int) -> Path:
    """The VP8 clip `whole`, all of key frames, with another size in those from number `first` on (RFC 6386, 9.1)."""
    data, at = bytearray(whole.read_bytes()), -1
    for number in range(data.count(b"\x9d\x01\x2a")):
        at = data.index(b"\x9d\x01\x2a", at + 1)
        if number >= first:
            data[at + 3 : at + 7] = struct.pack("<HH", width, height)
    path.write_bytes(data)
    return path


def boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, content) of consecutive ISO boxes of 32-bit sizes."""
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        size = size if size >= 8 else len(data) - at
        yield kind, data[at + 8 : at + size]
        at += size


def edited(data: bytes, edit: Mapping[bytes, Callable[[bytes], bytes]]) -> bytes:
    """An MP4 with the content of some boxes changed, and the sizes around them. Needs its moov after its mdat."""
    out = b""
    for kind, content in boxes(data):
        content = edited(content, edit) if kind in BOXES else edit.get(kind, bytes)(content)
        out += struct.pack(">I4s", 8 + len(content), kind) + content
    return out


def rewritten(path: Path, whole: Path, **edit: Callable[[bytes], bytes]) -> Path:
    """`whole` with its boxes `edit`ed, written to `path`."""
    path.write_bytes(edited(whole.read_bytes(), {kind.encode(): change for kind, change in edit.items()}))
    return path


def put(at: int, layout: str, *values: int) -> Callable[[bytes], bytes]:
    """An edit: `values` at a place of a box."""

    def change(content: bytes) -> bytes:
        data = bytearray(content)
        struct.pack_into(layout, data, at, *values)
        return bytes(data)

    return change


def turned(path: Path, whole: Path, matrix: tuple[int, int, int, int]) -> Path:
    """`whole`, an MP4, with the display matrix (a b; c d): x' = ax + cy, y' = bx + dy, y down."""
    a, b, c, d = (value << 16 for value in matrix)
    return rewritten(path, whole, tkhd=put(40, ">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30))


def alias(target: Path) -> Callable[[bytes], bytes]:
    """An edit of dref: the samples lie in `target`, by a Macintosh alias record with an absolute path."""
    name, where = target.name.encode()[:63], str(target).encode()
    where += b"\0" * (len(where) % 2)
    record = b"\0" * 10 + b"\1" + b"/".ljust(27, b"\0") + b"\0" * 12 + bytes([len(name)]) + name.ljust(63, b"\0")
    record += b"\0" * 16 + struct.pack(">hh", 1, 1) + b"\0" * 16
    record += struct.pack(">HH", 2, len(where)) + where + struct.pack(">Hh", 0xFFFF, 0)
    entry = struct.pack(">I4sI", 12 + len(record), b"alis", 0) + record
    return lambda content: struct.pack(">II", 0, 1) + entry


def lists(canary: Path) -> dict[str, str]:
    """Texts of formats that name other files: name -> text."""
    return {
        "ffconcat": f"ffconcat version 1.0\nfile {canary}\n",
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{canary}\n#EXT-X-ENDLIST\n",
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n"
        f"a=rtpmap:96 H264/90000\na=control:{canary}\n",
        "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT1S" profiles="urn:mpeg:dash:profile:isoff-main:2011"><Period><AdaptationSet '
        f'mimeType="video/mp4"><Representation id="1"><BaseURL>{canary}</BaseURL></Representation></AdaptationSet>'
        "</Period></MPD>",
        "smil": f'<SmoothStreamingMedia MajorVersion="2"><StreamIndex Url="{canary}"/></SmoothStreamingMedia>',
        "asx": f'<asx version="3.0"><entry><ref href="{canary}"/></entry></asx>',
        "pls": f"[playlist]\nFile1={canary}\nNumberOfEntries=1\nVersion=2\n",
        "vobsub": f"# VobSub index file, v7\nid: en, index: 0\ntimestamp: 00:00:00:000, filepos: 0\n{canary}\n",
    }


def sound(path: Path, seconds: float = 0.5, codec: str = "mp3", cover: bytes = b"") -> Path:
    """A tone, with `cover` (a JPEG) as the picture of its album (ID3v2.3 APIC)."""
    rate = 44100
    tone = (8000 * np.sin(np.arange(int(seconds * rate)) * 0.06)).astype(np.int16)[None]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
        frame.sample_rate = rate
        resampled = av.AudioResampler(stream.format, "mono", rate).resample(frame)
        container.mux([p for f in resampled for p in stream.encode(f)])
        container.mux(stream.encode())
    if cover:
        content = b"\0image/jpeg\0\3\0" + cover
        picture_ = b"APIC" + struct.pack(">IH", len(content), 0) + content
        size = bytes(len(picture_) >> shift & 127 for shift in (21, 14, 7, 0))
        path.write_bytes(b"ID3\3\0\0" + size + picture_ + path.read_bytes())
    return path


def jpeg(width: int = 32, height: int = 24) -> bytes:
    """A JPEG of one grey."""
    context: Any = av.CodecContext.create("mjpeg", "w")
    context.width, context.height, context.pix_fmt = width, height, "yuvj420p"
    context.time_base = Fraction(1, 25)
    return bytes([*context.encode(picture(width, height, "yuvj420p", 3, 0)), *context.encode()][0])


def tracks(path: Path, sizes: Sequence[tuple[int, int]], cover: bytes = b"") -> Path:
    """A clip of several picture tracks of two frames, after a cover where there is one."""
    with av.open(str(path), "w") as container:
        streams: list[Any] = []
        if cover:
            front: Any = container.add_stream("mjpeg", rate=25)
            front.width, front.height, front.pix_fmt = 32, 24, "yuvj420p"
            front.disposition = Disposition.attached_pic
        for width, height in sizes:
            stream: Any = container.add_stream("libx264", rate=25, options=QUIET["libx264"])
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            streams.append(stream)
        container.start_encoding()
        if cover:
            packet = av.Packet(cover)
            packet.stream, packet.pts, packet.dts = front, 0, 0
            container.mux(packet)
        for stream in streams:
            for number in range(2):
                frame = picture(stream.width, stream.height, "yuv420p", number, 40 * number)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return path
