"""Files and folders are whole or absent, and a lock has one holder, who is named (F09, F13)."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from features.atomic import (
    Disk,
    Lock,
    link_or_copy,
    make_folder,
    publish_folder,
    remove,
    scratch_folder,
    write_bytes,
    write_json,
    writing,
)
from features.errors import Busy, FramepoolError, UserError

HOLD = "import sys, time; from features.atomic import Lock; lock = Lock(__import__('pathlib').Path(sys.argv[1])); "
HOLD += "lock.__enter__(); "
ROOT = Path(__file__).parents[2]


def test_bytes_replace_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    (tmp_path / ".file.tmp").write_bytes(b"what a killed writer left, and longer")
    for data in (b"one", b"", b"two"):
        write_bytes(path, data)
        assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_readable_and_never_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": "é", "a": [1]})
    assert (tmp_path / "a.json").read_text() == '{\n "a": [\n  1\n ],\n "b": "é"\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text())["b"] == "é"


def test_folders_whose_names_differ_behind_a_dot_are_made_apart(tmp_path: Path) -> None:
    one, two = (scratch_folder(tmp_path / f"resnet50.a1_in1k-{n}") for n in "12")
    (two / "file").write_text("left")
    assert one != two and one.is_dir()
    assert list(scratch_folder(tmp_path / "resnet50.a1_in1k-2").iterdir()) == []


@pytest.mark.parametrize("operation", ["write", "fsync", "rename"])
def test_a_failed_write_keeps_the_old_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "x")

    monkeypatch.setattr(Disk, operation, staticmethod(fail))
    with pytest.raises(
        FramepoolError, match=rf"cannot write: {path}: got No space left on device \(\d+ MB free\); free some space"
    ):
        write_bytes(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    write_bytes(path, b"new")
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_is_broken_is_not_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "x")

    monkeypatch.setattr(Disk, "fsync", staticmethod(fail))
    with pytest.raises(FramepoolError, match=r"Input/output error \(\d+ MB free\); see to that disk and run the same"):
        write_bytes(tmp_path / "file", b"new")


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def flock(*_: object) -> None:
        raise OSError(code, "x")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(UserError, match=r"file system without locks: .*a\.lock: got .*; mount it with locks"):
        Lock(tmp_path / "a.lock").__enter__()


@pytest.mark.parametrize("links", [True, False])
def test_a_second_name_or_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"weights")
    (tmp_path / ".b.tmp").write_bytes(b"of a killed one")
    if not links:
        monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError("another disk")))
    link_or_copy(source, target)
    assert target.read_bytes() == b"weights" and target.samefile(source) == links
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_folder_appears_whole_and_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_folder(tmp_path / "a" / "b")
    (source / "x").write_text("x")
    (make_folder(source / "c") / "y").write_text("y")
    calls: list[str] = []
    monkeypatch.setattr(Disk, "fsync", staticmethod(lambda n: calls.append(os.readlink(f"/proc/self/fd/{n}"))))
    publish_folder(source, tmp_path / "out")
    assert {str(source / "x"), str(source / "c" / "y"), str(source / "c"), str(source)} <= set(calls[:-1])
    assert calls[-1] == str(tmp_path)
    assert (tmp_path / "out" / "c" / "y").read_text() == "y" and not source.exists()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda folder: (folder / "a").write_text(""), "Not a directory"),
        (lambda folder: None, "No such file or directory"),
        (lambda folder: (folder / "a" / "b.json").mkdir(parents=True), "Is a directory"),
    ],
)
def test_a_place_that_cannot_hold_the_file_is_the_users_to_mend(tmp_path: Path, make: object, reason: str) -> None:
    make(tmp_path)  # type: ignore[operator]
    path = tmp_path / "a" / "b.json"
    with pytest.raises(UserError, match=f"cannot write: {path}: got {reason}; make its folder exist and writable"):
        write_bytes(path, b"x")


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    for path, reason in ((tmp_path / "a", "File exists"), (tmp_path / "a" / "b", "Not a directory")):
        with pytest.raises(UserError, match=f"cannot write: {path}: got {reason}; make its folder"):
            make_folder(path)


def test_an_error_without_a_number_keeps_its_words(tmp_path: Path) -> None:
    with pytest.raises(FramepoolError, match=r"got only words \(\d+ MB free\)"), writing(tmp_path / "no" / "where"):
        raise OSError("only words")


def test_removing(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "a" / "b")
    (tmp_path / "link").symlink_to(folder)
    remove(tmp_path / "link")
    assert folder.is_dir()
    for _ in range(2):
        remove(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def hold(path: Path, then: str = "time.sleep(60)") -> subprocess.Popen[bytes]:
    holder = subprocess.Popen([sys.executable, "-c", HOLD + then, str(path)], cwd=ROOT)
    while not path.exists() or "process" not in path.read_text():
        time.sleep(0.01)
    return holder


def test_a_lock_names_its_holder_and_is_free_when_the_holder_dies(tmp_path: Path) -> None:
    path = tmp_path / "00000.lock"
    holder = hold(path)
    try:
        message = rf"locked: {path}: got held by process {holder.pid} on .* since \d{{4}}-\d\d-\d\d .*; wait for it"
        with pytest.raises(Busy, match=message), Lock(path):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert path.exists()
    with Lock(path) as lock:
        assert f"process {os.getpid()} on " in lock.holder()
    assert not path.exists()


def test_waiting_for_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = hold(path, "time.sleep(0.3)")
    with Lock(path, wait_s=20):
        assert holder.wait() == 0


def test_one_holder_at_a_time_whoever_removes_the_name(tmp_path: Path) -> None:
    """Many processes take the lock in turn; each must find the count as the last one left it."""
    code = (
        "import sys, pathlib; from features.atomic import Lock; p = pathlib.Path(sys.argv[1])\n"
        "for _ in range(40):\n"
        "    with Lock(p / 'lock', wait_s=60):\n"
        "        n = int((p / 'count').read_text()); (p / 'count').write_text(str(n + 1))\n"
    )
    (tmp_path / "count").write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT) for _ in range(3)]
    assert [p.wait() for p in processes] == [0, 0, 0]
    assert (tmp_path / "count").read_text() == "120"


def test_a_lock_where_none_can_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write: .*lock: got No such file"), Lock(tmp_path / "no" / "lock"):
        pass


def test_a_name_that_cannot_be_removed_still_frees_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> None:
        raise OSError(errno.EIO, "x")

    monkeypatch.setattr(Disk, "remove", staticmethod(fail))
    with Lock(tmp_path / "lock"):
        pass
    assert (tmp_path / "lock").exists()
    with Lock(tmp_path / "lock"):
        pass
