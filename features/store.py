"""The feature store: flat rows of many videos with their offsets and true times, one zarr v3 group a shard.

    work/<dataset>/features/<extractor>-<digest8>/
      00042.zarr/  frames (N, *D) float16 | uint8, offsets (V + 1,) int64, time_us (N,) int64, manifest.json
      00042.json   the published manifest (`features.manifest`)

A shard is made whole in ``00042.partial/`` and renamed into place, its manifest last; there is no way to write part of
a published shard. A reader takes the bytes only after they matched their manifest: zarr alone turns a missing or empty
chunk file into fill values.

    shard = read_shard(folder, 42)
    shard.frames[shard.offsets[3] : shard.offsets[4]]            # rows of the shard's fourth video
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import LocalStore, MemoryStore

from features.atomic import publish_folder, remove, write_json, writing
from features.errors import DamagedStore, FramepoolError
from features.journal import Journal
from features.manifest import REPAIR, Manifest, manifest_path, parse_manifest, read_manifest, shards
from features.outcome import WITH_ROWS
from features.recipe import file_sha256

__all__ = [
    "Shard",
    "publish",
    "read_manifest",
    "read_shard",
    "republish",
    "retire",
    "shards",
    "stream_shard",
    "verify_shard",
    "write_shard",
]

CHUNK_BYTES = 1 << 20  # the unit of reading, uncompressed
BLOCK_BYTES = 32 << 20  # of rows that a streaming reader holds
_FINITE_AT_ONCE = 1 << 18  # numbers that stay in cache
FILE_BYTES = 256 << 20  # chunks are packed into files of this size, so that a million videos are not a million files


@dataclass(frozen=True)
class Shard:
    """frames (N, *D), offsets (V + 1,), time_us (N,): rows of video v are ``frames[offsets[v]:offsets[v + 1]]``."""

    frames: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]
    time_us: npt.NDArray[np.int64]
    manifest: Manifest


def shard_path(folder: Path, shard: int) -> Path:
    """The zarr group of a shard."""
    return folder / f"{shard:05d}.zarr"


def partial_path(folder: Path, shard: int) -> Path:
    """Where a shard is made."""
    return folder / f"{shard:05d}.partial"


def read_shard(folder: Path, shard: int) -> Shard:
    """A published shard, every byte checked. Raises `DamagedStore`, naming the file."""
    return _read(shard_path(folder, shard), read_manifest(folder, shard))


Read = Callable[[int], Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[Any]]]]


def stream_shard(folder: Path, shard: int) -> tuple[Manifest, Read]:
    """A published shard that need not fit in memory: its manifest, and a function from a video's number in the shard to
    blocks of (time_us (n,), rows (n, *D)). Every byte is checked before. Raises `DamagedStore`, naming the file."""
    manifest = read_manifest(folder, shard)
    frames, times = _opened(shard_path(folder, shard), manifest)
    starts, step = manifest.offsets, _block_rows(manifest)

    def read(video: int) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[Any]]]:
        for at in range(int(starts[video]), int(starts[video + 1]), step):
            part = slice(at, min(at + step, int(starts[video + 1])))
            yield times[part], np.asarray(frames[part])

    return manifest, read


def _block_rows(manifest: Manifest) -> int:
    """Rows that a streaming reader holds."""
    row_bytes = max(1, int(np.prod(manifest.row_shape, dtype=np.int64)) * np.dtype(manifest.dtype).itemsize)
    return max(1, BLOCK_BYTES // row_bytes)


def _opened(path: Path, manifest: Manifest) -> tuple[Any, npt.NDArray[np.int64]]:
    """The zarr array of a shard's rows, to read in parts, and their times. Every byte is checked before."""
    for name, (size, sha256) in manifest.files.items():
        _checked_file(path / name, size, sha256)
    if not manifest.files:
        raise DamagedStore("manifest lists no files", where=path, fix=REPAIR)
    try:
        root = zarr.open_group(LocalStore(path, read_only=True), mode="r", zarr_format=3)
        frames, offsets, time_us = (root[name] for name in ("frames", "offsets", "time_us"))
        shapes = [a.shape for a in (frames, offsets, time_us) if isinstance(a, zarr.Array)]
    except (KeyError, ValueError, OSError) as error:
        raise DamagedStore("not a shard", where=path, got=error, fix=REPAIR) from None
    expected = [(manifest.rows, *manifest.row_shape), (len(manifest.ids) + 1,), (manifest.rows,)]
    if shapes != expected:
        raise DamagedStore("wrong shape", where=path, expected=expected, got=shapes, fix=REPAIR)
    try:
        starts, times = (np.asarray(array[...]) for array in (offsets, time_us))  # type: ignore[index]
    except (ValueError, RuntimeError, KeyError) as error:
        raise DamagedStore("shard does not decode", where=path, got=error, fix=REPAIR) from None
    if not np.array_equal(starts, manifest.offsets):
        raise DamagedStore("offsets disagree with the manifest", where=path / "offsets", fix=REPAIR)
    return frames, times


