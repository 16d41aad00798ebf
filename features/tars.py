"""Tars that strangers wrote, by their headers alone.

with Headers(io.FileIO(path)) as headers, tarfile.open(fileobj=headers, mode="r:") as tar: ...
"""

from __future__ import annotations

import io
import tarfile
from typing import Final

HEADER_BYTES: Final = 1 << 20  # of a member; nobody's path is longer


class Headers(io.BufferedReader):
    """A tar as its headers are read from: nothing in it may ask for more than a header's worth."""

    def read(self, size: int | None = -1) -> bytes:
        """Raises `tarfile.ReadError` for more than `HEADER_BYTES`."""
        if size is None or not 0 <= size <= HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)
