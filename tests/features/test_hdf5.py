"""What goes out to HDF5 comes in again byte for byte, and nothing else comes in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from features.errors import DamagedStore, FramepoolError, UserError
from features.foreign.export import export
from features.hdf5 import export_stores, import_stores
from features.recipe import digest
from features.store import verify_shard
from tests.features import made

NAME = f"made-{digest(made.RECIPE)[:8]}"


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    made.make(tmp_path / "from" / NAME, made.videos([3, 0, 5]))
    made.make(tmp_path / "from" / NAME, made.videos([0, 0]), shard=1)
    assert export_stores(tmp_path / "out.h5", [tmp_path / "from" / NAME]) == 2
    return tmp_path


def test_out_and_in_again(exported: Path) -> None:
    with h5py.File(exported / "out.h5") as file:
        group = file[f"{NAME}/00000"]
        assert group["frames"].shape == (8, 4) and group["offsets"][...].tolist() == [0, 3, 3, 8]
        assert json.loads(group["manifest"][...].tobytes())["digest"] == digest(made.RECIPE)
    into = exported / "into"
    assert list(import_stores(exported / "out.h5", into)) == [(NAME, 0, True), (NAME, 1, True)]
    assert made.contents(into) == made.contents(exported / "from")
    assert list(import_stores(exported / "out.h5", into)) == [(NAME, 0, False), (NAME, 1, False)]
    verify_shard(into / NAME, 0)
    assert sorted(p.name for p in exported.iterdir()) == ["from", "into", "out.h5"]


def test_a_damaged_shard_does_not_go_out(exported: Path) -> None:
    (exported / "from" / NAME / "00000.zarr" / "frames" / "zarr.json").write_text("")
    before = (exported / "out.h5").read_bytes()
    with pytest.raises(DamagedStore, match="wrong size"):
        export_stores(exported / "out.h5", [exported / "from" / NAME])
    assert (exported / "out.h5").read_bytes() == before


def replaced(name: str, change: Callable[[Any], Any]) -> Callable[[Any], None]:
    def tamper(group: Any) -> None:
        values = change(group[name][...])
        del group[name]
        group[name] = values

    return tamper


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (replaced("frames", lambda a: a + 1), "rows do not match their manifest: .*out.h5: .*frames"),
        (replaced("frames", lambda a: a * np.nan), "non-finite row"),
        (replaced("frames", lambda a: a[:5]), r"wrong shape: .*frames: expected \(8, 4\), got \(5, 4\)"),
        (replaced("time_us", lambda a: a + 1), "rows do not match their manifest: .*time_us"),
        (replaced("time_us", lambda a: a[:5]), r"wrong shape: .*time_us: expected \(8,\), got \(5,\)"),
        (replaced("manifest", lambda a: a[:-9]), "not a shard of ours: .*out.h5: .*00000"),
        (lambda group: group.__delitem__("manifest"), "not a shard of ours"),
        (lambda group: group.__delitem__("frames"), "not a shard of ours"),
    ],
)
def test_a_changed_shard_does_not_come_in(exported: Path, tamper: Any, message: str) -> None:
    with h5py.File(exported / "out.h5", "r+") as file:
        tamper(file[f"{NAME}/00000"])
    with pytest.raises(FramepoolError, match=message):
        list(import_stores(exported / "out.h5", exported / "into"))
    assert not list((exported / "into").rglob("*.json")) or not (exported / "into" / NAME / "00000.json").exists()
    with h5py.File(exported / "out.h5", "r+") as file:
        del file[f"{NAME}/00000"]
    assert list(import_stores(exported / "out.h5", exported / "into")) == [(NAME, 1, True)]


def test_a_shard_under_another_stores_name_does_not_come_in(exported: Path) -> None:
    with h5py.File(exported / "out.h5", "r+") as file:
        file.move(NAME, "made-00000000")
    with pytest.raises(DamagedStore, match=f"store and recipe disagree: .*: expected made-00000000, got {NAME}"):
        list(import_stores(exported / "out.h5", exported / "into"))


def test_links_are_no_stores(exported: Path) -> None:
    """Neither one to another file nor one to nothing."""
    for link in (h5py.SoftLink("/nowhere"), h5py.ExternalLink("out.h5", f"/{NAME}")):
        with h5py.File(exported / "links.h5", "w") as file:
            file["a"] = link
        with pytest.raises(UserError, match=r"not a store of ours: .*links.h5: a"):
            list(import_stores(exported / "links.h5", exported / "into"))


def test_room_is_looked_for_before_anything_is_written(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(100, 80, 20))  # type: ignore[attr-defined]
    for go in (export_stores, lambda path, stores: export(path, "flat", stores)):
        with pytest.raises(
            FramepoolError, match=r"no room for the export: .*full.h5: expected 0.0 MB, got 0.0 MB free"
        ):
            go(exported / "full.h5", [exported / "from" / NAME])
    assert not list(exported.glob("*full*"))


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.h5"
    path.write_bytes(b"not HDF5")
    with pytest.raises(UserError, match=f"not an HDF5 file: {path}: .*give a file that --export wrote"):
        list(import_stores(path, tmp_path))
    with pytest.raises(UserError, match=r"not an HDF5 file: .*absent.h5"):
        list(import_stores(tmp_path / "absent.h5", tmp_path))
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(5)
    with pytest.raises(UserError, match=r"not a store of ours: .*other.h5: x"):
        list(import_stores(path, tmp_path))
    with h5py.File(path, "w") as file:
        file["x/y"] = np.arange(5)
    with pytest.raises(UserError, match=r"not a shard of ours: .*x/y"):
        list(import_stores(path, tmp_path))
