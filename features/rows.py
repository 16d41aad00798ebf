"""The rows of a store's videos before they are tensors: which there are, where each video's begin, and reading them.

Nothing here imports torch, which takes as long as reading: `pipelines.sources` does both at once.

Legend: V videos that are wanted, N rows of theirs, *D one row.

    for modality, reading in readings({"rgb": Path("work/demo/features/rgb-0123abcd")}, ids).items():
        data, time_us = reading.read()
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from features.errors import FramepoolError, UserError
from features.manifest import Manifest, read_manifest, shards
from features.memory import available_bytes

Manifests = Mapping[int, Manifest]  # of a store's shards
Arrays = tuple[npt.NDArray[Any], npt.NDArray[np.int64]]  # rows (N+1, *D), the last one zeros, and their times (N+1,)
Allocate = Callable[[tuple[int, ...], np.dtype[Any]], npt.NDArray[Any]]
_READERS: Final = 3  # shards that are read, checked and unpacked at a time
_SAFETY_BYTES: Final = 256 << 20  # left free beside the rows


class TooLarge(FramepoolError):
    """Features that do not fit in memory. Exit code 1."""


@dataclass(frozen=True)
class Reading:
    """The rows of the wanted videos of one store, in its order: video v has rows starts[v] : starts[v] + lengths[v]."""

    folder: Path
    manifests: Manifests
    rows: int
    starts: npt.NDArray[np.int64]  # (V,)
    lengths: npt.NDArray[np.int64]  # (V,)
    _todo: tuple[tuple[int, npt.NDArray[np.bool_], int], ...]  # shard, its videos that are wanted, where they go

    @classmethod
    def of(cls, folder: Path, manifests: Manifests, wanted: Mapping[str, int]) -> Self:
        """Where the rows of the `wanted` videos are: their places 0 ... V-1 by id. Refuses a store that lacks one."""
        starts, lengths = np.zeros(len(wanted), dtype=np.int64), np.full(len(wanted), -1, dtype=np.int64)
        position, todo = 0, []
        for shard, manifest in manifests.items():
            place = np.array([wanted.get(video, -1) for video in manifest.ids], dtype=np.int64)
            keep = place >= 0
            kept = counts_of(manifest)[keep]
            if keep.any():
                todo.append((shard, keep, position))
            ends = position + np.cumsum(kept)
            starts[place[keep]], lengths[place[keep]] = ends - kept, kept
            position += int(kept.sum())
        if (lengths < 0).any():
            missing = [video for video, place in wanted.items() if lengths[place] < 0]
            more = f", nor are {len(missing) - 1} others" if len(missing) > 1 else ""
            raise FramepoolError(
                "store lacks videos",
                where=folder,
                expected=f"all {len(wanted)} videos",
                got=f"{missing[0]} is not among them{more}",
                fix="extract the shards that are missing",
            )
        return cls(folder, manifests, position, starts, lengths, tuple(todo))

    def empty(self, allocate: Allocate = np.empty) -> Arrays:
        """Room for what `read` finds."""
        first = next(iter(self.manifests.values()))
        count = self.rows + 1
        return allocate((count, *first.row_shape), np.dtype(first.dtype)), allocate((count,), np.dtype(np.int64))

    def read(self, arrays: Arrays | None = None) -> Arrays:
        """The rows, in `arrays` if they are given. The store's own reader refuses damaged shards and rows that are not
        finite, naming them."""
        from features.store import read_shard  # and zarr, which a process that leaves reading to another does not need

        data, time_us = arrays or self.empty()
        data[self.rows :], time_us[self.rows :] = 0, 0

        def read(job: tuple[int, npt.NDArray[np.bool_], int]) -> None:
            shard, keep, at = job
            stored = read_shard(self.folder, shard)
            rows = slice(None) if keep.all() else np.repeat(keep, np.diff(stored.offsets))
            frames, times = stored.frames[rows], stored.time_us[rows]
            data[at : at + len(frames)] = frames
            time_us[at : at + len(frames)] = times

        with ThreadPoolExecutor(_READERS) as readers:
            list(readers.map(read, self._todo))
        return data, time_us


def readings(stores: Mapping[str, Path], ids: Sequence[str], processes: int = 1) -> dict[str, Reading]:
    """The rows of `ids` from one store folder a modality; refuses what is missing, mixed or, for so many `processes` of
    a machine, `TooLarge`."""
    wanted = wanted_places(ids)
    found = {modality: Reading.of(folder, manifests_of(folder), wanted) for modality, folder in stores.items()}
    _check_memory(found.values(), processes)
    return found


def wanted_places(ids: Sequence[str]) -> dict[str, int]:
    """Where each video stands in `ids`; refuses one that is there twice."""
    wanted = {video: place for place, video in enumerate(ids)}
    if len(wanted) != len(ids):
        raise FramepoolError("a video is listed twice", got=next(v for k, v in enumerate(ids) if wanted[v] != k))
    return wanted


def facts_of(folder: Path, manifests: Manifests) -> dict[str, Any]:
    """What a run records of a store that it reads."""
    first = next(iter(manifests.values()))
    return {"store": folder.name, "digest": first.digest, "facts": first.facts}


def row_bytes(manifests: Manifests) -> int:
    """Bytes of one row of a store."""
    first = next(iter(manifests.values()))
    return math.prod(first.row_shape) * np.dtype(first.dtype).itemsize


def manifests_of(folder: Path) -> dict[int, Manifest]:
    """The manifests of a store's shards, all of one recipe, weights and row shape, and no video in two of them."""
    found = {shard: read_manifest(folder, shard) for shard in shards(folder)}
    if not found:
        raise UserError("no features here", where=folder, expected="00000.json ...", fix="run framepool extract first")
    begin, first = next(iter(found.items()))
    for shard, manifest in found.items():
        for what in ("digest", "facts", "row_shape", "dtype"):
            expected, got = getattr(first, what), getattr(manifest, what)
            if expected != got:
                fix = "shards of other recipes, weights or steps do not mix: remove the odd ones and extract again"
                where = f"{folder}: shards {begin:05d} and {shard:05d} differ in {what}"
                raise FramepoolError("mixed store", where=where, expected=expected, got=got, fix=fix)
    shard_of: dict[str, int] = {}
    for shard, manifest in found.items():
        for video in manifest.ids:
            if (other := shard_of.setdefault(video, shard)) != shard:
                where = f"{folder}: shards {other:05d} and {shard:05d}"
                fix = "one is left over from another list or shard_size: run framepool gather, or remove the folder"
                raise FramepoolError("a video is in two shards", where=where, got=video, fix=fix)
    return found


def _check_memory(found: Iterable[Reading], processes: int) -> None:
    needed = _SAFETY_BYTES
    for reading in found:  # its rows, and the shards that are being read
        largest = max(manifest.rows for manifest in reading.manifests.values())
        needed += row_bytes(reading.manifests) * (reading.rows + _READERS * largest)
    needed, available = processes * needed, available_bytes()
    if needed > available:
        fix = "stream them (framepool train --stream), or train on fewer modalities"
        got = f"{available} available"
        raise TooLarge("features do not fit in memory", expected=f"{needed} bytes", got=got, fix=fix)


def counts_of(manifest: Manifest) -> npt.NDArray[np.int64]:
    """(V,) rows of each video of a shard."""
    return np.array([outcome.rows for outcome in manifest.outcomes], dtype=np.int64)
