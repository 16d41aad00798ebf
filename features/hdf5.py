"""Stores in one HDF5 file, out and in: for tools that read nothing else, and to carry features elsewhere.

    <store>/<shard>/frames (N, *D), offsets (V + 1,), time_us (N,), and the manifest as attribute `manifest`

What comes in again is byte for byte the shard that went out; anything else is refused.

    export_stores(Path("demo.h5"), [Path("work/demo/features/rgb-0123abcd")])
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from features.atomic import Lock, make_folder, publish_folder, remove, write_json
from features.errors import DamagedStore, UserError
from features.foreign.export import whole
from features.manifest import Manifest, manifest_path
from features.store import partial_path, read_shard, retire, shard_path, shards, verify_shard, write_shard


def export_stores(path: Path, stores: Sequence[Path]) -> int:
    """Write every published shard of `stores` to `path`, verified as it is read; returns how many."""
    count = 0
    with whole(path, stores) as temporary, h5py.File(temporary, "w") as file:
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
    return count


def is_ours(path: Path) -> bool:
    """Whether `path` is no file of features by others: a file whose first shard has a manifest, or one that is no HDF5
    at all, of which `import_stores` says so."""
    if path.is_dir() or path.suffix.lower() == ".tar":
        return False
    try:
        with h5py.File(path, "r") as file:
            groups = [g for g in file.values() if isinstance(g, h5py.Group)]
            return any("manifest" in s for g in groups for s in list(g.values())[:1] if isinstance(s, h5py.Group))
    except OSError:
        return True


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
            link = file.get(store, getlink=True)  # others lead to other files, or nowhere
            if not isinstance(link, h5py.HardLink) or not isinstance(file[store], h5py.Group):
                raise UserError("not a store of ours", where=f"{path}: {store}", fix="give a file that --export wrote")
            for name, group in sorted(file[store].items()):
                shard, new = _import(folder / store, f"{path}: {store}/{name}", group)
                yield store, shard, new


def _import(store: Path, where: str, group: Any) -> tuple[int, bool]:
    try:
        manifest = Manifest.from_json(json.loads(group["manifest"][...].tobytes()), Path(where))
        arrays = {name: group[name][...] for name in ("frames", "offsets", "time_us")}
    except (KeyError, ValueError, TypeError, OSError, AttributeError) as error:
        raise UserError("not a shard of ours", where=where, got=error, fix="give a file that --export wrote") from None
    if store.name != f"{manifest.extractor}-{manifest.digest[:8]}":
        name = f"{manifest.extractor}-{manifest.digest[:8]}"
        raise DamagedStore("store and recipe disagree", where=where, expected=store.name, got=name)
    if (shape := (manifest.rows, *manifest.row_shape)) != arrays["frames"].shape:
        raise DamagedStore("wrong shape", where=f"{where}/frames", expected=shape, got=arrays["frames"].shape)
    if arrays["time_us"].shape != shape[:1]:
        raise DamagedStore("wrong shape", where=f"{where}/time_us", expected=shape[:1], got=arrays["time_us"].shape)
    make_folder(store)
    with Lock(store / f"{manifest.shard:05d}.lock"):
        if manifest.shard in shards(store):
            return manifest.shard, False
        partial = partial_path(store, manifest.shard)
        remove(partial)
        make_folder(partial)
        written = write_shard(
            partial / "shard.zarr", replace(manifest, files={}), _blocks(arrays["frames"]), arrays["time_us"]
        )
        if written.files != manifest.files:
            files = sorted({*manifest.files, *written.files})
            different = next(k for k in files if manifest.files.get(k) != written.files.get(k))
            raise DamagedStore("rows do not match their manifest", where=f"{where}: {different}")
        retire(store, manifest.shard)
        publish_folder(partial / "shard.zarr", shard_path(store, manifest.shard))
        write_json(manifest_path(store, manifest.shard), written.to_json())
        remove(partial)
    verify_shard(store, manifest.shard)
    return manifest.shard, True


def _blocks(frames: npt.NDArray[Any]) -> Any:
    return lambda size: (frames[at : at + size] for at in range(0, len(frames), size))
