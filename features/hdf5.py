"""Stores in one HDF5 file, out and in: for tools that read nothing else, and to carry features elsewhere.

    <store>/<shard>/frames (N, *D), offsets (V + 1,), time_us (N,), and the manifest as attribute `manifest`

What comes in again is byte for byte the shard that went out; anything else is refused.

    export_stores(Path("demo.h5"), [Path("work/demo/features/rgb-0123abcd")])
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from features.atomic import Disk, Lock, fsync_folder, make_folder, publish_folder, write_json, writing
from features.errors import DamagedStore, UserError
from features.manifest import Manifest, manifest_path
from features.store import partial_path, read_shard, retire, shard_path, shards, verify_shard, write_shard


def export_stores(path: Path, stores: Sequence[Path]) -> int:
    """Write every published shard of `stores` to `path`, verified as it is read; returns how many."""
    temporary, count = path.with_name(f".{path.name}.tmp"), 0
    with writing(path), h5py.File(temporary, "w") as file:
        for store in stores:
            for number in shards(store):
                shard = read_shard(store, number)
                group = file.create_group(f"{store.name}/{number:05d}")
                rows = max(1, min(len(shard.frames), (1 << 20) // max(1, shard.frames[:1].nbytes)))
                chunks = (rows, *shard.frames.shape[1:]) if len(shard.frames) else None
                group.create_dataset("frames", data=shard.frames, chunks=chunks, fletcher32=chunks is not None)
                group.create_dataset("offsets", data=shard.offsets)
                group.create_dataset("time_us", data=shard.time_us)
                # Attributes hold 64 KiB at most, and a shard of long names needs more: so a dataset of bytes.
                text = json.dumps(shard.manifest.to_json(), sort_keys=True).encode()
                group.create_dataset("manifest", data=np.frombuffer(text, np.uint8))
                count += 1
    with writing(path):
        with temporary.open("rb") as stream:
            Disk.fsync(stream.fileno())
        Disk.rename(temporary, path)
        fsync_folder(path.parent)
    return count


def import_stores(path: Path, folder: Path) -> Iterator[tuple[str, int, bool]]:
    """Bring the shards of `path` into `folder`; yields (store, shard, whether it was new). Published shards stay.

    Raises `UserError` where `path` is no export of ours, `DamagedStore` where a shard does not match its manifest.
    """
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UserError("not an HDF5 file", where=path, got=error, fix="give a file that --export wrote") from None
    with file:
        for store in sorted(file):
            for name in sorted(file[store]):
                yield store, int(name), _import(folder / store, f"{path}: {store}/{name}", file[store][name])


def _import(store: Path, where: str, group: Any) -> bool:
    try:
        manifest = Manifest.from_json(json.loads(group["manifest"][...].tobytes()), Path(where))
        arrays = {name: group[name][...] for name in ("frames", "offsets", "time_us")}
    except (KeyError, ValueError, OSError, AttributeError) as error:
        raise UserError("not a shard of ours", where=where, got=error, fix="give a file that --export wrote") from None
    if store.name != f"{manifest.extractor}-{manifest.digest[:8]}" or os.sep in store.name:
        raise DamagedStore("store and recipe disagree", where=where, expected=store.name, got=manifest.digest[:8])
    make_folder(store)
    with Lock(store / f"{manifest.shard:05d}.lock"):
        if manifest.shard in shards(store):
            return False
        partial = partial_path(store, manifest.shard)
        Disk.remove(partial)
        make_folder(partial)
        written = write_shard(
            partial / "shard.zarr", replace(manifest, files={}), _blocks(arrays["frames"]), arrays["time_us"]
        )
        if written.files != manifest.files:
            different = next(k for k in manifest.files if manifest.files[k] != written.files.get(k))
            raise DamagedStore("rows do not match their manifest", where=f"{where}: {different}")
        retire(store, manifest.shard)
        publish_folder(partial / "shard.zarr", shard_path(store, manifest.shard))
        write_json(manifest_path(store, manifest.shard), written.to_json())
        Disk.remove(partial)
    verify_shard(store, manifest.shard)
    return True


def _blocks(frames: npt.NDArray[Any]) -> Any:
    return lambda size: (frames[at : at + size] for at in range(0, len(frames), size))
