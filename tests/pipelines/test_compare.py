"""The paired bootstrap of the leaderboard."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from features.errors import DamagedStore
from heads.metrics import multi_label, single_label
from pipelines.comparisons import Comparison
from pipelines.report import assemble
from pipelines.report.compare import Pair, behind, drawn_map, interval
from pipelines.report.runs import by_head, read_run
from pipelines.sweeps import Sweep
from tests.pipelines.test_report import make_list, make_run


def test_the_interval_is_that_of_the_mean() -> None:
    """Of 400 differences with deviation s the mean's 95 % lie within 1.96 s / 20, as the central limit has it."""
    values = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], size=400, p=[0.1, 0.6, 0.3])
    gap = interval([values])
    half = 1.96 * values.std() / 20
    assert gap.mean == values.mean()
    assert gap.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert gap.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_splits_count_the_same_whatever_their_size() -> None:
    gap = interval([np.ones(10), np.zeros(1000)])
    assert gap == (0.5, 0.5, 0.5)


def test_heads_are_compared_video_by_video(tmp_path: Path) -> None:
    """The better head has every video right that the worse one has: no draw can turn them round."""
    folders = [make_run(tmp_path, name, "1", seed, top1) for name, top1 in (("a", 0.8), ("b", 0.7)) for seed in (0, 1)]
    heads = by_head(read_run(folder) for folder in folders)
    gap = behind(heads)["b"]
    assert 0 < gap.low < gap.mean < gap.high < 0.25
    assert behind(heads[:1]) == {}
    (folders[0] / "predictions.npz").write_bytes(b"no zip")
    with pytest.raises(DamagedStore, match=r"run is not complete: .*predictions\.npz"):
        behind(heads)


def test_the_map_of_a_draw_is_that_of_its_videos() -> None:
    """Against the metric itself on the videos that were drawn, each as often as it was, ties and all."""
    rng = np.random.default_rng(0)
    logits, labels = rng.integers(0, 6, (40, 5)) / 2.0, rng.random((40, 5)) < 0.3
    labels[:, 4] = False
    draws = [rng.integers(0, 40, 40) for _ in range(6)]
    counts = np.stack([np.bincount(draw, minlength=40) for draw in draws])
    expected = [multi_label(logits[draw], labels[draw], list("abcde"))["map"] for draw in draws]
    np.testing.assert_allclose(drawn_map(logits, labels, counts), expected, rtol=1e-12)


def test_a_draw_without_a_label_has_no_map() -> None:
    labels = np.array([[True, False], [False, False]])
    with np.errstate(all="raise"):
        found = drawn_map(np.zeros((2, 2)), labels, np.array([[1, 1], [0, 2]]))
    np.testing.assert_array_equal(found, [0.5, np.nan])


def judged(root: Path, name: str, labels: npt.NDArray[Any], noise: float, split: str = "1") -> Path:
    """A run whose scores of the classes a, b, c and d are `labels` and `noise`."""
    folder, several = make_run(root, name, split, 0, 0.5, epochs=2), labels.ndim == 2
    drawn = np.random.default_rng(0).standard_normal((len(labels), 4))
    logits = (labels if several else np.eye(4)[labels]) + noise * drawn
    ids = np.array([f"v{n}" for n in range(len(labels))], dtype=np.str_)
    np.savez(folder / "predictions.npz", ids=ids, logits=logits, labels=labels)
    score = (multi_label if several else single_label)(logits, labels, list("abcd"))
    (folder / "metrics.json").write_text(json.dumps(score))
    record = json.loads((folder / "run.json").read_text())
    changes = {"multi_label": several, "classes": list("abcd"), "factors": ["letter"]}
    (folder / "run.json").write_text(json.dumps(record | changes))
    untested = "epoch,lr,train_loss,train_top1,test_loss,test_top1\n1,1,1,1,,\n2,1,1,1,,\n"
    (folder / "history.csv").write_text(untested)
    return folder


def test_heads_of_several_labels_are_compared_by_map(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).random((200, 4)) < 0.4
    heads = by_head(read_run(judged(tmp_path, name, labels, noise)) for name, noise in (("a", 0.3), ("b", 2.0)))
    gap, (ahead, other) = behind(heads)["b"], (head.score("map") for head in heads)
    assert ahead is not None and other is not None
    assert gap.mean == pytest.approx(ahead - other, abs=1e-9) and 0.1 < gap.low < gap.mean < gap.high


SEVERAL = np.zeros((10, 4), dtype=bool)
FEW = SEVERAL.copy()
FEW[[0, 1, 2], [0, 1, 2]] = True


