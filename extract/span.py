"""A medium that is part of a file: a member of a tar, read where it lies. Nothing is unpacked.

with Span(Path("clips.tar"), start=512, size=80_000, name="a.mp4").stream() as stream: stream.read(12)
"""

from __future__ import annotations

import io
import os
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Span:
    """`size` bytes of the file `path` from byte `start` on. Of the `name` only the suffix is ever used."""

    path: Path
    start: int
    size: int
    name: str

    def stream(self) -> SpanFile:
        """Its bytes."""
        return SpanFile(self)


Media = Path | Span


class SpanFile(io.RawIOBase):
    """A `Span` as a file for reading."""

    def __init__(self, span: Span) -> None:
        suffix = re.search(r"\.[A-Za-z0-9]{1,8}$", span.name)
        self.name = f"member{suffix[0] if suffix else ''}"  # FFmpeg looks at the suffix where the content is no help
        self._span, self._at = span, 0
        self._file = os.open(span.path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO in the archive's place does not block

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._span.size}[whence]
        if base + offset < 0:
            raise OSError("seek before the start")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        wanted = min(len(buffer), max(0, self._span.size - self._at))
        data = os.pread(self._file, wanted, self._span.start + self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            os.close(self._file)
        super().close()
