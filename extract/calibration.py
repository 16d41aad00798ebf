"""int8: a network quantised once for a dataset, calibrated on the dataset's own frames (NNCF, post-training).

The middle sample of each of the first videos of the list sets the ranges of the activations, the same videos for every
shard, so that all shards of a store come out of one quantised network.

    Calibration(first videos, ...) in `Model.calibration`; `runtime.prepare` then calls `quantised`
"""

from __future__ import annotations

import io
import logging
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from extract.decoders import children
from extract.fingerprint import Item, list_digest
from features.atomic import Lock, make_folder, publish_folder, scratch_folder
from features.errors import UserError
from features.manifest import read_manifest
from features.recipe import digest

Samples = npt.NDArray[Any]


@dataclass(frozen=True)
class Calibration:
    """Where the samples come from: the files of `items` under `root`, or the first shard of the store `source`."""

    items: tuple[Item, ...]
    root: Path
    source: Path | None

    @property
    def name(self) -> str:
        """Names the samples."""
        if self.source is not None:
            return digest([read_manifest(self.source, 0).files, len(self.items)])[:16]
        return list_digest(self.items, self.root)[:16]

    def samples(self, job: Any, cut: tuple[slice, ...]) -> list[Samples]:
        """The middle sample of each video that has one; `cut` is the part of a stored row that the network sees."""
        found = self._stored() if self.source is not None else self._decoded(job)
        if not found:
            raise UserError("nothing to calibrate int8 on", where=self.source or self.root, fix="set precision: fp32")
        return [row[cut] for row in found]

    def _stored(self) -> list[Samples]:
        from features.store import stream_shard

        manifest, read = stream_shard(self.source or Path(), 0)
        found = []
        for video in range(min(len(self.items), len(manifest.ids))):
            blocks = [rows for _, rows in read(video)]
            if blocks:
                rows = np.concatenate(blocks)
                found.append(rows[len(rows) // 2])
        return found

    def _decoded(self, job: Any) -> list[Samples]:
        from extract.decoders import Decoders, Row

        paths = {n: self.root / item.path for n, item in enumerate(self.items) if item.path}
        found: list[Samples] = []
        here: list[Samples] = []
        with Decoders([job], paths, workers=2) as decoders:
            for item in decoders:
                if isinstance(item, Row):
                    here.append(item.sample.copy())
                    continue
                found += here[len(here) // 2 : len(here) // 2 + 1]
                here = []
        return found


def quantised(name: str, converted: Path, samples: Any, batch: int, cache: Path) -> Path:
    """The folder `name` in `cache` with the int8 graph of the fp32 graph in `converted`, made when it is missing.

    `samples()` gives the calibration samples (*S); they are put into full batches, repeated to fill the last.
    """
    folder = cache / name
    if not folder.is_dir():
        with Lock(make_folder(cache) / f"{name}.lock", wait_s=900):
            if not folder.is_dir():
                rows = np.stack(samples())
                rows = rows[np.arange(-(-len(rows) // batch) * batch) % len(rows)]
                with children(1) as pool:
                    pool.submit(_quantise, converted, rows.reshape(-1, batch, *rows.shape[1:]), folder).result()
    return folder


def _quantise(converted: Path, batches: Samples, folder: Path) -> None:
    import nncf

    from extract.openvino_core import CORE, save

    nncf.set_log_level(logging.ERROR)
    graph = CORE.read_model(converted / "model.xml")
    with redirect_stdout(io.StringIO()):  # its progress bars
        graph = nncf.quantize(
            graph, nncf.Dataset(list(batches)), preset=nncf.QuantizationPreset.MIXED, subset_size=len(batches)
        )
    partial = scratch_folder(folder)
    save(graph, partial / "model.xml")
    publish_folder(partial, folder)
