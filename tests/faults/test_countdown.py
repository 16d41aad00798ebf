"""F02, F04: the disk fails at its N-th operation, for every N, once or for good; also while a failed job is resumed.

After each fault: what is published verifies; the error is one line with the path and the free space; the next run ends
in the bytes of an undisturbed one, and leaves nothing else behind.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from features.atomic import Disk, Lock
from features.errors import FramepoolError
from features.manifest import Manifest
from features.store import publish, republish, shards, verify_shard
from tests.features import made

ROWS = made.videos([3, 0, 5, 2])
OPERATIONS = ("write", "fsync", "rename", "truncate", "remove")


def work(folder: Path) -> Manifest:
    """What an extractor does with the disk, without an extractor."""
    wanted = made.manifest(ROWS)
    with Lock(folder / "00000.lock"):
        if (whole := republish(folder, wanted.identity(), 0)) is not None:
            return whole
        journal = made.open_journal(folder, wanted)
        try:
            made.fill(journal, ROWS)
            return publish(journal, folder, wanted)
        finally:
            journal.close()


class Faults:
    """Lets `count` operations through; then one fails with `code`, or every one from there on."""

    def __init__(self, count: int, code: int, sticky: bool) -> None:
        self.count, self.code, self.sticky, self.hits = count, code, sticky, 0

    def wrap(self, name: str, original: Callable[..., Any]) -> Any:
        def operation(*args: Any) -> Any:
            self.count -= 1
            if self.count == -1 or (self.sticky and self.count < 0):
                self.hits += 1
                if name == "write":  # a full disk takes the beginning
                    original(args[0], args[1][: len(args[1]) // 2])
                raise OSError(self.code, os.strerror(self.code))
            return original(*args)

        return staticmethod(operation)


@contextmanager
def failing(count: int, code: int, sticky: bool) -> Iterator[Faults]:
    faults = Faults(count, code, sticky)
    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:
            patch.setattr(Disk, name, faults.wrap(name, getattr(Disk, name)))
        yield faults


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    work(folder)
    return made.contents(folder)


def attempt(folder: Path, count: int, code: int, sticky: bool) -> int:
    """One run with a fault; how many faults it met."""
    with failing(count, code, sticky) as faults:
        try:
            work(folder)
        except FramepoolError as error:
            text = str(error)
            assert text.startswith(f"cannot write: {folder}") and "MB free)" in text and "\n" not in text
            assert os.strerror(code) in text
        else:
            # The one operation whose failure is nobody's loss is taking away the name of a lock.
            assert faults.hits == 0 or (folder / "00000.lock").exists()
    for shard in shards(folder):
        verify_shard(folder, shard)
    return faults.hits


def complete(folder: Path, undisturbed: dict[str, bytes]) -> None:
    work(folder)
    assert made.contents(folder) == undisturbed
    assert sorted(p.name for p in folder.iterdir()) == ["00000.json", "00000.zarr"]


@pytest.mark.parametrize(
    ("code", "sticky"), [(errno.ENOSPC, False), (errno.ENOSPC, True), (errno.EIO, False)], ids=["once", "full", "EIO"]
)
def test_the_disk_fails_at_every_operation(
    tmp_path: Path, undisturbed: dict[str, bytes], code: int, sticky: bool
) -> None:
    for count in range(1000):
        folder = tmp_path / str(count)
        folder.mkdir()
        hits = attempt(folder, count, code, sticky)
        complete(folder, undisturbed)
        if hits == 0:
            break
    assert 30 < count < 300, "every operation of the run was made to fail once"


@pytest.mark.parametrize(("first", "sticky"), [(9, False), (17, True), (-7, False), (-4, True), (-2, False)])
def test_the_disk_fails_again_while_the_job_is_resumed(
    tmp_path: Path, undisturbed: dict[str, bytes], first: int, sticky: bool
) -> None:
    """The first fault falls into the rows, or (counted from the end) around the renames."""
    if first < 0:
        (tmp_path / "count").mkdir()
        with failing(10**9, 0, False) as faults:
            work(tmp_path / "count")
        first += 10**9 - faults.count
    for count in range(1000):
        folder = tmp_path / f"run{count}"
        folder.mkdir()
        assert attempt(folder, first, errno.EIO, True) > 0
        hits = attempt(folder, count, errno.ENOSPC, sticky)
        complete(folder, undisturbed)
        if hits == 0:
            break
    assert 0 < count < 300


def test_a_new_list_replaces_the_old_shard_whole_or_not_at_all(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    """An older shard stands in the place of the new one: a reader finds one of the two, or none, never a mix."""
    for count in range(1000):
        folder = tmp_path / str(count)
        made.make(folder, made.videos([1, 1], seed=9), list_digest="older")
        hits = attempt(folder, count, errno.ENOSPC, True)
        complete(folder, undisturbed)
        if hits == 0:
            break
    assert 30 < count < 300