def verify_shard(folder: Path, shard: int) -> Manifest:
    """Everything that `read_shard` checks, and that the shard holds its manifest and no file that it does not know."""
    path = shard_path(folder, shard)
    manifest = read_shard(folder, shard).manifest
    for name in sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()):
        if name not in manifest.files and name != "manifest.json":
            raise DamagedStore("unknown file in a shard", where=path / name, fix=REPAIR)
    published = manifest_path(folder, shard).read_bytes()
    _checked(path / "manifest.json", len(published), hashlib.sha256(published).hexdigest())
    return manifest


def publish(journal: Journal, folder: Path, manifest: Manifest) -> Manifest:
    """Make the finished `journal` the published shard and remove it. Returns the manifest with its digests.

    Rows of a video whose outcome keeps none (`non_finite`, say) are left out. `manifest` comes without `files`.
    """
    with writing(shard_path(folder, manifest.shard)):
        return _publish(journal, folder, manifest)


def _publish(journal: Journal, folder: Path, manifest: Manifest) -> Manifest:
    index = journal.index()
    limits = np.array([o.rows if o.outcome in WITH_ROWS else 0 for o in manifest.outcomes], dtype=np.int64)
    starts = np.searchsorted(index["video"], np.arange(len(limits)))  # rows come in the order of the list
    rank = np.arange(len(index)) - starts[index["video"]]
    keep = np.flatnonzero(rank < limits[index["video"]])

    def blocks(size: int) -> Iterator[npt.NDArray[Any]]:
        for start in range(0, len(keep), size):
            rows = keep[start : start + size]
            yield journal.block(int(rows[0]), int(rows[-1]) + 1)[rows - rows[0]]

    path = journal.folder / "shard.zarr"
    manifest = write_shard(path, manifest, blocks, index["time_us"][keep])
    frames, times = _opened(path, manifest)
    step = _block_rows(manifest)
    same = all(np.array_equal(a, b) for a, b in zip(blocks(step), _split(frames, step), strict=True))
    if not same or not np.array_equal(times, index["time_us"][keep]):
        raise DamagedStore("shard reads back differently from what was written", where=path, fix="check the disk")
    retire(folder, manifest.shard)
    publish_folder(path, shard_path(folder, manifest.shard))
    write_json(manifest_path(folder, manifest.shard), manifest.to_json())
    journal.close()
    remove(journal.folder)
    return manifest


def republish(folder: Path, wanted: tuple[Any, ...], shard: int) -> Manifest | None:
    """Publish again a shard that is whole in its place and stands for `wanted` (`Manifest.identity`); else None.

    That is so after a kill between the two renames, or when the workflow removed the manifest to redo the job.
    """
    path = shard_path(folder, shard)
    try:
        manifest = parse_manifest(path / "manifest.json")
        if manifest.identity() != wanted:
            return None
        _opened(path, manifest)
    except FramepoolError:
        return None
    try:
        known = read_manifest(folder, shard)
    except FramepoolError:
        known = None
    if known != manifest:
        write_json(manifest_path(folder, shard), manifest.to_json())
    remove(partial_path(folder, shard))
    return manifest


def retire(folder: Path, shard: int) -> None:
    """Take a published shard away, its manifest first, so that nobody reads half of it."""
    remove(manifest_path(folder, shard))
    remove(shard_path(folder, shard))


def write_shard(path: Path, manifest: Manifest, blocks: Any, time_us: npt.NDArray[np.int64]) -> Manifest:
    """Write a whole zarr group at `path` from ``blocks(size) -> iterator of (<= size, *D)``; returns its manifest."""
    with writing(path):
        return _write(path, manifest, blocks, time_us)


