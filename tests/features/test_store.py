"""Stores: what is written is what is read, and every other byte is refused by name (F05, F14, F19, F33, F37, F38)."""

from __future__ import annotations

import inspect
import json
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import features.store as store_module
from features.errors import DamagedStore, FramepoolError
from features.journal import Journal
from features.manifest import FORMAT, Manifest, manifest_path, parse_manifest, read_manifest
from features.outcome import Outcome
from features.recipe import file_sha256
from features.store import (
    read_shard,
    republish,
    retire,
    shard_path,
    shards,
    stream_shard,
    verify_shard,
    write_shard,
)
from tests.features import made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made.make(tmp_path, made.videos([3, 0, 5, 1]))
    return tmp_path


def files(folder: Path) -> list[Path]:
    return sorted(p for p in shard_path(folder, 0).rglob("*") if p.is_file())


@settings(max_examples=25)
@given(
    lengths=st.lists(st.integers(0, 50), min_size=1, max_size=12),
    kind=st.sampled_from([("float16", (4,)), ("uint8", (2, 3, 3)), ("float16", (1,))]),
    lost=st.sets(st.integers(0, 11)),
    seed=st.integers(0, 100),
)
def test_what_is_written_is_what_is_read(
    lengths: list[int], kind: tuple[str, tuple[int, ...]], lost: set[int], seed: int
) -> None:
    """Against a plain list of arrays; a video that is `lost` gave rows and then became non-finite."""
    rows = made.videos(lengths, *kind, seed=seed)
    ends = [
        Outcome(outcome="non_finite", reason="at 0.000 s") if v in lost and len(r) else end
        for v, (r, end) in enumerate(zip(rows, made.outcomes(rows), strict=True))
    ]
    with TemporaryDirectory() as folder:
        manifest = made.make(Path(folder), rows, ends)
        shard = read_shard(Path(folder), 0)
        assert verify_shard(Path(folder), 0) == manifest == shard.manifest
    assert len(shard.offsets) == len(rows) + 1
    for v, (row, time) in enumerate(zip(rows, made.times(rows), strict=True)):
        mine = slice(shard.offsets[v], shard.offsets[v + 1])
        kept = v not in lost
        np.testing.assert_array_equal(shard.frames[mine], row if kept else row[:0])
        np.testing.assert_array_equal(shard.time_us[mine], time if kept else time[:0])
    assert shard.frames.dtype == kind[0] and shard.frames.shape[1:] == kind[1]


def test_rows_that_fill_many_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "CHUNK_BYTES", 64)
    monkeypatch.setattr(store_module, "FILE_BYTES", 256)
    rows = made.videos([30, 0, 31, 32])
    made.make(tmp_path, rows)
    assert sum(p.parent.name == "c" or p.parent.parent.name == "c" for p in files(tmp_path)) >= 3
    np.testing.assert_array_equal(read_shard(tmp_path, 0).frames, np.concatenate(rows))
    files(tmp_path)[0].unlink()
    with pytest.raises(DamagedStore, match="missing file in a shard"):
        read_shard(tmp_path, 0)


