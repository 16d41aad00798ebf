"""F16, F32, F34: after a change Snakemake redoes what the change touches and nothing else."""

from __future__ import annotations

import copy as copies
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.manifest import read_manifest
from tests.media import write_network, write_video
from tests.workflow import world


def changed(**changes: Any) -> dict[str, Any]:
    """The tiny config with values put at dotted places."""
    config = copies.deepcopy(world.CONFIG)
    for place, value in changes.items():
        node, *path = place.split("__")
        inside = config
        for part in (node, *path)[:-1]:
            inside = inside[part]
        inside[(node, *path)[-1]] = value
    return config


def test_annotations_from_the_future_are_read_once(tmp_path: Path) -> None:
    """F16: files with times of another clock stop nothing and are read again when they say something else."""
    folder, listed = world.build(tmp_path, 4), "work/tiny/videos.csv"
    tomorrow = time.time() + 86400
    for path in (folder / "lists").iterdir():
        os.utime(path, (tomorrow, tomorrow))
    world.snakemake(folder, listed)
    assert world.planned(folder, listed) == {}
    world.write_list(folder, [world.name_of(number) for number in range(3)])
    assert world.planned(folder, listed) == {"index": 1}
    (folder / "lists" / "classInd.txt").unlink()
    assert "framepool: annotation file is missing" in world.snakemake(folder, code=None)


SHARDS = 3
NEW_STORE = {"extract": SHARDS, "gather": 1, "train_tiny_1": 1, "assemble": 1}


@pytest.mark.parametrize(
    ("place", "value", "jobs"),
    [
        ("heads__average__dropout", 0.25, {"train": 1, "assemble": 1}),
        ("heads__average__train", {"epochs": 3}, {"train": 1, "assemble": 1}),
        ("heads__ridge__alpha", 2.0, {"train": 1, "assemble": 1}),
        ("heads__more", {"kind": "ridge", "features": ["rgb"], "alpha": 9.0}, {"train": 1, "assemble": 1}),
        ("extractors__rgb__sampling", {"kind": "uniform", "n": 5}, NEW_STORE),
        ("extractors__rgb__batch", 2, NEW_STORE),
        ("extractors__rgb__runtime", "torch", NEW_STORE),
        ("extractors__rgb__limits", {"timeout_s": 7.0}, {}),
        ("title", "Another", {"assemble": 1}),
        ("factors", ["what"], {"assemble": 1}),
        ("seeds", [0, 1], {"train": 1, "assemble": 1}),
        ("extractors__rgb__limits", {"max_frames": 1000}, NEW_STORE),
        ("extractors__more", {"kind": "pixels", "transform": {"resize": 32, "crop": 32}}, {"extract": 3, "gather": 1}),
    ],
)
def test_a_changed_option_redoes_what_it_touches(
    made: Path, tmp_path: Path, place: str, value: Any, jobs: dict[str, int]
) -> None:
    folder = shutil.copytree(made, tmp_path / "copy", symlinks=True)
    world.write_config(folder, changed(**{place: value}))
    expected = {**jobs, "assemble": 1} if jobs else jobs
    assert world.planned(folder) == expected


def test_comments_and_the_order_of_keys_change_nothing(copy: Path) -> None:
    config = dict(reversed(world.CONFIG.items()))
    world.write_config(copy, config)
    path = copy / "config" / "tiny.yaml"
    path.write_text(f"# a comment\n{path.read_text()}")
    assert world.planned(copy) == {}


def test_other_weights_in_the_same_file_are_a_new_store(copy: Path) -> None:
    write_network(copy / "network.safetensors", "test_resnet", seed=1)
    assert world.planned(copy) == NEW_STORE


def grow(folder: Path, at: int) -> None:
    """Ten more videos in the list, from position `at`."""
    listed = [world.name_of(number) for number in range(world.VIDEOS)]
    fresh = [world.name_of(number) for number in range(world.VIDEOS, world.VIDEOS + 10)]
    for name in fresh:
        shutil.copy(folder / "videos" / f"{listed[0]}.avi", folder / "videos" / f"{name}.avi")
    world.write_list(folder, [*listed[:at], *fresh, *listed[at:]])


def test_ten_more_videos_redo_the_part_filled_last_shard(copy: Path) -> None:
    grow(copy, at=world.VIDEOS)
    assert world.planned(copy) == {"index": 1, **NEW_STORE}


def test_ten_more_videos_in_the_middle_redo_no_more(copy: Path) -> None:
    grow(copy, at=3)
    assert world.planned(copy) == {"index": 1, **NEW_STORE}


@pytest.mark.slow
def test_ten_more_videos_in_the_middle_leave_the_earlier_in_their_place(copy: Path) -> None:
    store = world.store(copy)
    earlier = [(store / f"{shard:05d}.json").read_bytes() for shard in (0, 1)]
    grow(copy, at=3)
    assert world.planned(copy) == {"index": 1, **NEW_STORE}
    printed = world.snakemake(copy)
    assert printed.count("rule extract:") == 3
    assert world.store(copy) == store
    assert [(store / f"{shard:05d}.json").read_bytes() for shard in (0, 1)] == earlier
    assert len(list(store.glob("0000?.json"))) == 5
    assert world.planned(copy) == {}


