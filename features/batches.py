"""Features in memory: one tensor a modality, batches picked by index.

Every shard is read once, in bulk, and verified; rows stay in the type they are stored in until a batch reaches the
device. Modalities are joined by video id, never by position, and on demand row by row by time. A batch is padded to its
longest video and comes with masks; padding is zeros.

Legend: V videos in all, N rows in all, B videos of a batch, L rows of a video, *D one row.

    features = Features.open({"rgb": Path("work/demo/features/rgb-0123abcd")}, ids)
    rows, masks = features.batch(torch.tensor([0, 3]), even_rows(25))   # {"rgb": (2,25,1280)}, {"rgb": (2,25)}
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from features.align import nearest
from features.rows import Arrays, Reading, facts_of, readings

Batch = tuple[dict[str, Tensor], dict[str, Tensor]]  # {modality: (B,L,*D)}, {modality: (B,L) bool}
Select = Callable[[Tensor], tuple[Tensor, Tensor]]  # row counts (B,) -> row numbers (B,L) ascending, mask (B,L); L >= 1
Picked = dict[str, tuple[Tensor, Tensor]]  # {modality: row numbers within each video (B,L), mask (B,L)}
Start = tuple[int, Tensor]  # blocks to pass over, and the state of the generator when the next one was asked for
_MEAN_ROWS: Final = 1024  # summed at a time


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
        return cls.having(ids, readings(stores, ids))

    @classmethod
    def having(
        cls, ids: Sequence[str], found: Mapping[str, Reading], arrays: Mapping[str, Arrays] | None = None
    ) -> Self:
        """The rows of `ids` that are `found`, read now or, into `arrays`, before."""
        rows = {}
        for modality, reading in found.items():
            data, time_us = reading.read() if arrays is None else arrays[modality]
            rows[modality] = Rows(*map(torch.from_numpy, (data, reading.starts, reading.lengths, time_us)))
        return cls(tuple(ids), rows, {modality: facts_of(r.folder, r.manifests) for modality, r in found.items()})

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
        """Rows and masks of the videos numbered `videos` (B,) on `device`; uint8 maps as such, all others as float32.

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
            features[modality] = rows.float() if rows.is_floating_point() or data.ndim == 2 else rows
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