@pytest.mark.parametrize("block_bytes", [1, 64, 1 << 20])
def test_a_shard_read_in_blocks_is_the_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    monkeypatch.setattr(store_module, "CHUNK_BYTES", 64)
    monkeypatch.setattr(store_module, "BLOCK_BYTES", block_bytes)
    rows = made.videos([30, 0, 31, 2])
    made.make(tmp_path, rows)
    whole, (manifest, read) = read_shard(tmp_path, 0), stream_shard(tmp_path, 0)
    assert manifest == whole.manifest
    for video, row in enumerate(rows):
        blocks = list(read(video))
        assert all(1 <= len(times) == len(frames) <= max(1, block_bytes // 8) for times, frames in blocks)
        np.testing.assert_array_equal(np.concatenate([row[:0], *(frames for _, frames in blocks)]), row)
        mine = slice(whole.offsets[video], whole.offsets[video + 1])
        assert [t for times, _ in blocks for t in times] == whole.time_us[mine].tolist()


@pytest.mark.parametrize("read", [read_shard, stream_shard, verify_shard])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_an_empty_or_cut_file_is_refused_by_name(folder: Path, read: Any, share: float) -> None:
    for path in files(folder):
        if path.name == "manifest.json":
            continue
        whole = path.read_bytes()
        cut = whole[: int(len(whole) * share)]
        path.write_bytes(cut)
        with pytest.raises(
            DamagedStore,
            match=rf"wrong size: {path}: expected {len(whole)} bytes, got {len(cut)} bytes; .*--repair",
        ):
            read(folder, 0)
        path.write_bytes(whole)
    read(folder, 0)


def test_one_damaged_byte_of_any_file_is_named(folder: Path) -> None:
    paths = files(folder)
    assert {p.name for p in paths} >= {"zarr.json", "manifest.json", "0"}
    for path in paths:
        whole = path.read_bytes()
        for at in {0, len(whole) // 2, len(whole) - 1}:
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with pytest.raises(DamagedStore, match=f"bytes do not match their manifest: {path}: expected sha256"):
                verify_shard(folder, 0)
        path.unlink()
        with pytest.raises(DamagedStore, match=f"missing file in a shard: {path}: got No such file"):
            verify_shard(folder, 0)
        path.write_bytes(whole)
    verify_shard(folder, 0)


def test_an_unknown_file_is_named(folder: Path) -> None:
    extra = shard_path(folder, 0) / "frames" / "c" / "7"
    extra.mkdir(parents=True, exist_ok=True)
    (extra / "0").write_bytes(b"x")
    with pytest.raises(DamagedStore, match=f"unknown file in a shard: {extra}/0"):
        verify_shard(folder, 0)


def test_a_row_of_zeros_is_a_row(tmp_path: Path) -> None:
    rows = [np.zeros((3, 4), np.float16), np.zeros((2, 4), np.float16)]
    made.make(tmp_path, rows)
    assert np.array_equal(read_shard(tmp_path, 0).frames, np.zeros((5, 4), np.float16))
    assert verify_shard(tmp_path, 0).statistics == {"max_abs": 0.0, "mean": 0.0}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_was_never_written_is_refused_with_its_video(tmp_path: Path, value: float) -> None:
    rows = made.videos([3, 0, 5])

    def tamper(root: Any) -> None:
        root["frames"][4] = value

    write_by_hand(tmp_path, rows, tamper)
    for read in (read_shard, verify_shard):
        with pytest.raises(DamagedStore, match=r"non-finite row: .*frames: got row 4 of video class/video2; run"):
            read(tmp_path, 0)


def write_by_hand(folder: Path, rows: made.Videos, tampered: Any = lambda root: None) -> None:
    """A shard whose bytes match their manifest and whose numbers were `tampered` with in the open zarr group."""
    manifest = made.manifest(rows)
    path, flat = shard_path(folder, 0), np.concatenate(rows)
    manifest = write_shard(
        path,
        manifest,
        lambda size: (flat[at : at + size] for at in range(0, len(flat), size)),
        np.concatenate(made.times(rows)),
    )
    tampered(zarr.open_group(path, mode="r+"))
    names = [p for p in path.rglob("*") if p.is_file() and p.name != "manifest.json"]
    digests = {p.relative_to(path).as_posix(): (p.stat().st_size, file_sha256(p)) for p in names}
    text = json.dumps(replace(manifest, files=digests).to_json())
    for place in (path / "manifest.json", manifest_path(folder, 0)):
        place.write_text(text)


def put(name: str, values: list[int]) -> Any:
    def tamper(root: Any) -> None:
        del root[name]
        root.create_array(name, data=np.array(values, dtype=np.int64))

    return tamper


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (
            put("offsets", [0, 5, 3, 8]),
            "offsets disagree with the manifest: .*offsets: expected 3, got 5 at position 1",
        ),
        (
            put("offsets", [0, 3, 3, 9]),
            "offsets disagree with the manifest: .*offsets: expected 8, got 9 at position 3",
        ),
        (put("offsets", [-1, 3, 3, 8]), "offsets disagree .*: expected 0, got -1 at position 0"),
        (put("offsets", [0, 3, 8]), r"wrong shape: .*offsets: expected \(4,\), got \(3,\)"),
        (put("offsets", [0, 3, 3, 8, 8]), r"wrong shape: .*offsets: expected \(4,\), got \(5,\)"),
        (put("time_us", [0, 1]), r"wrong shape: .*time_us: expected \(8,\), got \(2,\)"),
        (put("frames", [0] * 8), r"wrong shape: .*frames: expected \(8, 4\), got \(8,\)"),
        (lambda root: root.__delitem__("time_us"), "not a shard: .*time_us"),
    ],
)
def test_numbers_that_contradict_the_manifest_are_each_named(tmp_path: Path, tamper: Any, message: str) -> None:
    write_by_hand(tmp_path, made.videos([3, 0, 5]), tamper)
    for read in (read_shard, verify_shard):
        with pytest.raises(DamagedStore, match=message):
            read(tmp_path, 0)


def test_another_dtype_is_refused(tmp_path: Path) -> None:
    def tamper(root: Any) -> None:
        values = root["frames"][...].astype(np.float32)
        del root["frames"]
        root.create_array("frames", data=values)

    write_by_hand(tmp_path, made.videos([3, 0, 5]), tamper)
    with pytest.raises(DamagedStore, match=r"wrong dtype: .*frames: expected float16, got float32"):
        read_shard(tmp_path, 0)


@pytest.mark.parametrize(
    ("key", "value"),
    [("codecs", [{"name": "bomb"}]), ("shape", [10**12, 4]), ("data_type", "object"), ("zarr_format", 7)],
)
def test_hostile_array_metadata_is_refused_before_it_is_used(folder: Path, key: str, value: Any) -> None:
    path = shard_path(folder, 0) / "frames" / "zarr.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    manifest = read_manifest(folder, 0)
    known = {**manifest.files, "frames/zarr.json": (path.stat().st_size, file_sha256(path))}
    manifest_path(folder, 0).write_text(json.dumps(replace(manifest, files=known).to_json()))
    with pytest.raises(DamagedStore, match=r"not a shard|wrong shape|does not decode"):
        read_shard(folder, 0)


def changed(manifest: Manifest, **fields: Any) -> str:
    return json.dumps({**manifest.to_json(), **fields})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (lambda m: changed(m, files={"../../canary": [1, "0" * 64]}), "manifest names a file outside its shard"),
        (lambda m: changed(m, files={"/etc/passwd": [1, "0" * 64]}), "manifest names a file outside its shard"),
        (lambda m: changed(m, files={"a\0b": [1, "0" * 64]}), "manifest names a file outside its shard"),
        (lambda m: changed(m, files={}), "manifest lists no files"),
        (lambda m: changed(m, files=[1]), "damaged manifest"),
        (lambda m: changed(m, format=FORMAT + 1), "unknown manifest format: .*: expected 1, got 2"),
        (lambda m: changed(m, rows=4), "row counts disagree: .*: expected 4, got 9"),
        (lambda m: changed(m, dtype="garbage"), "damaged manifest"),
        (lambda m: changed(m, dtype="object"), "unknown dtype"),
        (lambda m: changed(m, shard="../x"), "damaged manifest"),
        (lambda m: changed(m, videos=[{"id": "a", "outcome": "ok", "rows": "nine"}]), "damaged manifest"),
        (lambda m: changed(m, videos=[{"id": "a", "outcome": "splendid"}]), "damaged manifest.*splendid"),
        (lambda m: changed(m, videos=[{"id": "a", "outcome": "too_short", "rows": 9}]), "damaged manifest.*no rows"),
        (lambda m: changed(m)[:-20], "damaged manifest"),
        (lambda m: "", "damaged manifest"),
        (lambda m: "[]", "damaged manifest"),
        (lambda m: "[" * 100_000, "damaged manifest"),
    ],
)
def test_a_damaged_manifest_is_refused_by_name(folder: Path, text: Any, message: str) -> None:
    path = manifest_path(folder, 0)
    path.write_text(text(read_manifest(folder, 0)))
    for read in (read_shard, verify_shard):
        with pytest.raises(DamagedStore, match=message) as error:
            read(folder, 0)
        assert str(path.parent) in str(error.value)


