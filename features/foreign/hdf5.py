"""Features in one HDF5 file: a dataset a video, or all rows in one with offsets and ids.

    <video>                    (L,*D), or <video>/<key> and <video>/<key>_timestamps_ms
    features (N,*D), offsets (V+1,), ids (V,), timestamps_ms (N,)         in the file, or in <key>/

rows = Hdf5(Path("c3d.hdf5"), "c3d_features", None, ids)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np

from features.errors import UserError
from features.foreign.base import LARGEST_BYTES, TIMES, Array, Collection, Unreadable, matched
from features.videolist.names import nfd

FLAT: Final = ("features", "offsets", "ids")
_FLAT_BYTES: Final = 8 << 30  # of offsets or of names
_CHUNK_BYTES: Final = 1 << 30
_MOST_PACKED: Final = 4096  # times that rows may be larger than what is stored of them


class Hdf5(Collection):
    """`entries`: the path of a video's dataset, or in a flat file its first and last row."""

    def __init__(self, path: Path, key: str | None, every_s: float | None, ids: Sequence[str]) -> None:
        super().__init__(path, every_s)
        self.root, self.key = path.parent, key
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise UserError("not an HDF5 file", where=path, got=str(error)[:120]) from None
        top = f"{key}/" if key and isinstance(self._node(key), h5py.Group) else ""
        flat = {name: self._node(top + name) for name in (*FLAT, TIMES)}
        self._flat = flat if all(isinstance(flat[name], h5py.Dataset) for name in FLAT) else None
        self.entries = self._rows_of(ids) if self._flat is not None else self._datasets(ids)

    def place(self, video: str) -> str:
        """See `Collection`."""
        return self.path.name if video in self.entries else ""

    def _datasets(self, ids: Sequence[str]) -> dict[str, Any]:
        names = {}
        for video in ids:
            for name in dict.fromkeys(form for own in (video, video.rpartition("/")[2]) for form in (own, nfd(own))):
                place = f"{name}/{self.key}" if self.key else name
                if self._node(place) is not None:
                    names[name] = place
                    break
        return matched(names, ids, self.path)

    def _node(self, place: str) -> Any:
        """What stands there, through groups of this file alone: a link elsewhere is as good as nothing."""
        node: Any = self._file
        for part in place.split("/"):
            if not isinstance(node, h5py.Group) or not isinstance(node.get(part, getlink=True), h5py.HardLink):
                return None
            node = node.get(part)
        return node

    def _rows_of(self, ids: Sequence[str]) -> dict[str, Any]:
        flat: Any = self._flat
        names = [n.decode("utf-8", "replace") if isinstance(n, bytes) else str(n) for n in self._read(flat["ids"])]
        offsets, ids_ = self._read(flat["offsets"]), flat["ids"]
        if flat["features"].ndim < 1 or offsets.ndim != 1 or ids_.ndim != 1 or offsets.dtype.kind not in "iu":
            expected = "features (N, ...), offsets (V+1,) of whole numbers, ids (V,)"
            got = ", ".join(f"{name} {flat[name].shape} {flat[name].dtype}" for name in FLAT)
            raise UserError("not flat features", where=self.path, expected=expected, got=got)
        ascending = len(offsets) == len(names) + 1 and (np.diff(offsets) >= 0).all()
        if not ascending or offsets[0] < 0 or offsets[-1] > len(flat["features"]):
            expected = f"{len(names) + 1} ascending ones of at most {len(flat['features'])}"
            raise UserError("offsets do not fit the features", where=self.path, expected=expected, got=len(offsets))
        spans = {n: (int(a), int(b)) for n, a, b in zip(names, offsets[:-1], offsets[1:], strict=True)}
        return matched(spans, ids, self.path)

    def _read(self, dataset: Any) -> Array:
        try:
            return _within(dataset, slice(None), _FLAT_BYTES)
        except Unreadable as error:
            raise UserError("offsets or ids cannot be read", where=self.path, got=error.reason) from None

    def _array(self, video: str) -> Array:
        if self._flat is not None:
            return _within(self._flat["features"], slice(*self.entries[video]))
        return _within(self._node(self.entries[video]), slice(None))

    def _times(self, video: str, count: int) -> Array | None:
        if self._flat is not None:
            times = self._flat[TIMES]
            return None if times is None else _within(times, slice(*self.entries[video]))
        node = self._node(f"{self.entries[video]}_{TIMES}")
        return None if node is None else _within(node, slice(None))


def _within(dataset: Any, part: slice, largest: int = LARGEST_BYTES) -> Array:
    """`part` of a dataset that says what it holds and holds it itself. Raises `Unreadable`."""
    if not isinstance(dataset, h5py.Dataset):
        raise Unreadable("undecodable", "no dataset")
    if dataset.external or dataset.is_virtual:
        raise Unreadable("refused", "a dataset that names other files")
    if dataset.ndim < 1:
        raise Unreadable("undecodable", "a single number")
    first, last, _ = part.indices(dataset.shape[0])
    size = max(0, last - first) * math.prod(dataset.shape[1:]) * dataset.dtype.itemsize
    chunk = math.prod(dataset.chunks or ()) * dataset.dtype.itemsize
    if size > largest or chunk > _CHUNK_BYTES:
        raise Unreadable("too_large", f"{size} bytes in chunks of {chunk}, limit {largest}")
    if size > _MOST_PACKED * (stored := dataset.id.get_storage_size()):
        raise Unreadable("undecodable", f"{size} bytes are said to be in {stored}")
    try:
        return np.asarray(dataset[part])
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise Unreadable("undecodable", f"cannot be read: {str(error)[:80]}") from None
