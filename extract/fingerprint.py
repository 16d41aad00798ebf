"""What tells one slice of a video list, and one file, from another.

list_digest([Item("Archery/v_Archery_g01_c01", "Archery/v_Archery_g01_c01.avi")], root)
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from extract.span import Media, Span
from features.recipe import digest


@dataclass(frozen=True)
class Item:
    """One video of the shard: its id, and its file under the root ("" where there is none)."""

    id: str
    path: str


def list_digest(items: Sequence[Item], root: Path, *, timed: bool = False) -> str:
    """Digest of a slice of the list: ids, paths and what the files are (size, and sha256 of both ends).

    `timed`: with the files' times, for those whose middle somebody may have written anew. A video's file is not one.
    """
    times = {i.path: _changed_ns(root / i.path) for i in items if i.path} if timed else {}
    return digest([[i.id, i.path, fingerprint(root / i.path) if i.path else "", *times.get(i.path, ())] for i in items])


def _changed_ns(path: Path) -> tuple[int, ...]:
    try:
        return (path.stat().st_mtime_ns,)
    except OSError:
        return ()


def fingerprint(path: Media) -> str:
    """Tells a replaced file from the old one, wherever it is copied: size, and sha256 of its first and last 64 KiB."""
    try:
        if isinstance(path, Span):
            with path.stream() as part:
                return _of_ends(part, path.size)
        if not stat.S_ISREG(path.stat().st_mode):  # opening a FIFO would wait for its writer
            return "not a regular file"
        with path.open("rb") as stream:
            return _of_ends(stream, os.fstat(stream.fileno()).st_size)
    except OSError as error:
        return f"unreadable: {error.strerror}"


def _of_ends(stream: Any, size: int) -> str:
    end = 1 << 16
    head = stream.read(end)
    stream.seek(max(len(head), size - end))
    return f"{size}-{hashlib.sha256(head + stream.read(end)).hexdigest()[:16]}"
