"""Features in memory: one tensor a modality, batches picked by index. The only module of this room that imports torch.

Every shard is read once, in bulk, and verified; rows stay in the type they are stored in until a batch reaches the
device. Modalities are joined by video id, never by position, and on demand row by row by time. A batch is padded to its
longest video and comes with masks; padding is zeros.

Legend: V videos in all, N rows in all, B videos of a batch, L rows of a video, *D one row.

    features = Features.open({"rgb": Path("work/demo/features/rgb-0123abcd")}, ids)
    rows, masks = features.batch(torch.tensor([0, 3]), even_rows(25))   # {"rgb": (2,25,1280)}, {"rgb": (2,25)}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import numpy as np
import psutil
import torch
from torch import Tensor

from features.align import nearest
from features.errors import FramepoolError, UserError
from features.manifest import Manifest
from features.store import read_manifest, read_shard, shards

Batch = tuple[dict[str, Tensor], dict[str, Tensor]]  # {modality: (B,L,*D)}, {modality: (B,L) bool}
Select = Callable[[Tensor], tuple[Tensor, Tensor]]  # row counts (B,) -> row numbers (B,L) ascending, mask (B,L); L >= 1
Picked = dict[str, tuple[Tensor, Tensor]]  # {modality: row numbers within each video (B,L), mask (B,L)}
Start = tuple[int, Tensor]  # blocks to pass over, and the state of the generator when the next one was asked for
_DTYPES: Final = {"uint8": torch.uint8, "float16": torch.float16, "float32": torch.float32}
_MEAN_ROWS: Final = 1024  # summed at a time
_READERS: Final = 3  # shards that are read, checked and unpacked at a time
_SAFETY_BYTES: Final = 256 << 20  # left free beside the rows


class TooLarge(FramepoolError):
    """Features that do not fit in memory. Exit code 1."""


def all_rows(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Every row of every video."""
    index = torch.arange(max(1, int(lengths.max()))).expand(len(lengths), -1)  # (B,L)
    return index, index < lengths[:, None]