def test_a_line_less_redoes_its_shard_and_the_last(copy: Path) -> None:
    """Nine videos in shards of four: the ninth takes the place of the first, and there are two shards."""
    world.write_list(copy, [world.name_of(number) for number in range(1, world.VIDEOS)])
    text = world.snakemake(copy, "results/tiny", "--dry-run")
    assert world.planned(copy) == {"index": 1, "extract": 1, "gather": 1, "train_tiny_1": 1, "assemble": 1}
    assert "00000.json" in text


@pytest.mark.slow
def test_a_line_less_leaves_other_shards_as_they_are(copy: Path) -> None:
    store = world.store(copy)
    before, second = read_manifest(store, 0).ids, (store / "00001.json").stat().st_mtime_ns
    world.write_list(copy, [name for k in range(world.VIDEOS) if (name := world.name_of(k)) != before[1]])
    world.snakemake(copy)
    after = read_manifest(store, 0).ids
    assert [a for a, b in zip(before, after, strict=True) if a != b] == [before[1]]
    assert (store / "00001.json").stat().st_mtime_ns == second
    assert world.planned(copy) == {}


def test_a_replaced_video_redoes_its_shard(copy: Path) -> None:
    write_video(copy / "videos" / f"{world.name_of(5)}.avi", frames=9, seed=99, codec="mpeg4")
    shard = next(n for n in range(SHARDS) if world.name_of(5) in (world.store(copy) / f"{n:05d}.json").read_text())
    text = world.snakemake(copy, "results/tiny", "--dry-run")
    assert world.planned(copy) == {"extract": 1, "gather": 1, "train": 2, "assemble": 1}
    assert f"{shard:05d}.json" in text


def test_what_a_failed_job_lost_is_missed_beside_finished_results(copy: Path) -> None:
    (world.store(copy) / "00001.json").unlink()  # Snakemake removes the output of a failed job
    assert world.planned(copy) == {"extract": 1, "gather": 1, "train": 2, "assemble": 1}


def test_other_test_videos_are_judged(copy: Path) -> None:
    listed = copy / "lists" / "testlist01.txt"  # the other splits have the video still
    listed.write_text("".join(listed.read_text().splitlines(keepends=True)[1:]))
    assert world.planned(copy) == {"index": 1, "train": 2, "assemble": 1}


@pytest.mark.slow
def test_more_seeds_train_what_is_missing(copy: Path) -> None:
    (first,) = (copy / "work/tiny/runs").glob("average-*/seed0/run.json")
    before = first.stat().st_mtime_ns
    world.write_config(copy, changed(seeds=[0, 1]))
    world.snakemake(copy)
    assert first.stat().st_mtime_ns == before and (first.parents[1] / "seed1/run.json").is_file()
    assert world.planned(copy) == {}


def test_a_touched_video_ends_in_the_same_bytes(copy: Path) -> None:
    store, before = world.store(copy), world.contents(world.store(copy))
    os.utime(copy / "videos" / f"{world.name_of(5)}.avi")
    world.snakemake(copy, f"{store.relative_to(copy)}/store.json")
    assert world.contents(store) == before
    assert world.planned(copy) == {}


def test_a_video_that_turns_up_is_extracted(copy: Path) -> None:
    world.write_config(copy, changed(max_bad_share=0.2))
    (copy / "videos" / f"{world.name_of(8)}.avi").unlink()
    assert world.planned(copy)["extract"] == 1


@pytest.mark.slow
def test_a_fusion_follows_its_members(copy: Path) -> None:
    config = copies.deepcopy(world.CONFIG)
    config["heads"]["both"] = {"kind": "fusion", "heads": {"average": 1, "ridge": 2}}
    world.write_config(copy, config)
    assert world.planned(copy) == {"train": 1, "assemble": 1}
    world.framepool(copy, "train", "tiny", "--head", "both")
    [folder] = (copy / "work/tiny/runs").glob("both-*")
    scores = {}
    for record in (copy / "work/tiny/runs").glob("*/seed0/predictions.npz"):
        scores[record.parts[-3].split("-")[0]] = np.load(record)["logits"]
    np.testing.assert_allclose(scores["both"], (scores["average"] + 2 * scores["ridge"]) / 3, rtol=1e-4, atol=1e-5)
    assert json.loads((folder / "trained.json").read_text())["metrics"]["0"]["n_test"] == 2
    assert "evaluate work/tiny/runs/average" in world.framepool(copy, "evaluate", str(folder / "seed0"), code=2)
    config["heads"]["average"]["dropout"] = 0.25
    world.write_config(copy, config)
    assert world.planned(copy) == {"train_tiny_1": 1, "assemble": 1}
