"""One pass over the videos serves the extractors that are missing, and temporary rows go when nothing reads them."""

from __future__ import annotations

import copy as copies
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.workflow import world

SMALL = {"resize": 64, "crop": 64}
MORE: dict[str, Any] = {
    "pixels": {"kind": "pixels", "sampling": {"kind": "uniform", "n": 2}, "transform": SMALL},
    "tvl1": {
        "kind": "tvl1",
        "sampling": {"kind": "segments", "n": 2},
        "pairs": 2,
        "transform": SMALL,
        "temporary": True,
    },
    "flow": {"kind": "flow", "source": "tvl1", "network": {"name": "test_resnet", "weights": "network.safetensors"}},
}


def config() -> dict[str, Any]:
    value = copies.deepcopy(world.CONFIG)
    value["extractors"] |= copies.deepcopy(MORE)
    value["extractors"]["flow"]["crop"] = 64
    value["heads"]["both"] = {"kind": "ridge", "features": ["rgb", "flow"]}
    return value


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nothing is made yet."""
    folder = world.build(tmp_path_factory.mktemp("passes") / "made")
    world.write_config(folder, config())
    return folder


@pytest.fixture(scope="module")
def shared(fresh: Path) -> Path:
    """Made from nothing: the first run of all extractors."""
    world.snakemake(fresh)
    return fresh


def test_what_is_missing_is_made_together(fresh: Path) -> None:
    assert world.planned(fresh) == {
        "index": 1,
        "extract_tiny_rgb_pixels_tvl1": 3,
        "extract": 3,  # flow, from its store
        "gather": 4,
        "train_tiny_1": 1,
        "assemble": 1,
    }


@pytest.mark.slow
def test_a_second_run_has_nothing_to_do(shared: Path) -> None:
    """Although the rule that made the shards is gone, and so are the temporary rows."""
    assert world.planned(shared) == {}
    assert "Nothing to be done" in world.snakemake(shared)


@pytest.mark.slow
def test_temporary_rows_are_gone_and_told_of(shared: Path) -> None:
    left = sorted(p.name for p in world.store(shared, "tvl1").iterdir() if p.suffix != ".lock")
    assert left == [*(f"0000{n}.was.json" for n in range(3)), "store.json"]
    assert "tvl1-" in (shared / "results/tiny/index.html").read_text()
    assert "all shards match" in world.framepool(shared, "verify", "tiny")


@pytest.mark.slow
def test_more_videos_bring_back_no_temporary_rows_but_their_own(shared: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shared, tmp_path / "copy", symlinks=True)
    names = [world.name_of(number) for number in range(world.VIDEOS + 4)]
    for name in names[world.VIDEOS :]:
        shutil.copy(folder / "videos" / f"{names[0]}.avi", folder / "videos" / f"{name}.avi")
    world.write_list(folder, names)
    parts = {
        "index": 1,
        "gather": 4,
        "train_tiny_1": 1,
        "assemble": 1,
    }  # the last shard, which was not full, and another
    assert world.planned(folder) == {**parts, "extract_tiny_rgb_pixels_tvl1": 1, "extract": 4, "extract_tiny_tvl1": 1}
    world.snakemake(folder)
    said = json.loads((world.store(folder, "tvl1") / "store.json").read_bytes())
    assert said["report"]["videos"] == world.VIDEOS + 4 and said["report"]["shards"] == 4
    assert world.planned(folder) == {}


@pytest.mark.slow
def test_rows_are_those_of_extractors_alone(shared: Path, tmp_path: Path) -> None:
    folder = world.build(tmp_path / "alone")
    world.write_config(folder, config())
    for name in ("rgb", "pixels", "tvl1", "flow"):
        world.framepool(folder, "extract", "tiny", "--extractor", name)
    for name in ("rgb", "pixels", "flow"):
        one, other = (world.contents(world.store(f, name)) for f in (shared, folder))
        assert one == other


@pytest.mark.slow
def test_what_is_there_is_no_output_of_a_shared_job(shared: Path, tmp_path: Path) -> None:
    """Two stores lack a shard, one of them lacks another: each job makes what is missing and touches nothing else."""
    folder = shutil.copytree(shared, tmp_path / "copy", symlinks=True)
    rgb, pixels = (world.store(folder, name) for name in ("rgb", "pixels"))
    before = world.contents(folder / "work/tiny/features")
    for path in (rgb / "00001.json", pixels / "00001.json", rgb / "00002.json"):
        path.unlink()
    world.snakemake(folder, "--rerun-incomplete", "results/tiny", "--forcerun", "gather")
    assert world.contents(folder / "work/tiny/features") == before


@pytest.mark.slow
def test_several_extractors_on_the_command_line(shared: Path, tmp_path: Path) -> None:
    folder = world.build(tmp_path / "cli")
    world.write_config(folder, config())
    said = world.framepool(
        folder, "extract", "tiny", "--extractor", "flow", "--extractor", "rgb", "--extractor", "tvl1", "--shard", "1"
    )
    assert [line.split("-")[0] for line in said.splitlines() if " rows; " in line] == ["rgb", "tvl1", "flow"]
    for name in ("rgb", "flow"):
        mine = world.contents(world.store(folder, name))
        theirs = world.contents(world.store(shared, name))
        assert mine.items() <= theirs.items() and "00001.json" in mine


@pytest.mark.slow
def test_an_extractor_that_is_not_stored(shared: Path, tmp_path: Path) -> None:
    """The same features, without the maps ever being on the disk."""
    folder = world.build(tmp_path / "virtual")
    value = config()
    value["extractors"]["tvl1"] |= {"temporary": False, "store": False}
    world.write_config(folder, value)
    said = world.framepool(folder, "index", "tiny")
    assert "not stored, computed as it is read (64x64x4 uint8 a row)" in said
    world.framepool(folder, "extract", "tiny", "--extractor", "flow")
    names = [p.name for p in (folder / "work/tiny/features").iterdir()]
    assert [n.split("-")[0] for n in names] == ["flow"]
    assert world.contents(world.store(folder, "flow")) == world.contents(world.store(shared, "flow"))
    assert "extractor that is not stored" in world.framepool(folder, "extract", "tiny", "--extractor", "tvl1", code=2)


def test_more_than_the_disk_may_hold(tmp_path: Path) -> None:
    folder = world.build(tmp_path / "budget")
    world.write_config(folder, {**config(), "disk_gb": 0.0001})
    said = world.framepool(folder, "index", "tiny", code=2)
    assert "stores would not fit" in said and "tvl1-" in said and "expected 0.0001 GB" in said
    for command in (
        world.framepool(folder, "extract", "tiny", "--extractor", "rgb", code=2),
        world.snakemake(folder, code=1),
    ):
        assert "stores would not fit" in command
    assert not (folder / "work/tiny/features").exists()


@pytest.mark.slow
def test_a_shard_of_rows_that_are_gone_is_repaired(shared: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shared, tmp_path / "copy", symlinks=True)
    before = world.contents(world.store(folder, "flow"))
    (world.store(folder, "flow") / "00001.json").write_text("{}")
    world.framepool(folder, "verify", "tiny", "--repair")
    assert world.contents(world.store(folder, "flow")) == before
    left = [p.name for p in world.store(folder, "tvl1").glob("0*") if p.suffix != ".lock"]
    assert all(name.endswith(".was.json") for name in left)