def test_rows_may_not_be_negative(folder: Path) -> None:
    value = read_manifest(folder, 0).to_json()
    value["videos"][0]["rows"], value["videos"][2]["rows"] = -1, 9
    manifest_path(folder, 0).write_text(json.dumps(value))
    with pytest.raises(DamagedStore, match="row counts disagree"):
        read_manifest(folder, 0)


def test_a_missing_shard_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(FramepoolError, match=r"shard is not there: .*00003.json; run `framepool extract`"):
        read_shard(tmp_path, 3)
    (tmp_path / "file").write_text("")
    with pytest.raises(FramepoolError, match=r"shard is not there: .*: got Not a directory"):
        read_manifest(tmp_path / "file", 0)


def test_manifests_stand_the_round_trip(folder: Path) -> None:
    manifest = read_manifest(folder, 0)
    assert parse_manifest(shard_path(folder, 0) / "manifest.json") == manifest
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json())), folder) == manifest
    assert manifest.bytes == sum(p.stat().st_size for p in files(folder) if p.name != "manifest.json")


def test_few_files_a_shard(tmp_path: Path) -> None:
    """50 files for 1,000 videos are 12 for the 256 of a shard."""
    made.make(tmp_path, made.videos([25] * 256, row_shape=(64,)))
    assert sum(p.is_file() for p in tmp_path.rglob("*")) <= 12