@pytest.mark.parametrize(
    ("labels", "known"),
    [
        *(pytest.param(FEW[:n], known, id=f"{n} videos of several labels") for n, known in ((10, True), (0, False))),
        pytest.param(SEVERAL, False, id="no label"),
        pytest.param(np.zeros(0, dtype=np.int64), False, id="no videos"),
    ],
)
def test_a_report_of_a_test_side_that_tells_little(tmp_path: Path, labels: npt.NDArray[Any], known: bool) -> None:
    """Few of several labels, none, or no videos: a page without an interval or a winner where none can be."""
    sides = [[judged(tmp_path, name, labels, noise)] for name, noise in (("a", 0.1), ("b", 2.0), ("t_1", 2.0))]
    heads = by_head(read_run(folder) for (folder,) in sides)
    gaps, out = behind(heads), tmp_path / "results"
    assert all(np.isfinite(gap).all() for gap in gaps.values())
    assert sorted(gaps) == (["b", "t_1"] if known else [])
    claim, head = Comparison(claim="b < a", better="a", than="b"), {"kind": "average", "features": ["rgb"]}
    assemble(
        out,
        dataset="made",
        title="T",
        runs=[folder for (folder,) in sides],
        stores=[],
        videos=replace(make_list(tuple("abcd")), multi_label=labels.ndim == 2),
        splits=("1",),
        factors=("letter",),
        plan_info={},
        sweeps={"t": Sweep.model_validate({"title": "T", "head": head, "rows": {"1": {}}, "paper": {"": [50]}})},
        compared=[(claim, "made", *sides[:2])],
    )
    page = (out / "index.html").read_text()
    assert ("comes first of 3 heads" in page, "No head has a score" in page) == (known, not known)
    assert ("not yet" in page, 'class="top"' in page) == (False, known)
    [row] = csv.DictReader((out / "tables" / "comparisons.csv").open(newline=""))
    assert (row["verdict"] != "no interval", row["ahead"] != "") == (known, known)
    drawn = {path.stem for path in (out / "figures").iterdir()}
    assert ("classes" in drawn, "confusion" in drawn, "factors" in drawn) == (known, False, False)


def test_one_split_without_videos_leaves_no_interval(tmp_path: Path) -> None:
    sides = [("1", np.arange(20) % 4), ("2", np.zeros(0, dtype=np.int64))]
    folders = [judged(tmp_path, name, labels, 0.5, split) for name in "ab" for split, labels in sides]
    assert behind(by_head(map(read_run, folders))) == {}


def pair(root: Path, better: float, than: float) -> Pair:
    claim = Comparison(claim="a < b", better="a", than="b", datasets=("here",), remarks={"here": "it is <so>"})
    folders = [make_run(root, name, "1", seed, top1) for name, top1 in (("a", better), ("b", than)) for seed in (0, 1)]
    heads = {head.name: head for head in by_head(map(read_run, folders))}
    return Pair(claim, "here", heads["a"], heads["b"])


@pytest.mark.parametrize(
    ("better", "than", "verdict"), [(0.8, 0.7, "holds"), (0.7, 0.8, "reversed"), (0.7, 0.7, "not told apart")]
)
def test_an_order_holds_where_the_interval_lies_on_its_side(
    tmp_path: Path, better: float, than: float, verdict: str
) -> None:
    found = pair(tmp_path, better, than)
    assert found.verdict == verdict and found.gap is not None
    assert found.gap.mean == pytest.approx(better - than, abs=0.05)
    row = found.row()
    assert (row["better"], row["than"], row["verdict"]) == (better, than, verdict)


def test_the_page_and_a_file_have_the_pairs(tmp_path: Path) -> None:
    """Of this dataset and of another, whose heads are on no leaderboard here."""
    found, out = pair(tmp_path, 0.8, 0.7), tmp_path / "results"
    sides = [[run.folder for run in head.runs] for head in (found.better, found.than)]
    own = make_run(tmp_path, "average", "1", 0, 0.5)
    assemble(
        out,
        dataset="made",
        title="T",
        runs=[own],
        stores=[],
        videos=make_list(),
        splits=("1",),
        factors=(),
        plan_info={},
        compared=[(found.comparison, "here", *sides)],
    )
    page = (out / "index.html").read_text()
    assert "a &lt; b" in page and "it is &lt;so&gt;" in page and "<td>here</td>" in page and "holds" in page
    [row] = csv.DictReader((out / "tables" / "comparisons.csv").open(newline=""))
    assert row["claim"] == "a < b" and float(row["ahead_low"]) > 0
    board = list(csv.DictReader((out / "leaderboard.csv").open(newline="")))
    assert [line["head"] for line in board] == ["average"]
