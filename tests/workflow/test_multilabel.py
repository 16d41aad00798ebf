"""Several labels with times, from scenes to the leaderboard."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml

from tests.workflow import world

HEADS = ("tsn_rgb", "tsn_rgb_video", "tsn_flow", "tsn_audio", "average")


@pytest.mark.slow
def test_labels_of_clips_teach_what_labels_of_videos_do_not(tmp_path: Path) -> None:
    """Each network learns its three of nine labels from moments; all together know them all. A digit that is shown for
    a quarter of a scene is not learnt from the labels of the scene."""
    config = yaml.safe_load((world.REPO / "config" / "demo-multilabel.yaml").read_text())
    config["heads"] = {name: config["heads"][name] for name in HEADS}
    config["videos"]["count"] = 120
    world.write_config(tmp_path, config)
    world.snakemake(tmp_path)
    with (tmp_path / "results" / "tiny" / "leaderboard.csv").open(newline="") as stream:
        found = {row["head"]: float(row["map"]) for row in csv.DictReader(stream)}
    assert found["average"] > 0.85
    assert found["average"] > found["tsn_rgb"] + 0.2
    assert found["tsn_rgb"] > found["tsn_rgb_video"] + 0.03
    assert all(found[name] > 0.48 for name in ("tsn_flow", "tsn_audio"))
    page = (tmp_path / "results" / "tiny" / "index.html").read_text()
    assert "mAP" in page and "Mean average precision" in page