def test_the_same_work_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        made.make(tmp_path / name, made.videos([3, 0, 5]))
    assert made.contents(tmp_path / "a") == made.contents(tmp_path / "b")
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["00000.json", "00000.zarr"]


def test_retiring_takes_the_manifest_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made.make(folder, made.videos([2]), shard=7)
    (folder / "notes.json").write_text("{}")
    assert shards(folder) == [0, 7]
    gone: list[str] = []
    monkeypatch.setattr(store_module, "remove", lambda path: gone.append(path.name))
    retire(folder, 0)
    assert gone == ["00000.json", "00000.zarr"]
    monkeypatch.undo()
    retire(folder, 0)
    retire(folder, 0)
    assert shards(folder) == [7] and not shard_path(folder, 0).exists()


@pytest.mark.parametrize("text", [None, "", "{"])
def test_a_shard_without_its_outer_manifest_is_published_again(folder: Path, text: str | None) -> None:
    whole, wanted = made.contents(folder), read_manifest(folder, 0).identity()
    manifest_path(folder, 0).unlink()
    if text is not None:
        manifest_path(folder, 0).write_text(text)
    (folder / "00000.partial").mkdir()
    republished = republish(folder, wanted, 0)
    assert republished == read_manifest(folder, 0)
    assert made.contents(folder) == whole and not (folder / "00000.partial").exists()


@pytest.mark.parametrize("field", [0, 1, 2, 3])
def test_a_shard_of_other_work_is_not_published_again(folder: Path, field: int) -> None:
    wanted = list(read_manifest(folder, 0).identity())
    wanted[field] = "other"
    assert republish(folder, tuple(wanted), 0) is None


def test_a_damaged_or_missing_shard_is_not_published_again(folder: Path) -> None:
    wanted = read_manifest(folder, 0).identity()
    files(folder)[0].write_bytes(b"")
    assert republish(folder, wanted, 0) is None
    shutil.rmtree(shard_path(folder, 0))
    assert republish(folder, wanted, 0) is None


def test_publishing_replaces_the_shard_whole(folder: Path) -> None:
    rows = made.videos([2, 2], seed=5)
    made.make(folder, rows, list_digest="another list")
    np.testing.assert_array_equal(read_shard(folder, 0).frames, np.concatenate(rows))
    verify_shard(folder, 0)


def test_publishing_holds_a_few_rows_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written is read back and compared in blocks of so many bytes; what differs is not published."""
    blocks: list[int] = []
    block = Journal.block

    def seen(self: Journal, start: int, stop: int) -> Any:
        blocks.append(stop - start)
        return block(self, start, stop) + (len(blocks) == 7)

    monkeypatch.setattr(Journal, "block", seen)
    monkeypatch.setattr(store_module, "_read", None)
    monkeypatch.setattr(store_module, "BLOCK_BYTES", 64)
    made.make(tmp_path / "one", made.videos([15, 0, 17]))
    assert blocks == [32, 8, 8, 8, 8]
    with pytest.raises(DamagedStore, match="shard reads back differently from what was written"):
        made.make(tmp_path / "two", made.videos([15, 0, 17]))
    assert not shard_path(tmp_path / "two", 0).exists()


def test_two_recipes_live_side_by_side(tmp_path: Path) -> None:
    for name, seed in (("made-aaaaaaaa", 1), ("made-bbbbbbbb", 2)):
        made.make(tmp_path / name, made.videos([2], seed=seed), digest=name[-8:])
    first, second = (read_shard(p, 0) for p in sorted(tmp_path.iterdir()))
    assert first.manifest.digest != second.manifest.digest
    assert not np.array_equal(first.frames, second.frames)


def test_no_part_of_a_published_shard_can_be_written() -> None:
    """F19: the functions make, read, publish or take away whole shards, and zarr opens nothing to change it."""
    whole = {"publish", "republish", "retire", "write_shard"}
    reading = {"Shard", "read_manifest", "read_shard", "shards", "stream_shard", "verify_shard"}
    assert set(store_module.__all__) == whole | reading
    source = inspect.getsource(store_module)
    assert source.count("zarr.open") == 2 and 'zarr.open_group(MemoryStore(files), mode="r"' in source
    assert 'zarr.open_group(LocalStore(path, read_only=True), mode="r"' in source
    for line in source.splitlines():
        assert "r+" not in line and 'mode="a"' not in line
