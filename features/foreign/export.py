"""Stores for other programs, in the layouts that `features.foreign` reads: rows as they are stored, times in ms.

    npy          <folder>/<video>_<extractor>.npy, <video>_<extractor>_timestamps_ms.npy
    webdataset   <folder>/00042.tar, a tar a shard, of all stores together
    videos       HDF5, <video>/<extractor>
    flat         HDF5, <extractor>/features, offsets, ids, timestamps_ms

export(Path("out"), "npy", [Path("work/demo/features/rgb-0123abcd")])
"""

from __future__ import annotations

import io
import math
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import numpy.typing as npt

from features.atomic import Disk, fsync_folder, make_folder, write_bytes, writing
from features.errors import FramepoolError, UserError
from features.foreign.base import TIMES
from features.foreign.webdataset import undotted
from features.manifest import read_manifest
from features.store import Shard, read_shard, shards

Array = npt.NDArray[Any]
LAYOUTS: Final = ("npy", "webdataset", "videos", "flat")


def export(path: Path, layout: str, stores: Sequence[Path]) -> int:
    """Write the rows of `stores` to `path`; returns how many videos of them have rows. Shards are verified as they are
    read. Raises `UserError` where two stores are of one extractor: their files would be the same."""
    names = [_extractor(store) for store in stores]
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        fix = "export one split's stores alone: prune, or move the others away"
        raise UserError("two stores of one extractor", where=path, got=twice, fix=fix)
    return {"npy": _npy, "webdataset": _tars, "videos": _videos, "flat": _flat}[layout](path, stores)


def _npy(folder: Path, stores: Sequence[Path]) -> int:
    written: set[str] = set()
    for store in stores:
        for video, times_ms, rows in _all(store):
            stem = folder / f"{video}_{_extractor(store)}"
            make_folder(stem.parent)
            write_bytes(stem.with_name(f"{stem.name}.npy"), _bytes(rows))
            write_bytes(stem.with_name(f"{stem.name}_{TIMES}.npy"), _bytes(times_ms))
            written.add(video)
    return len(written)


def _tars(folder: Path, stores: Sequence[Path]) -> int:
    make_folder(folder)
    written: set[str] = set()
    for number in sorted({shard for store in stores for shard in shards(store)}):
        place = folder / f"{number:05d}.tar"
        with writing(place), whole(place) as path, tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
            for store in (s for s in stores if number in shards(s)):
                for video, times_ms, rows in _of(read_shard(store, number)):
                    name = f"{undotted(video)}.{_extractor(store)}"
                    for end, values in (("", rows), (f"_{TIMES}", times_ms)):
                        data = _bytes(values)
                        info = tarfile.TarInfo(f"{name}{end}.npy")
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
                    written.add(video)
    return len(written)


def _videos(path: Path, stores: Sequence[Path]) -> int:
    written: set[str] = set()
    with whole(path, stores) as place, h5py.File(place, "w") as file:
        for store in stores:
            for video, times_ms, rows in _all(store):
                file[f"{video}/{_extractor(store)}"] = rows
                file[f"{video}/{_extractor(store)}_{TIMES}"] = times_ms
                written.add(video)
    return len(written)


def _flat(path: Path, stores: Sequence[Path]) -> int:
    written: set[str] = set()
    with whole(path, stores) as place, h5py.File(place, "w") as file:
        for store in stores:
            found = [read_manifest(store, number) for number in shards(store)]
            if not found:
                continue
            total, group = sum(m.rows for m in found), file.create_group(_extractor(store))
            features = group.create_dataset("features", (total, *found[0].row_shape), found[0].dtype)
            times = group.create_dataset(TIMES, (total,), np.float64)
            names, offsets = [], [0]
            for video, times_ms, rows in _all(store):
                features[offsets[-1] : offsets[-1] + len(rows)] = rows
                times[offsets[-1] : offsets[-1] + len(rows)] = times_ms
                names.append(video)
                offsets.append(offsets[-1] + len(rows))
            group.create_dataset("ids", data=names, dtype=h5py.string_dtype())
            group.create_dataset("offsets", data=np.array(offsets, np.int64))
            written.update(names)
    return len(written)


def _all(store: Path) -> Iterator[tuple[str, Array, Array]]:
    for number in shards(store):
        yield from _of(read_shard(store, number))


def _of(shard: Shard) -> Iterator[tuple[str, Array, Array]]:
    """(video, times in ms (L,), rows (L,*D)) of each video that has rows."""
    for v, video in enumerate(shard.manifest.ids):
        part = slice(int(shard.offsets[v]), int(shard.offsets[v + 1]))
        if part.stop > part.start:
            yield video, shard.time_us[part] / 1e3, shard.frames[part]


def _extractor(store: Path) -> str:
    return store.name.rpartition("-")[0]


def _bytes(values: Array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=False)
    return stream.getvalue()


class whole:
    """A file that is there when it is written to its end. HDF5 that meets a full disk says so at length and not as an
    error of the disk: so there must be room for the rows of `stores` before it is begun."""

    def __init__(self, path: Path, stores: Sequence[Path] = ()) -> None:
        self.path, self.temporary = path, path.with_name(f".{path.name}.tmp")
        manifests = (read_manifest(store, number) for store in stores for number in shards(store))
        self._bytes = sum(m.rows * math.prod(m.row_shape) * np.dtype(m.dtype).itemsize for m in manifests)

    def __enter__(self) -> Path:
        make_folder(self.path.parent)
        free = shutil.disk_usage(self.path.parent).free
        if self._bytes > free:
            expected, got = (f"{size / 1e6:.1f} MB" for size in (self._bytes, free))
            raise FramepoolError("no room for the export", where=self.path, expected=expected, got=f"{got} free")
        return self.temporary

    def __exit__(self, kind: Any, *_: object) -> None:
        with writing(self.path):
            if kind is not None:
                Disk.remove(self.temporary)
                return
            with self.temporary.open("rb") as stream:
                Disk.fsync(stream.fileno())
            Disk.rename(self.temporary, self.path)
            fsync_folder(self.path.parent)
