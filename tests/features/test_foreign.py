"""Features of others come in, ours go out, in the layouts that peers use; what is hostile or broken costs its video."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from features.errors import UserError
from features.foreign import Collection, Unreadable, opened
from features.foreign.export import export
from features.recipe import digest
from tests.features import made

IDS = ["Run/v_Run_g01", "Run/v_Run_g02", "Jump/v.3", "Jump/gone"]
Write = Callable[[Path, dict[str, Any]], Path]


def rows_of(number: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(number).standard_normal((number + 2, 5)).astype(np.float32)


def times_ms(number: int) -> np.ndarray[Any, Any]:
    return np.arange(number + 2) * 33.367


def npy(folder: Path, names: dict[str, int]) -> Path:
    for name, number in names.items():
        path = folder / "npy" / f"{name}_rgb.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, rows_of(number))
        np.save(path.with_name(path.name.replace("_rgb", "_timestamps_ms")), times_ms(number))
        np.save(path.with_name(path.name.replace("_rgb", "_fps")), 25.0)
    return folder / "npy"


def videos(folder: Path, names: dict[str, int]) -> Path:
    with h5py.File(folder / "videos.h5", "w") as file:
        for name, number in names.items():
            file[f"{name}/rgb"], file[f"{name}/rgb_timestamps_ms"] = rows_of(number), times_ms(number)
    return folder / "videos.h5"


def flat(folder: Path, names: dict[str, int]) -> Path:
    with h5py.File(folder / "flat.hdf5", "w") as file:
        numbers = list(names.values())
        group = file.create_group("rgb")
        group["features"] = np.concatenate([rows_of(n) for n in numbers])
        group["timestamps_ms"] = np.concatenate([times_ms(n) for n in numbers])
        group["offsets"] = np.concatenate([[0], np.cumsum([n + 2 for n in numbers])])
        group.create_dataset("ids", data=list(names), dtype=h5py.string_dtype())
    return folder / "flat.hdf5"


def tar(folder: Path, names: dict[str, int]) -> Path:
    with tarfile.open(folder / "all.tar", "w") as file:
        for name, number in names.items():
            base = name.rpartition("/")
            for end, values in (("rgb", rows_of(number)), ("rgb_timestamps_ms", times_ms(number))):
                add(file, f"{base[0]}{base[1]}{base[2].replace('.', '%2E')}.{end}.npy", packed(values))
    return folder / "all.tar"


def packed(values: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def add(file: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    file.addfile(info, io.BytesIO(data))


LAYOUTS = pytest.mark.parametrize("write", [npy, videos, flat, tar])


def open_(path: Path, ids: list[str] = IDS, key: str | None = "rgb", every_s: float | None = None) -> Collection:
    return opened(path, None, key, every_s, ids)


@LAYOUTS
@pytest.mark.parametrize("whole", [True, False])
def test_rows_and_times_come_in(tmp_path: Path, write: Write, whole: bool) -> None:
    """By whole ids, and by their last part."""
    names = {(v if whole else v.rpartition("/")[2]): n for n, v in enumerate(IDS[:3])}
    found = open_(write(tmp_path, names))
    assert found.row_shape == (5,)
    for number, video in enumerate(IDS[:3]):
        times_us, rows = found.rows(video)
        assert np.array_equal(rows, rows_of(number))
        assert times_us.tolist() == np.round(times_ms(number) * 1e3).astype(int).tolist()
        assert (found.root / found.place(video)).is_file()
    assert found.place(IDS[3]) == ""
    with pytest.raises(Unreadable, match="no features of it in"):
        found.rows(IDS[3])


@LAYOUTS
def test_a_name_that_tells_two_videos_apart_from_nothing_is_refused(tmp_path: Path, write: Write) -> None:
    with pytest.raises(UserError, match=r"a name that tells no video from another: .*: x: got 1 entries, 2 videos"):
        open_(write(tmp_path, {"x": 0}), ["a/x", "b/x"])


@LAYOUTS
def test_nothing_for_the_list_is_said(tmp_path: Path, write: Write) -> None:
    with pytest.raises(UserError, match=r"no features of the list's videos: .*none of the videos is there"):
        _ = open_(write(tmp_path, {"other": 0})).row_shape


def test_times_without_timestamps(tmp_path: Path) -> None:
    folder = npy(tmp_path, {IDS[0]: 1})
    (folder / f"{IDS[0]}_timestamps_ms.npy").unlink()
    assert open_(folder).rows(IDS[0])[0].tolist() == [20_000, 60_000, 100_000]
    assert open_(folder, every_s=2.0).rows(IDS[0])[0].tolist() == [1_000_000, 3_000_000, 5_000_000]
    (folder / f"{IDS[0]}_fps.npy").unlink()
    assert open_(folder).rows(IDS[0])[0].tolist() == [500_000, 1_500_000, 2_500_000]


def test_one_row_a_video_and_columns_first(tmp_path: Path) -> None:
    (tmp_path / "one.npy").write_bytes(packed(np.arange(4.0)))
    (tmp_path / "turned.npy").write_bytes(packed(np.asfortranarray(np.arange(12.0).reshape(3, 4))))
    found = open_(tmp_path, ["one", "turned"], None)
    assert found.rows("one")[1].tolist() == [[0, 1, 2, 3]]
    assert np.array_equal(found.rows("turned")[1], np.arange(12.0).reshape(3, 4))


def header(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    ("data", "outcome", "reason"),
    [
        (b"", "undecodable", "no .npy"),
        (b"\x93NUMPY\x01\x00\xff\xff{}", "undecodable", "no .npy"),
        (packed(np.zeros((3, 5)))[:-8], "undecodable", "its header tells of 120 and itself"),
        (packed(np.zeros((3, 5))) + b"x", "undecodable", "its header tells of 120 and itself"),
        (header((10**12,)), "too_large", "4000000000000 bytes"),
        (header((-1, 5)), "undecodable", "bytes"),
        (header((2, 2), "|O"), "refused", "an array of object"),
        (packed(np.zeros((0, 5))), "too_short", "no rows"),
        (packed(np.array("text")), "refused", "an array of <U4"),
        (packed(np.zeros((3, 4), np.float32)), "undecodable", r"rows of \(4,\), others have \(5,\)"),
    ],
)
@pytest.mark.parametrize("write", [npy, tar])
def test_broken_and_hostile_arrays(tmp_path: Path, write: Write, data: bytes, outcome: str, reason: str) -> None:
    path = write(tmp_path, {"good": 0})
    if path.is_dir():
        (path / "bad_rgb.npy").write_bytes(data)
    else:
        with tarfile.open(path, "a") as file:
            add(file, "bad.rgb.npy", data)
    found = open_(path, ["good", "bad"])
    with pytest.raises(Unreadable, match=reason) as error:
        list(found.blocks("bad"))
    assert error.value.outcome == outcome
    assert sum(len(rows) for _, rows in found.blocks("good")) == 2


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(canary),)

    stream = io.BytesIO()
    np.save(stream, np.array([Bomb()], dtype=object), allow_pickle=True)
    (tmp_path / "a.npy").write_bytes(stream.getvalue())
    with pytest.raises(Unreadable):
        open_(tmp_path, ["a"], None).rows("a")
    assert not canary.exists()


def test_links_that_lead_out_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.npy").write_bytes(packed(np.zeros((3, 5))))
    (tmp_path / "in" / "a.npy").symlink_to(tmp_path / "secret.npy")
    os.mkfifo(tmp_path / "in" / "b.npy")
    found = open_(tmp_path / "in", ["a", "b"], None)
    for video, reason in (("a", "a link that leads out"), ("b", "not a regular file")):
        with pytest.raises(Unreadable, match=reason):
            found.rows(video)


def test_hdf5_of_other_files_and_of_giants(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = np.zeros((3, 5))
    with h5py.File(tmp_path / "bad.h5", "w") as file:
        file["linked"] = h5py.ExternalLink("secret.h5", "/x")
        file["soft"] = h5py.SoftLink("/good")
        file.create_dataset("raw", (3, 5), "f4", external=[(str(tmp_path / "secret.h5"), 0, 60)])
        layout = h5py.VirtualLayout((3, 5), "f8")
        layout[:] = h5py.VirtualSource("secret.h5", "x", (3, 5))
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("giant", (10**12, 5), "f4", chunks=(1000, 5))
        file.create_dataset("hollow", (10**7, 90), "f4")  # 3.6 GB that nobody wrote
        file.create_dataset("bomb", (40, 10**8), "f4", chunks=(10, 10**8), compression="gzip")
        file["text"], file["number"], file["good"] = "words", 1.0, np.zeros((3, 5))
    ids = ["linked", "soft", "raw", "virtual", "giant", "bomb", "hollow", "text", "number", "good"]
    found = open_(tmp_path / "bad.h5", ids, None)
    assert "linked" not in found.entries and "soft" not in found.entries
    for video, outcome in (("raw", "refused"), ("virtual", "refused"), ("giant", "too_large"), ("bomb", "too_large")):
        with pytest.raises(Unreadable) as error:
            found.rows(video)
        assert error.value.outcome == outcome, video
    for video in ("text", "number", "hollow"):
        with pytest.raises(Unreadable):
            found.rows(video)
    assert found.rows("good")[1].shape == (3, 5)


@pytest.mark.parametrize("offsets", [[0, 9], [0, 3, 2, 5], [-1, 2, 4, 5], [0, 2, 4, 99]])
def test_offsets_that_do_not_fit(tmp_path: Path, offsets: list[int]) -> None:
    with h5py.File(tmp_path / "flat.h5", "w") as file:
        file["features"], file["offsets"] = np.zeros((5, 2)), offsets
        file.create_dataset("ids", data=["a", "b", "c"], dtype=h5py.string_dtype())
    with pytest.raises(UserError, match="offsets do not fit the features"):
        open_(tmp_path / "flat.h5", ["a"], None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("offsets", [[0, 1], [2, 3]]),
        ("offsets", ["a", "b"]),
        ("offsets", [0.0, 5.0]),
        ("features", 3.0),
        ("ids", "a"),
        ("ids", [[1]]),
    ],
)
def test_flat_files_of_other_shapes(tmp_path: Path, name: str, value: Any) -> None:
    whole = {"features": np.zeros((5, 2)), "offsets": [0, 5], "ids": ["a"]}
    with h5py.File(tmp_path / "flat.h5", "w") as file:
        for key, data in {**whole, name: value}.items():
            text = isinstance(data, str) or (isinstance(data, list) and isinstance(data[0], str))
            file.create_dataset(key, data=data, dtype=h5py.string_dtype() if text else None)
    with pytest.raises(UserError, match=r"not flat features|offsets or ids cannot be read"):
        open_(tmp_path / "flat.h5", ["a"], None)


def test_a_flat_file_does_not_lead_into_another(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = np.ones((5, 2))
    with h5py.File(tmp_path / "flat.h5", "w") as file:
        file["features"], file["offsets"] = h5py.ExternalLink("secret.h5", "/x"), [0, 5]
        file.create_dataset("ids", data=["a"], dtype=h5py.string_dtype())
    assert not open_(tmp_path / "flat.h5", ["a"], None).entries


def test_a_header_of_a_terabyte_is_not_read(tmp_path: Path) -> None:
    member = tarfile.TarInfo("a.rgb.npy")
    member.size, member.type = 1 << 40, tarfile.XHDTYPE
    (tmp_path / "x.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    with pytest.raises(UserError, match="not a plain tar"):
        open_(tmp_path / "x.tar", ["a"], "rgb")


def test_what_is_no_collection_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.h5").write_bytes(b"not HDF5")
    (tmp_path / "x.tar").write_bytes(b"not a tar")
    with tarfile.open(tmp_path / "packed.tar", "w:gz"):
        pass
    for name, message in (
        ("x.h5", "not an HDF5 file"),
        ("x.tar", "not a plain tar"),
        ("packed.tar", "not a plain tar"),
        ("gone", "features are not there"),
        ("x", "features are not there"),
    ):
        with pytest.raises(UserError, match=message):
            open_(tmp_path / name)
    (tmp_path / "x").write_text("a file")
    with pytest.raises(UserError, match=r"not a folder of .npy files"):
        open_(tmp_path / "x")


@pytest.mark.parametrize(
    ("layout", "name"), [("npy", "out"), ("webdataset", "out"), ("videos", "o.h5"), ("flat", "o.h5")]
)
def test_what_goes_out_comes_in_again(tmp_path: Path, layout: str, name: str) -> None:
    """Rows as they were stored, and times to the microsecond."""
    stores = []
    for extractor, seed in (("rgb", 0), ("flow", 1)):
        stores.append(tmp_path / f"{extractor}-{digest(made.RECIPE)[:8]}")
        for shard, lengths in enumerate(([3, 0, 5], [2])):
            ids = tuple(f"some/class.{shard}/v.{n}" for n in range(len(lengths)))
            made.make(stores[-1], made.videos(lengths, seed=seed), shard=shard, ids=ids, extractor=extractor)
    path = tmp_path / name
    assert export(path, layout, stores) == 3
    ids = ["some/class.0/v.0", "some/class.0/v.1", "some/class.0/v.2", "some/class.1/v.0"]
    for extractor, seed in (("rgb", 0), ("flow", 1)):
        found = opened(path, "webdataset" if layout == "webdataset" else None, extractor, None, ids)
        assert sorted(found.entries) == [ids[0], ids[2], ids[3]]
        wanted = made.videos([3, 0, 5], seed=seed)
        times_us, rows = found.rows(ids[2])
        assert rows.dtype == np.float16 and np.array_equal(rows, wanted[2])
        assert times_us.tolist() == made.times(wanted)[2].tolist()


def test_a_full_disk_is_an_error_of_the_disk(tmp_path: Path) -> None:
    made.make(store := tmp_path / f"rgb-{digest(made.RECIPE)[:8]}", made.videos([3, 0, 5]), extractor="rgb")
    code = (
        "import resource, signal; from pathlib import Path; from features.foreign.export import export\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        f"export(Path({str(tmp_path / 'out')!r}), 'webdataset', [Path({str(store)!r})])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "FramepoolError: cannot write: " in done.stderr.splitlines()[-1], done.stderr
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("layout", ["npy", "videos"])
def test_accents_compare_equal_in_whatever_form(tmp_path: Path, layout: str) -> None:
    """A Mac writes them in two letters, a list may have them in one."""
    two = unicodedata.normalize("NFD", "café")
    path = tmp_path / ("rows.h5" if layout == "videos" else "rows")
    if layout == "npy":
        path.mkdir()
        np.save(path / f"{two}.npy", np.ones((2, 3)))
    else:
        with h5py.File(path, "w") as file:
            file[two] = np.ones((2, 3))
    assert opened(path, None, None, None, ["café"]).rows("café")[1].shape == (2, 3)


def test_a_tar_is_searched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For all that ask, until it is another one; a cache that cannot be read is none."""
    tar, cache = tmp_path / "rows.tar", tmp_path / "cache"

    def write(rows: int) -> None:
        with tarfile.open(tar, "w") as file:
            data = io.BytesIO()
            np.save(data, np.ones((rows, 3)))
            member = tarfile.TarInfo("v_a.npy")
            member.size = len(data.getvalue())
            file.addfile(member, io.BytesIO(data.getvalue()))

    def rows() -> int:
        return len(opened(tar, None, None, None, ["v_a"], cache).rows("v_a")[1])

    write(2)
    assert rows() == 2
    with monkeypatch.context() as patch:
        patch.setattr("tarfile.open", lambda *_, **__: pytest.fail("searched again"))
        assert rows() == 2
    (kept,) = cache.iterdir()
    kept.write_text("[[1]]")
    assert rows() == 2
    write(90)
    assert rows() == 90 and len(list(cache.iterdir())) == 2


def test_two_stores_of_one_extractor_do_not_go_out_together(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"two stores of one extractor: .*: got rgb"):
        export(tmp_path / "out", "npy", [tmp_path / "rgb-00000000", tmp_path / "rgb-11111111"])