def _write(path: Path, manifest: Manifest, blocks: Any, time_us: npt.NDArray[np.int64]) -> Manifest:
    remove(path)
    rows, dtype = manifest.rows, np.dtype(manifest.dtype)
    row_bytes = max(1, int(np.prod(manifest.row_shape, dtype=np.int64)) * dtype.itemsize)
    chunk = max(1, CHUNK_BYTES // row_bytes)
    file_rows = chunk * min(max(1, FILE_BYTES // (chunk * row_bytes)), max(1, -(-rows // chunk)))
    root = zarr.create_group(store=LocalStore(path), zarr_format=3)
    frames = root.create_array(
        "frames",
        shape=(rows, *manifest.row_shape),
        chunks=(chunk, *manifest.row_shape),
        shards=(file_rows, *manifest.row_shape),
        dtype=dtype,
        compressors=[ZstdCodec(level=1, checksum=True)],
        fill_value=np.nan if dtype.kind == "f" else 0,
        config={"write_empty_chunks": True},
    )
    at, peak, total = 0, 0.0, 0.0
    for block in blocks(file_rows):
        frames[at : at + len(block)] = block
        at += len(block)
        peak, total = max(peak, float(np.abs(block).max())), total + float(block.sum(dtype=np.float64))
    if not np.isfinite(peak + total):
        raise DamagedStore("non-finite row", where=path / "frames", expected="rows that were checked")
    statistics = {**manifest.statistics, "max_abs": peak, "mean": total / max(1, rows * (row_bytes // dtype.itemsize))}
    for name, values in (("offsets", manifest.offsets), ("time_us", time_us.astype(np.int64))):
        array = root.create_array(
            name,
            shape=values.shape,
            chunks=(max(1, len(values)),),
            dtype=np.int64,
            compressors=[ZstdCodec(level=1, checksum=True)],
            fill_value=0,
            config={"write_empty_chunks": True},
        )
        array[:] = values
    names = sorted(p for p in path.rglob("*") if p.is_file())
    files = {p.relative_to(path).as_posix(): (p.stat().st_size, file_sha256(p)) for p in names}
    manifest = replace(manifest, files=files, statistics=statistics)
    write_json(path / "manifest.json", manifest.to_json())
    return manifest


def _read(path: Path, manifest: Manifest) -> Shard:
    prototype = default_buffer_prototype()
    files = {name: prototype.buffer.from_bytes(_checked(path / name, *manifest.files[name])) for name in manifest.files}
    if not files:
        raise DamagedStore("manifest lists no files", where=path, fix=REPAIR)
    try:
        root = zarr.open_group(MemoryStore(files), mode="r", zarr_format=3)
        arrays = {name: root[name] for name in ("frames", "offsets", "time_us")}
        shapes = {name: array.shape for name, array in arrays.items() if isinstance(array, zarr.Array)}
    except (KeyError, ValueError, OSError) as error:
        raise DamagedStore("not a shard", where=path, got=error, fix=REPAIR) from None
    rows, videos = manifest.rows, len(manifest.ids)
    for name, expected in (("frames", (rows, *manifest.row_shape)), ("offsets", (videos + 1,)), ("time_us", (rows,))):
        if shapes.get(name) != expected:  # before anything is allocated
            raise DamagedStore("wrong shape", where=path / name, expected=expected, got=shapes.get(name), fix=REPAIR)
    try:
        frames, offsets, time_us = (np.asarray(arrays[name][...]) for name in ("frames", "offsets", "time_us"))  # type: ignore[index]
    except (ValueError, RuntimeError, KeyError) as error:
        raise DamagedStore("shard does not decode", where=path, got=error, fix=REPAIR) from None
    _check(path, manifest, frames, offsets)
    return Shard(frames, offsets, time_us, manifest)


def _check(path: Path, manifest: Manifest, frames: npt.NDArray[Any], offsets: npt.NDArray[np.int64]) -> None:
    expected = manifest.offsets
    if not np.array_equal(offsets, expected):
        v = int(np.flatnonzero(offsets != expected)[0])
        where, got = path / "offsets", f"{offsets[v]} at position {v}"
        raise DamagedStore("offsets disagree with the manifest", where=where, expected=expected[v], got=got, fix=REPAIR)
    if frames.dtype != np.dtype(manifest.dtype):
        raise DamagedStore("wrong dtype", where=path / "frames", expected=manifest.dtype, got=frames.dtype, fix=REPAIR)
    if frames.dtype.kind == "f" and not _finite(frames):
        row = next(r for r in range(len(frames)) if not np.isfinite(frames[r]).all())
        video = manifest.ids[int(np.searchsorted(offsets, row, "right")) - 1]
        raise DamagedStore("non-finite row", where=path / "frames", got=f"row {row} of video {video}", fix=REPAIR)


def _finite(frames: npt.NDArray[Any]) -> bool:
    """Whether all numbers are finite, by their exponents' bits: numpy's own way of float16 is a slow one."""
    bits = frames.view(f"u{frames.dtype.itemsize}")
    top = np.array(np.inf, dtype=frames.dtype).view(bits.dtype)
    magnitude = bits.dtype.type(np.iinfo(bits.dtype).max >> 1)
    return all((block & magnitude).max() < top for block in _split(bits.reshape(-1), _FINITE_AT_ONCE))


def _checked_file(path: Path, size: int, sha256: str) -> None:
    """As `_checked`, without holding the bytes."""
    try:
        got_size, got = path.stat().st_size, file_sha256(path)
    except OSError as error:
        raise DamagedStore("missing file in a shard", where=path, got=error.strerror, fix=REPAIR) from None
    if got_size != size:
        raise DamagedStore("wrong size", where=path, expected=f"{size} bytes", got=f"{got_size} bytes", fix=REPAIR)
    if got != sha256:
        raise _other_bytes(path, sha256, got)


def _other_bytes(path: Path, expected: str, got: str) -> DamagedStore:
    what = "bytes do not match their manifest"
    return DamagedStore(what, where=path, expected=f"sha256 {expected[:16]}", got=got[:16], fix=REPAIR)


def _checked(path: Path, size: int, sha256: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DamagedStore("missing file in a shard", where=path, got=error.strerror, fix=REPAIR) from None
    if len(data) != size:
        raise DamagedStore("wrong size", where=path, expected=f"{size} bytes", got=f"{len(data)} bytes", fix=REPAIR)
    if (got := hashlib.sha256(data).hexdigest()) != sha256:
        raise _other_bytes(path, sha256, got)
    return data


def _split(array: Any, size: int) -> Iterator[npt.NDArray[Any]]:
    return (array[start : start + size] for start in range(0, array.shape[0], size))
