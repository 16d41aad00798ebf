"""The tables of sweeps and the pictures of attention on the page of a dataset."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.errors import DamagedStore
from features.videolist import Video, VideoList
from heads.kinds import AttentionClusterConfig
from heads.results import read_attention, read_predictions
from pipelines.report import assemble
from pipelines.report.page import outside
from pipelines.report.runs import by_head, read_run
from pipelines.report.tables import tables
from pipelines.report.thumbnails import SIDE_PX, thumbnails
from pipelines.sweeps import Sweep
from tests.heads.made import CLASSES, problem
from tests.heads.test_training import go
from tests.media import write_video
from tests.pipelines.test_report import make_run

SWEEP = Sweep.model_validate(
    {
        "title": "Top-1 by N & shifting",
        "head": {"kind": "attention_cluster", "features": ["rgb"]},
        "columns": {"FC1": {"shift": False}, "FC1 + shift": {"shift": True}},
        "rows": {"1": {"clusters": 1}, "32": {"clusters": 32}, "mean": {}},
        "cells": {"FC1 / mean": "average", "FC1 + shift / mean": None},
        "paper": {"FC1 + shift": [51.2, 87.1, None]},
        "top5": {"FC1 + shift": [80.4, None, None]},
        "shows": "best",
        "remarks": {"FC1 + shift / 32": "a remark"},
    }
)
NAMES = ("t_fc1_1", "t_fc1_shift_1", "t_fc1_shift_32")  # t_fc1_32 is not trained yet


def finished(root: Path) -> list[Path]:
    folders = [
        make_run(root, name, "1", seed, 0.5 + 0.1 * k + 0.02 * seed) for k, name in enumerate(NAMES) for seed in (0, 1)
    ]
    line = "13,0.001,0.1,1,0.1,0.2\n"  # the last epoch is worse than the best
    for folder in folders:
        path = folder / "history.csv"
        path.write_text(path.read_text() + line)
    return [*folders, make_run(root, "average", "1", 0, 0.4)]


def test_a_table_has_the_last_the_best_and_the_papers(tmp_path: Path) -> None:
    heads = by_head(read_run(folder) for folder in finished(tmp_path))
    [table] = tables({"t": SWEEP, "none": SWEEP.model_copy(update={"cells": {}})}, heads)
    cell = table.cell("FC1 + shift", "32")
    assert cell is not None and cell.last == pytest.approx(0.71) and cell.paper == pytest.approx(0.871)
    assert cell.best == pytest.approx(0.71 * (1 - 1 / 12)) and cell.best_epoch == 12
    assert table.top == cell.best
    missing, unprinted, other = (table.cell("FC1", row) for row in ("32", "1", "mean"))
    assert missing is not None and missing.last is None
    assert unprinted is not None and unprinted.paper is None
    assert other is not None and other.name == "average" and other.last == pytest.approx(0.4)
    assert table.cell("FC1 + shift", "mean") is None
    assert [head.name for head in outside(heads, [table])] == ["t_fc1_shift_32", "average"]


def test_the_page_shows_it(tmp_path: Path) -> None:
    out = tmp_path / "results"
    classes = tuple(read_run(finished(tmp_path)[0]).record["classes"])
    videos = VideoList(videos=(), classes=classes, splits=("1",))
    folders = sorted((tmp_path / "runs").glob("*/seed?"))
    assemble(
        out,
        dataset="made",
        title="T",
        runs=folders,
        stores=[],
        videos=videos,
        splits=("1",),
        factors=(),
        plan_info={},
        sweeps={"t": SWEEP},
    )
    page = (out / "index.html").read_text()
    for text in (
        *("Top-1 by N &amp; shifting", "paper 87.1", "not yet", "FC1 + shift / 32:</b> a remark", "last 71.0"),
        "last 61.0 ± 1.4",  # of the seeds' last epochs, not of the best
        *("top-5 90.0 · paper 80.4", "top-5 90.0</small>"),
    ):
        assert text in page, text
    rows = list(csv.DictReader((out / "tables" / "t.csv").open()))
    assert [row["head"] for row in rows] == ["t_fc1_1", "t_fc1_32", "average", "t_fc1_shift_1", "t_fc1_shift_32"]
    assert [row["paper_top5"] for row in rows] == ["", "", "", "0.804", ""]
    assert float(rows[4]["shown_less_paper"]) == pytest.approx(0.71 * 11 / 12 - 0.871, abs=1e-5)
    assert rows[1]["last"] == ""
    assert (out / "figures" / "table-t.svg").is_file()
    board = list(csv.DictReader((out / "leaderboard.csv").open()))
    assert {row["head"] for row in board} == {*NAMES, "average"}, "the file has them all"


def cluster(folder: Path, *, balanced: bool = True, **changed: Any) -> None:
    train = {"epochs": 15, "batch": 16, "lr": 1e-2, "balanced": balanced}
    go(folder, AttentionClusterConfig(features=("rgb",), clusters=4, dropout=0.2, train=train), **changed)  # type: ignore[arg-type]


def test_a_head_leaves_what_its_units_look_at(tmp_path: Path) -> None:
    cluster(tmp_path)
    looks = read_attention(tmp_path)
    assert 2 <= len(looks) <= 4 and len({look.label for look in looks}) == len(looks)
    for look in looks:
        weights, times = look.weights["rgb"], look.time_us["rgb"]
        assert weights.shape == (4, len(times)) and 3 <= len(times) <= 9
        np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
        assert times.tolist() == sorted(times.tolist())
    right = json.loads((tmp_path / "metrics.json").read_text())["top1"]
    assert right > 0.5
    (tmp_path / "attention.npz").write_bytes(b"no zip")
    with pytest.raises(DamagedStore, match=r"run is not complete: .*attention\.npz"):
        read_attention(tmp_path)


def test_a_video_with_several_labels_is_shown_under_all_of_them(tmp_path: Path) -> None:
    features, labels = problem()
    several = np.eye(4, dtype=bool)[labels] | np.eye(4, dtype=bool)[(labels + 1) % 4]
    cluster(tmp_path, balanced=False, data=(features, several))
    kept = read_predictions(tmp_path)
    logits, true = (dict(zip(kept.ids, values, strict=True)) for values in (kept.logits, kept.labels))
    looks = read_attention(tmp_path)
    assert 2 <= len(looks) <= 4
    for look in looks:
        assert true[look.id][logits[look.id].argmax()]
        assert look.label == ", ".join(CLASSES[k] for k in np.flatnonzero(true[look.id]))
        np.testing.assert_allclose(look.weights["rgb"].sum(axis=1), 1, rtol=1e-5)
    best = [int(logits[look.id].argmax()) for look in looks]
    assert best == sorted(set(best)), "of different classes"


def test_pictures_are_the_frames_of_the_times(tmp_path: Path) -> None:
    write_video(tmp_path / "a.avi", frames=10, seed=1, codec="mpeg4")
    (tmp_path / "broken.avi").write_bytes(b"no video")
    make = thumbnails(tmp_path, None)
    pictures = make("a", "a.avi", np.array([0, 200_000, 10_000_000]))
    assert all(p is not None and p.shape == (SIDE_PX, SIDE_PX, 3) for p in pictures)
    assert (pictures[0] != pictures[1]).any()  # type: ignore[union-attr]
    assert make("b", "broken.avi", np.array([0])) == [None]


def test_attention_is_drawn_over_the_frames(tmp_path: Path) -> None:
    cluster(tmp_path / "runs" / "mine" / "seed0")
    looks = read_attention(tmp_path / "runs" / "mine" / "seed0")
    listed = [Video(id=look.id, path="a.avi", labels=(0,), splits=("test",), group="") for look in looks]
    write_video(tmp_path / "a.avi", frames=10, seed=1, codec="mpeg4")
    out = tmp_path / "results"
    assemble(
        out,
        dataset="made",
        title="T",
        runs=[tmp_path / "runs" / "mine" / "seed0"],
        stores=[],
        videos=VideoList(videos=tuple(listed), classes=("jump", "kick", "=run", "walk"), splits=("1",)),
        splits=("1",),
        factors=(),
        plan_info={},
        thumbnails=thumbnails(tmp_path, None),
    )
    drawn = sorted(path.name for path in (out / "figures").glob("attention-*"))
    assert drawn == [f"attention-{k}-rgb.svg" for k in range(len(looks))]
    assert "data:image/png" in (out / "figures" / drawn[0]).read_text()
    assert "What the units look at" in (out / "index.html").read_text()
