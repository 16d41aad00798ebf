"""The paired bootstrap of the leaderboard."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from features.errors import DamagedStore
from heads.metrics import multi_label
from pipelines.comparisons import Comparison
from pipelines.report import assemble
from pipelines.report.compare import Pair, behind, drawn_map, interval
from pipelines.report.runs import by_head, read_run
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


def test_heads_of_several_labels_are_compared_by_map(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.random((200, 4)) < 0.4
    folders = []
    for name, noise in (("a", 0.3), ("b", 2.0)):
        folder = make_run(tmp_path, name, "1", 0, 0.5)
        logits = labels + noise * rng.standard_normal(labels.shape)
        np.savez(folder / "predictions.npz", ids=np.array([f"v{n}" for n in range(200)]), logits=logits, labels=labels)
        score = multi_label(logits, labels, list("abcd"))
        (folder / "metrics.json").write_text(json.dumps(json.loads((folder / "metrics.json").read_text()) | score))
        record = json.loads((folder / "run.json").read_text()) | {"multi_label": True}
        (folder / "run.json").write_text(json.dumps(record))
        folders.append((folder, score["map"]))
    heads = by_head(read_run(folder) for folder, _ in folders)
    gap = behind(heads)["b"]
    assert gap.mean == pytest.approx(folders[0][1] - folders[1][1], abs=1e-9) and 0.1 < gap.low < gap.mean < gap.high


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
