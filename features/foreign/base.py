"""What all collections of features share: which video is which entry, arrays read within bounds, and times of rows.

class Mine(Collection): ...                       # `_array` and `_times` of an entry
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from features.errors import UserError
from features.outcome import Name
from features.videolist.names import nfc

Array = npt.NDArray[Any]
LARGEST_BYTES: Final = 4 << 30  # of one video's rows
BLOCK_BYTES: Final = 32 << 20
TIMES: Final = "timestamps_ms"  # video_features' word
_HEADER: Final = 10_000  # bytes


class Unreadable(Exception):
    """Why a video has no rows: its outcome and the reason."""

    def __init__(self, outcome: Name, reason: str) -> None:
        super().__init__(reason)
        self.outcome, self.reason = outcome, reason


class Collection:
    """Rows of many videos. `entries` says where those of a video are, as a subclass understands it."""

    root: Path  # what places are relative to
    entries: Mapping[str, Any]

    def __init__(self, path: Path, every_s: float | None) -> None:
        self.path, self.every_s = path, every_s
        self._shape: tuple[int, ...] | None = None

    def place(self, video: str) -> str:
        """The file that holds the video's rows, relative to `root`; "" where there is none."""
        raise NotImplementedError

    def _array(self, video: str) -> Array:
        """(L,*D). Raises `Unreadable`."""
        raise NotImplementedError

    def _times(self, video: str, count: int) -> Array | None:
        """(L,) milliseconds; None where none are told. Raises `Unreadable`."""
        raise NotImplementedError

    def _rate_hz(self, video: str) -> float | None:
        """Rows a second, where that is told. Raises `Unreadable`."""
        return None

    def rows(self, video: str) -> tuple[npt.NDArray[np.int64], Array]:
        """time_us (L,) and rows (L,*D); a single row may come as (D,). Raises `Unreadable`."""
        if video not in self.entries:
            raise Unreadable("undecodable", f"no features of it in {self.path}")
        found = self._array(video)
        if found.ndim < 1 or found.dtype.kind not in "fiu":
            raise Unreadable("undecodable", f"an array of {found.dtype}, {found.ndim} axes")
        found = found[None] if found.ndim == 1 else found
        if len(found) == 0:
            raise Unreadable("too_short", "no rows")
        times_ms = self._times(video, len(found))
        if times_ms is None:
            step_s = self.every_s or 1 / (self._rate_hz(video) or 1.0)
            return np.round((np.arange(len(found)) + 0.5) * step_s * 1e6).astype(np.int64), found
        if times_ms.shape != (len(found),) or not np.isfinite(times_ms).all() or (np.diff(times_ms) < 0).any():
            raise Unreadable("undecodable", f"{len(found)} rows, but not as many ascending times")
        return np.round(times_ms.astype(np.float64) * 1e3).astype(np.int64), found

    def blocks(self, video: str) -> Iterator[tuple[npt.NDArray[np.int64], Array]]:
        """The same in blocks, of the one shape that the collection has. Raises `Unreadable`."""
        times_us, rows = self.rows(video)
        if rows.shape[1:] != self.row_shape:
            raise Unreadable("undecodable", f"rows of {rows.shape[1:]}, others have {self.row_shape}")
        step = max(1, BLOCK_BYTES // max(1, rows[:1].nbytes))
        for at in range(0, len(rows), step):
            yield times_us[at : at + step], np.asarray(rows[at : at + step])

    @property
    def row_shape(self) -> tuple[int, ...]:
        """*D: that of the first video that can be read. Raises `UserError` where none can."""
        reason = "none of the videos is there"
        for video in self.entries if self._shape is None else ():
            try:
                self._shape = self.rows(video)[1].shape[1:]
                break
            except Unreadable as error:
                reason = error.reason
        if self._shape is None:
            raise UserError("no features of the list's videos", where=self.path, got=reason, fix="look at path and key")
        return self._shape


def layout_of(path: Path) -> str:
    """By the name: HDF5, tar, or a folder of .npy files."""
    return {".h5": "hdf5", ".hdf5": "hdf5", ".tar": "webdataset"}.get(path.suffix.lower(), "npy")


def matched(names: Mapping[str, Any], ids: Sequence[str], where: Path) -> dict[str, Any]:
    """{id: what `names` has of it}, by the whole id, else by its last part. Raises `UserError` where a last part is of
    several ids or of several names."""
    names, ends = {nfc(name): found for name, found in names.items()}, dict[str, list[str]]()
    for name in names:
        ends.setdefault(name.rpartition("/")[2], []).append(name)
    shared = Counter(video.rpartition("/")[2] for video in ids)
    found = {}
    for video in ids:
        if video in names:
            found[video] = names[video]
            continue
        end = video.rpartition("/")[2]
        there = ends.get(end, [])
        if not there:
            continue
        if len(there) > 1 or shared[end] > 1:
            got = f"{len(there)} entries, {shared[end]} videos"
            fix = "name the features by the whole ids of the videos, folders and all"
            raise UserError("a name that tells no video from another", where=f"{where}: {end}", got=got, fix=fix)
        found[video] = names[there[0]]
    return found


def read_npy(stream: IO[bytes], size: int) -> Array:
    """The array in `size` bytes of `stream`, which must be exactly as long as its header says. Raises `Unreadable`."""
    try:
        start = stream.tell()
        version = np.lib.format.read_magic(stream)
        reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, by_column, dtype = reader(stream, max_header_size=_HEADER)
        if dtype.hasobject or dtype.kind not in "fiu":
            raise Unreadable("refused", f"an array of {dtype}")
        needed = math.prod(shape) * dtype.itemsize
        if needed > LARGEST_BYTES:
            raise Unreadable("too_large", f"{needed} bytes, limit {LARGEST_BYTES}")
        if needed != size - (stream.tell() - start):
            raise Unreadable("undecodable", f"{size} bytes, its header tells of {needed} and itself")
        values = np.frombuffer(stream.read(needed), dtype)
        return values.reshape(shape, order="F" if by_column else "C")
    except (ValueError, KeyError, OSError, EOFError, SyntaxError, TypeError) as error:
        raise Unreadable("undecodable", f"no .npy: {str(error)[:80]}") from None
