"""Features that do not fit in memory: blocks of shards, read in bulk one after the other, the next while one is used.

What `features.batches.Features` is for rows in memory, with the same `blocks`: an epoch takes the shards in a random
order, as many at a time as the memory allows, and shuffles the videos of each such block. So no batch holds videos of
two blocks, and a block is read once an epoch, never a video by itself.

    features = Stream.open(stores, ids, block_bytes=2 << 30)
    for rows, positions, numbers in features.blocks(train, generator): rows.batch(numbers[:128], even_rows(25))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, Self

import torch
from torch import Tensor

from features.batches import Block, Features, Start
from features.errors import FramepoolError
from features.memory import available_bytes
from features.rows import Manifests, Reading, TooLarge, counts_of, facts_of, manifests_of, row_bytes, wanted_places

_SHARE: Final = 0.3  # of the free memory that a block takes; two are there at a time


class Source(Protocol):
    """Where the rows of videos come from: `Features`, `Stream`, or what computes them as they are asked for."""

    @property
    def ids(self) -> tuple[str, ...]: ...

    @property
    def stores(self) -> dict[str, dict[str, Any]]: ...

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]: ...

    def has_rows(self, modality: str | None = None) -> Tensor: ...

    def means(self, videos: Tensor) -> dict[str, Tensor]: ...

    def blocks(
        self,
        videos: Tensor,
        generator: torch.Generator | None = None,
        *,
        batch: int | None = None,
        start: Start | None = None,
    ) -> Iterator[Block]: ...


@dataclass(frozen=True)
class Stream:
    """The rows of `ids` on disk, modality by modality."""

    ids: tuple[str, ...]
    folders: Mapping[str, Path]
    manifests: Mapping[str, Manifests]
    stores: dict[str, dict[str, Any]]
    shard: Tensor  # (V,) which shard a video is in
    lengths: Mapping[str, Tensor]  # (V,) rows
    block_bytes: int
    room_bytes: int | None = None  # of a single shard

    @classmethod
    def open(cls, stores: Mapping[str, Path], ids: Sequence[str], block_bytes: int | None = None) -> Self:
        """Look at the manifests alone. `block_bytes`: of the rows of a block; None: what the machine has room for.
        Then `blocks` raises `TooLarge` where it has none for a single shard."""
        manifests = {modality: manifests_of(folder) for modality, folder in stores.items()}
        wanted = wanted_places(ids)
        shard, lengths = torch.full((len(ids),), -1), {}
        for modality, found in manifests.items():
            lengths[modality] = torch.full((len(ids),), -1)
            for number, manifest in found.items():
                places = torch.tensor([wanted.get(video, -1) for video in manifest.ids])
                kept = places[places >= 0]
                if bool(((shard[kept] >= 0) & (shard[kept] != number)).any()):
                    fix = "extract the stores with the same list and shard_size"
                    raise FramepoolError("stores of other shards cannot be streamed", where=stores[modality], fix=fix)
                shard[kept] = number
                lengths[modality][kept] = torch.from_numpy(counts_of(manifest))[places >= 0]
            missing = torch.nonzero(lengths[modality] < 0).flatten()
            if len(missing):
                got = f"{ids[int(missing[0])]} is not among them"
                expected, fix = f"all {len(ids)} videos", "extract the shards that are missing"
                raise FramepoolError("store lacks videos", where=stores[modality], expected=expected, got=got, fix=fix)
        size = block_bytes or int(available_bytes() * _SHARE)
        room = None if block_bytes else size
        facts = {modality: facts_of(stores[modality], found) for modality, found in manifests.items()}
        return cls(tuple(ids), dict(stores), manifests, facts, shard, lengths, size, room)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape *D of one row, by modality."""
        return {m: tuple(next(iter(found.values())).row_shape) for m, found in self.manifests.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return sum(row_bytes(self.manifests[m]) * int(lengths.sum()) for m, lengths in self.lengths.items())

    def has_rows(self, modality: str | None = None) -> Tensor:
        """(V,) bool: the video has a row in `modality`, or in at least one."""
        asked = self.lengths.values() if modality is None else [self.lengths[modality]]
        return torch.stack([lengths > 0 for lengths in asked]).any(dim=0)

    def only(self, modalities: Sequence[str]) -> Stream:
        """The same videos with these modalities alone, in this order."""

        def pick(value: Mapping[str, Any]) -> dict[str, Any]:
            return {m: value[m] for m in modalities}

        return Stream(
            self.ids,
            pick(self.folders),
            pick(self.manifests),
            pick(self.stores),
            self.shard,
            pick(self.lengths),
            self.block_bytes,
            self.room_bytes,
        )

    def means(self, videos: Tensor) -> dict[str, Tensor]:
        """{modality: (D,) float32}: the mean of all rows of the videos numbered `videos`, where rows are vectors."""
        totals = {m: torch.zeros(shape[0], dtype=torch.float64) for m, shape in self.shapes.items() if len(shape) == 1}
        for rows, _, numbers in self.blocks(videos):
            for modality, mean in rows.means(numbers).items():
                totals[modality] += mean.double() * int(rows.rows[modality].lengths[numbers].sum())
        return {m: (t / max(1, int(self.lengths[m][videos].sum()))).float() for m, t in totals.items()}

    def blocks(
        self,
        videos: Tensor,
        generator: torch.Generator | None = None,
        *,
        batch: int | None = None,
        start: Start | None = None,
    ) -> Iterator[Block]:
        """`videos` (n,) block by block: rows in memory, places in `videos`, and the numbers of those in these rows.

        With a `generator` shards and the videos of a block come in random order, else in their own. `start` goes on
        where another pass was left.
        """
        plan = list(self._plan(videos, generator))
        if start is not None and generator is not None:
            plan = plan[start[0] :]
            generator.set_state(start[1])
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self._rows, plan[0]) if plan else None
            for k, shards in enumerate(plan):
                rows = ahead.result()  # type: ignore[union-attr]
                ahead = reader.submit(self._rows, plan[k + 1]) if k + 1 < len(plan) else None
                positions = torch.nonzero(torch.isin(self.shard[videos], torch.tensor(shards))).flatten()
                if generator is not None:
                    positions = positions[torch.randperm(len(positions), generator=generator)]
                places = {video: k for k, video in enumerate(rows.ids)}
                yield rows, positions, torch.tensor([places[self.ids[v]] for v in videos[positions].tolist()])
                del rows

    def _plan(self, videos: Tensor, generator: torch.Generator | None) -> Iterator[list[int]]:
        """Shards that are in memory together."""
        shards = torch.unique(self.shard[videos])
        if generator is not None:
            shards = shards[torch.randperm(len(shards), generator=generator)]
        block: list[int] = []
        size = 0
        for shard in shards.tolist():
            more = sum(row_bytes(found) * found[shard].rows for found in self.manifests.values() if shard in found)
            if self.room_bytes is not None and more > self.room_bytes:
                fix = "read what is not stored (store: false), or fewer modalities; or set a smaller shard_size"
                got, expected = f"{more / 1e9:.1f} GB", f"at most {self.room_bytes / 1e9:.1f} GB"
                where = ", ".join(map(str, self.folders.values()))
                raise TooLarge("a shard does not fit in memory", where=where, expected=expected, got=got, fix=fix)
            if block and size + more > self.block_bytes:
                yield block
                block, size = [], 0
            block.append(shard)
            size += more
        if block:
            yield block

    def _rows(self, shards: Sequence[int]) -> Features:
        inside = torch.nonzero(torch.isin(self.shard, torch.tensor(shards))).flatten().tolist()
        ids = [self.ids[k] for k in inside]
        wanted = wanted_places(ids)
        found = {
            m: Reading.of(self.folders[m], {s: there[s] for s in sorted(shards) if s in there}, wanted)
            for m, there in self.manifests.items()
        }
        return Features.having(ids, found)
