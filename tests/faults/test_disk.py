"""F12, F13: a disk that is full for real, and folders and videos that are not what they should be."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from extract.fingerprint import Item
from extract.lanes import Writer
from extract.shard import extract_shard
from features.errors import FramepoolError, UserError
from features.store import shards
from tests.faults import world

LIMITED = """
import resource, sys
from pathlib import Path
import extract.decoders, extract.shard
from features.errors import FramepoolError
from tests.faults import world

def limit():
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))

extract.decoders.RING_BYTES = 1  # the rings are files too: two samples each
if sys.argv[4] == "publish":
    publish = extract.shard.publish
    extract.shard.publish = lambda *args: (limit(), publish(*args))[1]
else:
    limit()
try:
    extract.shard.extract_shard(world.task(Path(sys.argv[1]), store=Path(sys.argv[2]), pixels=True), workers=1)
except FramepoolError as error:
    print(f"framepool: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.fixture(scope="session")
def whole_pixels(small_world: Path) -> dict[str, str]:
    extract_shard(world.task(small_world, store=small_world / "pixels", pixels=True), workers=2)
    return world.contents(small_world / "pixels")


@pytest.mark.parametrize(
    ("limit", "when", "name"),
    [(20_000, "fill", "00000.partial"), (20_000, "publish", "00000.partial/shard.zarr")],
)
def test_a_full_disk(
    small_world: Path, whole_pixels: dict[str, str], tmp_path: Path, limit: int, when: str, name: str
) -> None:
    store = tmp_path / "store"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(small_world), str(store), str(limit), when],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    line = next(line for line in done.stderr.splitlines() if line.startswith("framepool: "))
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert line.startswith(f"framepool: cannot write: {store}/{name}: got File too large (")
    assert line.endswith("MB free); free some space there and run the same command again: what is finished is kept")
    assert shards(store) == [] and not (store / "00000.lock").exists()
    extract_shard(world.task(small_world, store=store, pixels=True), workers=2)
    assert world.contents(store) == whole_pixels


def test_a_file_in_place_of_a_folder(small_world: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for store, reason in ((tmp_path / "file", "File exists"), (tmp_path / "file" / "store", "Not a directory")):
        with pytest.raises(UserError, match=f"cannot write: {store}: got {reason}; make its folder exist"):
            extract_shard(world.task(small_world, store=store, pixels=True), workers=1)


def test_a_folder_that_is_removed_during_the_run(
    small_world: Path, whole_pixels: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    job = world.task(small_world, store=store, pixels=True)
    write = Writer._write

    def removing(self: object, batch: object, rows: object) -> None:
        shutil.rmtree(store, ignore_errors=True)
        write(self, batch, rows)  # type: ignore[arg-type]

    monkeypatch.setattr(Writer, "_write", removing)
    with pytest.raises(FramepoolError, match=rf"cannot write: {store}.*: got No such file or directory") as error:
        extract_shard(job, workers=1)
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    extract_shard(job, workers=2)
    assert world.contents(store) == whole_pixels


def test_videos_that_cannot_be_read_have_an_outcome(small_world: Path, tmp_path: Path) -> None:
    """Root reads whatever the permissions say; so a folder, a dangling link, a FIFO and nothing at all stand here."""
    root = tmp_path / "videos"
    root.mkdir()
    shutil.copy(small_world / "videos" / "clip00.mp4", root / "good.mp4")
    (root / "folder.mp4").mkdir()
    (root / "dangling.mp4").symlink_to(root / "nowhere.mp4")
    os.mkfifo(root / "fifo.mp4")
    names = ("folder", "dangling", "fifo", "absent", "good")
    items = (*(Item(n, f"{n}.mp4") for n in names), Item("unlisted", ""))
    job = replace(world.task(small_world, store=tmp_path / "store", pixels=True), items=items, root=root)
    limits = job.config.limits.model_copy(update={"timeout_s": 8.0})
    job = replace(job, config=job.config.model_copy(update={"limits": limits}))
    manifest = extract_shard(job, workers=1)
    assert [(i, o.outcome) for i, o in zip(manifest.ids, manifest.outcomes, strict=True)] == [
        ("folder", "refused"),
        ("dangling", "undecodable"),
        ("fifo", "timeout"),
        ("absent", "undecodable"),
        ("good", "ok"),
        ("unlisted", "undecodable"),
    ]
    assert all(o.reason for o in manifest.outcomes if o.outcome != "ok")
