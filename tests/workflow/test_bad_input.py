"""F27 and mistakes of the user, as Snakemake shows them: one line that says what to do, and no work lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.workflow import world


def errors(printed: str) -> list[str]:
    """What a user reads, without Snakemake's line on its profile."""
    return [line for line in printed.splitlines() if line and not line.startswith("Using ")]


def test_too_many_broken_videos_stop_the_run_and_lose_nothing(copy: Path) -> None:
    for number in (0, 1):  # of the first shard both
        (copy / "videos" / f"{world.name_of(number)}.avi").write_text("<html>404</html>")
    printed = world.snakemake(copy, code=1)
    assert "too many videos failed" in printed and "at most 5.0%, got 22.2%" in printed
    assert f"{world.name_of(0)}: undecodable" in printed
    store = world.store(copy)
    shards = {p.name: (p.stat().st_mtime_ns, p.stat().st_ino) for p in store.glob("0000?.json")}
    assert len(shards) == 3
    refused = world.framepool(copy, "gather", "tiny", "--extractor", "rgb", code=3)
    assert "mend the files, or raise max_bad_share in the config" in refused.splitlines()[-1]

    world.write_config(copy, {**world.CONFIG, "max_bad_share": 0.5})
    assert world.planned(copy) == {"gather": 1, "train": 2, "assemble": 1}
    world.framepool(copy, "gather", "tiny", "--extractor", "rgb")
    assert {p.name: (p.stat().st_mtime_ns, p.stat().st_ino) for p in store.glob("0000?.json")} == shards


def test_an_unmounted_disk_takes_no_features_with_it(copy: Path) -> None:
    before = world.contents(world.store(copy))
    (copy / "videos").rename(copy / "elsewhere")
    (line,) = errors(world.snakemake(copy, code=None))
    assert line.startswith(
        "framepool: the videos are not there: config/tiny.yaml: $.videos.root: got none of 9 in videos"
    )
    assert world.contents(world.store(copy)) == before
    (copy / "elsewhere").rename(copy / "videos")
    assert not world.planned(copy)


@pytest.mark.parametrize("arguments", [("-n",), ()])
def test_a_missing_annotation_file_is_one_line(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "config").mkdir()
    shutil.copy(world.REPO / "config" / "kinetics.yaml", tmp_path / "config")
    (line,) = errors(world.snakemake(tmp_path, "results/kinetics", *arguments, code=None))
    assert line.startswith("framepool: ") and "data/kinetics/train.csv" in line and "README" in line
    assert "Your own data" in line


def test_an_unknown_dataset_is_one_line(made: Path) -> None:
    (line,) = errors(world.snakemake(made, "results/tinny", code=None))
    assert line == (
        "framepool: unknown dataset: config: expected the name of a config, got 'tinny'; did you mean 'tiny'?"
    )


def test_a_bad_config_is_one_line(copy: Path) -> None:
    config = {**world.CONFIG, "max_bad_share": 7}
    world.write_config(copy, config)
    (line,) = errors(world.snakemake(copy, code=None))
    assert line.startswith("framepool: invalid config: config/tiny.yaml: $.max_bad_share: expected a number <= 1")


def test_missing_weights_are_one_line(copy: Path) -> None:
    (copy / "network.safetensors").unlink()
    (line,) = errors(world.snakemake(copy, code=None))
    assert line.startswith("framepool: weights are not there: ") and "network.safetensors" in line