def even_rows(n: int) -> Select:
    """`n` rows at equal intervals, the middles floor((j + 0.5) * L / n); all of them where there are fewer."""

    def select(lengths: Tensor) -> tuple[Tensor, Tensor]:
        j, counts = torch.arange(n), lengths[:, None]
        index = torch.where(counts > n, (2 * j + 1) * counts // (2 * n), j)
        return _trim(index, j < counts)

    return select


def random_rows(n: int, generator: torch.Generator) -> Select:
    """A random subset of `n` rows without replacement, in their order; all of them where there are fewer."""

    def select(lengths: Tensor) -> tuple[Tensor, Tensor]:
        index, mask = all_rows(lengths)
        keys = torch.rand(index.shape, generator=generator).masked_fill_(~mask, 2.0)  # padding sorts last
        chosen = keys.argsort(dim=1)[:, :n].sort(dim=1).values
        return _trim(chosen, torch.arange(chosen.shape[1]) < lengths[:, None])

    return select


def segment_rows(n: int, generator: torch.Generator) -> Select:
    """TSN: `n` equal segments, a random row of each; all rows where there are fewer than `n`.

    Segment s is rows [s*L//n, (s+1)*L//n): TSN's own wherever n divides L, else the rest is spread and not dropped.
    """

    def select(lengths: Tensor) -> tuple[Tensor, Tensor]:
        j, counts = torch.arange(n), lengths[:, None]
        first = j * counts // n
        size = (j + 1) * counts // n - first
        within = (torch.rand(size.shape, generator=generator, dtype=torch.float64) * size).long()
        return _trim(torch.where(counts > n, first + within, j), j < counts)

    return select


def _trim(index: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    longest = max(1, int(mask.sum(dim=1).max()))
    return index[:, :longest], mask[:, :longest]


class Rows(NamedTuple):
    """One modality: video v has rows data[starts[v] : starts[v] + lengths[v]]; the last row of `data` is padding."""

    data: Tensor  # (N+1, *D) float16, float32 or uint8
    starts: Tensor  # (V,)
    lengths: Tensor  # (V,)
    time_us: Tensor  # (N+1,) int64: the middle of what each row covers, ascending within a video


Block = tuple["Features", Tensor, Tensor]  # rows in memory, places (n,) in what was asked for, numbers (n,) in the rows


@dataclass(frozen=True)
class Features:
    """The rows of `ids`, modality by modality. `stores` says where they came from, as a run records it."""

    ids: tuple[str, ...]
    rows: dict[str, Rows]
    stores: dict[str, dict[str, Any]]

    @classmethod
    def open(cls, stores: Mapping[str, Path], ids: Sequence[str]) -> Self:
        """Read the rows of `ids` from one store folder a modality; refuse what is missing, mixed or too large.

        The store's own reader refuses damaged shards and rows that are not finite, naming the video.
        """
        manifests, wanted = cls.check_memory(stores, ids)
        rows = {modality: read_rows(stores[modality], found, wanted) for modality, found in manifests.items()}
        facts = facts_of(stores, {modality: dict(found) for modality, found in manifests.items()})
        return cls(tuple(ids), rows, facts)

    @staticmethod
    def check_memory(
        stores: Mapping[str, Path], ids: Sequence[str], processes: int = 1
    ) -> tuple[dict[str, list[tuple[int, Manifest]]], dict[str, int]]:
        """What `open` would read; raises `TooLarge` where so many `processes` of a machine have no room for it."""
        manifests = {modality: manifests_of(folder) for modality, folder in stores.items()}
        wanted = wanted_places(ids)
        _check_memory(manifests, wanted, processes)
        return manifests, wanted

    @classmethod
    def of(
        cls,
        ids: Sequence[str],
        arrays: Mapping[str, Sequence[np.ndarray[Any, Any]]],
        times_us: Mapping[str, Sequence[np.ndarray[Any, Any]]] | None = None,
    ) -> Self:
        """Features from arrays in memory: for each modality one (L, *D) array a video, rows of one shape and type.

        `times_us` are of the same structure, (L,) a video; without them rows are a second apart.
        """
        rows = {}
        for modality, videos in arrays.items():
            data = torch.from_numpy(
                np.concatenate([*videos, np.zeros_like(videos[0], shape=(1, *videos[0].shape[1:]))])
            )
            lengths = torch.tensor([len(v) for v in videos])
            given = times_us[modality] if times_us else [np.arange(len(v)) * 1_000_000 for v in videos]
            times = torch.from_numpy(np.concatenate([*given, [0]]).astype(np.int64))
            rows[modality] = Rows(data, lengths.cumsum(0) - lengths, lengths, times)
        return cls(tuple(ids), rows, {})

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape *D of one row, by modality."""
        return {modality: tuple(rows.data.shape[1:]) for modality, rows in self.rows.items()}

    def only(self, modalities: Sequence[str]) -> Features:
        """The same videos with these modalities alone, in this order; no row is copied."""
        stores = {m: self.stores[m] for m in modalities if m in self.stores}
        return Features(self.ids, {m: self.rows[m] for m in modalities}, stores)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return sum(rows.data.nbytes for rows in self.rows.values())

    def has_rows(self, modality: str | None = None) -> Tensor:
        """(V,) bool: the video has a row in `modality`, or in at least one."""
        asked = self.rows.values() if modality is None else [self.rows[modality]]
        return torch.stack([rows.lengths > 0 for rows in asked]).any(dim=0)

    def means(self, videos: Tensor) -> dict[str, Tensor]:
        """{modality: (D,) float32}: the mean of all rows of the videos numbered `videos`, where rows are vectors; zeros
        where they have none."""
        found = {}
        for modality, (data, starts, lengths, _) in self.rows.items():
            if data.ndim != 2:
                continue
            counts = lengths[videos]
            first = counts.cumsum(0) - counts
            index = torch.arange(int(counts.sum())) + (starts[videos] - first).repeat_interleave(counts)
            total = torch.zeros(data.shape[1], dtype=torch.float64)
            for part in torch.split(index, _MEAN_ROWS):
                total += data.index_select(0, part.to(data.device)).sum(dim=0, dtype=torch.float32).cpu()
            found[modality] = (total / max(1, len(index))).float()
        return found

    def blocks(
        self,
        videos: Tensor,
        generator: torch.Generator | None = None,
        *,
        batch: int | None = None,
        start: Start | None = None,
    ) -> Iterator[Block]:
        """`videos` (n,) in one block: these features, the order of `videos` (random with a `generator`), and their
        numbers here. What `features.stream.Stream` gives in several, of which `start` passes over some.

        `batch` says how many videos are wanted at a time, to those who make rows as they are asked for.
        """
        order = torch.arange(len(videos)) if generator is None else torch.randperm(len(videos), generator=generator)
        yield self, order, videos[order]

    def to(self, device: torch.device) -> Features:
        """The same features with the rows on `device`; what picks them stays where the generators are, on the CPU."""
        return Features(self.ids, {m: r._replace(data=r.data.to(device)) for m, r in self.rows.items()}, self.stores)

    def batch(
        self,
        videos: Tensor,
        select: Select | Mapping[str, Select],
        device: torch.device | None = None,
        align: str | None = None,
    ) -> Batch:
        """Rows and masks of the videos numbered `videos` (B,) on `device`; float rows as float32, uint8 rows as uint8.

        `select` picks rows, the same way in every modality or one way for each. With `align` it picks those of that
        modality, and the others give for each of them the row that is nearest in time: all have the same L then, and a
        video without rows of that modality has none at all.
        """
        return self.take(videos, self.pick(videos, select, align), device)

    def pick(self, videos: Tensor, select: Select | Mapping[str, Select], align: str | None = None) -> Picked:
        """The rows that `batch` gives, by their numbers within each of `videos` (B,)."""
        chosen: Picked = {}
        for modality in [align] if align is not None else self.rows:
            pick = select[modality] if isinstance(select, Mapping) else select
            chosen[modality] = pick(self.rows[modality].lengths[videos])
        if align is not None:
            chosen |= {m: self._nearest(videos, m, align, *chosen[align]) for m in self.rows if m != align}
        return chosen

    def take(self, videos: Tensor, picked: Picked, device: torch.device | None = None) -> Batch:
        """The `picked` rows of `videos` (B,) on `device`, as `batch` gives them."""
        features, masks = {}, {}
        for modality, (data, starts, _, _) in self.rows.items():
            index, mask = picked[modality]
            flat = torch.where(mask, index + starts[videos, None], len(data) - 1)  # (B,L)
            rows = data.index_select(0, flat.flatten().to(data.device))
            rows = rows.view(*flat.shape, *data.shape[1:]).to(device)
            features[modality] = rows.float() if rows.is_floating_point() else rows
            masks[modality] = mask.to(rows.device)
        return features, masks

    def spans_us(self, videos: Tensor, picked: Picked, modality: str) -> Tensor:
        """(B,2) int64: times of the first and the last of the `picked` rows of `modality`; of no row the first is the
        later one."""
        rows, (index, mask) = self.rows[modality], picked[modality]
        times = rows.time_us[torch.where(mask, index + rows.starts[videos, None], len(rows.time_us) - 1)]
        limits = torch.iinfo(torch.int64)
        first = torch.where(mask, times, limits.max).min(dim=1).values
        return torch.stack([first, torch.where(mask, times, limits.min).max(dim=1).values], dim=1)

    def _nearest(
        self, videos: Tensor, modality: str, reference: str, index: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Row numbers of `modality` (B,L) and their mask, at the times of the rows `index` of `reference`."""
        theirs, own = self.rows[reference], self.rows[modality]
        reference_us = theirs.time_us[torch.where(mask, index + theirs.starts[videos, None], len(theirs.time_us) - 1)]
        starts, counts = own.starts[videos], own.lengths[videos]
        rows = nearest(reference_us.numpy(), own.time_us.numpy(), starts.numpy(), counts.numpy())
        return torch.from_numpy(rows), mask & (counts > 0)[:, None]


def wanted_places(ids: Sequence[str]) -> dict[str, int]:
    """Where each video stands in `ids`; refuses one that is there twice."""
    wanted = {video: place for place, video in enumerate(ids)}
    if len(wanted) != len(ids):
        raise FramepoolError("a video is listed twice", got=next(v for k, v in enumerate(ids) if wanted[v] != k))
    return wanted


def facts_of(stores: Mapping[str, Path], manifests: Mapping[str, Mapping[int, Manifest]]) -> dict[str, dict[str, Any]]:
    """What a run records of the stores that it reads."""
    firsts = {modality: next(iter(found.values())) for modality, found in manifests.items()}
    return {m: {"store": Path(stores[m]).name, "digest": f.digest, "facts": f.facts} for m, f in firsts.items()}


def row_bytes(manifests: Mapping[int, Manifest]) -> int:
    """Bytes of one row of a store."""
    first = next(iter(manifests.values()))
    return math.prod(first.row_shape) * np.dtype(first.dtype).itemsize


def manifests_of(folder: Path) -> list[tuple[int, Manifest]]:
    """The manifests of a store's shards, all of one recipe, weights and row shape."""
    found = [(shard, read_manifest(folder, shard)) for shard in shards(folder)]
    if not found:
        raise UserError("no features here", where=folder, expected="00000.json ...", fix="run framepool extract first")
    first = found[0][1]
    for shard, manifest in found[1:]:
        for what in ("digest", "facts", "row_shape", "dtype"):
            expected, got = getattr(first, what), getattr(manifest, what)
            if expected != got:
                fix = "shards of different recipes or weights do not mix: remove the odd ones and extract again"
                where = f"{folder}: shards {found[0][0]:05d} and {shard:05d} differ in {what}"
                raise FramepoolError("mixed store", where=where, expected=expected, got=got, fix=fix)
    return found


def _check_memory(
    manifests: Mapping[str, list[tuple[int, Manifest]]], wanted: Mapping[str, int], processes: int
) -> None:
    needed = _SAFETY_BYTES
    for shards_ in manifests.values():
        size = row_bytes(dict(shards_))
        kept = sum(int(counts_of(m)[[video in wanted for video in m.ids]].sum()) for _, m in shards_)
        largest = max(m.rows for _, m in shards_)
        needed += size * (kept + _READERS * largest)  # the rows, and the shards that are being read
    needed, available = processes * needed, psutil.virtual_memory().available
    if needed > available:
        fix = "stream them (framepool train --stream), or train on fewer modalities"
        got = f"{available} available"
        raise TooLarge("features do not fit in memory", expected=f"{needed} bytes", got=got, fix=fix)


def counts_of(manifest: Manifest) -> np.ndarray[Any, np.dtype[np.int64]]:
    """(V,) rows of each video of a shard."""
    return np.array([outcome.rows for outcome in manifest.outcomes], dtype=np.int64)


def read_rows(folder: Path, manifests: Sequence[tuple[int, Manifest]], wanted: Mapping[str, int]) -> Rows:
    """The rows of the wanted videos in store order, and where each video's begin."""
    first = manifests[0][1]
    places = [np.array([wanted.get(video, -1) for video in m.ids], dtype=np.int64) for _, m in manifests]
    total = sum(int(counts_of(m)[place >= 0].sum()) for place, (_, m) in zip(places, manifests, strict=True))
    data = torch.empty((total + 1, *first.row_shape), dtype=_DTYPES[first.dtype])
    time_us = torch.empty(total + 1, dtype=torch.int64)
    data[total:], time_us[total:] = 0, 0
    starts, lengths = np.zeros(len(wanted), dtype=np.int64), np.full(len(wanted), -1, dtype=np.int64)
    position, todo = 0, []
    for place, (shard, manifest) in zip(places, manifests, strict=True):
        keep = place >= 0
        kept = counts_of(manifest)[keep]
        if keep.any():
            todo.append((shard, keep, position))
        ends = position + np.cumsum(kept)
        starts[place[keep]], lengths[place[keep]] = ends - kept, kept
        position += int(kept.sum())

    def read(job: tuple[int, np.ndarray[Any, Any], int]) -> None:
        shard, keep, at = job
        stored = read_shard(folder, shard)
        rows = slice(None) if keep.all() else np.repeat(keep, np.diff(stored.offsets))
        frames, times = stored.frames[rows], stored.time_us[rows]
        data[at : at + len(frames)] = torch.from_numpy(frames)
        time_us[at : at + len(frames)] = torch.from_numpy(times)

    with ThreadPoolExecutor(_READERS) as readers:
        list(readers.map(read, todo))
    if (lengths < 0).any():
        missing = [video for video, place in wanted.items() if lengths[place] < 0]
        got = f"{missing[0]} is not among them" + (f", nor are {len(missing) - 1} others" if len(missing) > 1 else "")
        fix = "extract the shards that are missing"
        raise FramepoolError("store lacks videos", where=folder, expected=f"all {len(wanted)} videos", got=got, fix=fix)
    return Rows(data, torch.from_numpy(starts), torch.from_numpy(lengths), time_us)
