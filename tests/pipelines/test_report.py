"""The results folder from made-up runs and stores: numbers, figures, and names that try to be something else."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from features.errors import DamagedStore, FramepoolError
from features.manifest import Manifest
from features.outcome import Outcome
from features.videolist import Video, VideoList
from heads.results import read_predictions
from pipelines.report import assemble, figures
from pipelines.report.page import cell
from pipelines.report.runs import by_head, read_run

CLASSES = tuple(f"{d}-{m}-{s}" for d in "037" for m in ("left", "up") for s in ("low", "high"))
FACTORS = ("digit", "motion", "sound")
NASTY = "<script>alert(1)</script>{{ 7*7 }}\x1b[31m\n$\\frac{1}{$&\"'"


def make_run(
    root: Path, head: str, split: str, seed: int, top1: float, classes: Sequence[str] = CLASSES, epochs: int = 12
) -> Path:
    folder = root / "runs" / f"{head}-split{split}-0123abcd" / f"seed{seed}"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    record = {
        "head": head, "kind": head, "split": split, "seed": seed, "digest": "d" * 64, "classes": list(classes),
        "factors": list(FACTORS),
        "multi_label": False, "parameters": 123456, "seconds": 7.25, "epochs": epochs, "versions": {"torch": "2"},
        "stores": {"rgb": {"store": "rgb-0123abcd", "digest": "0" * 64, "facts": {}}},
    }  # fmt: skip
    metrics = {
        "top1": top1, "top5": 0.9, "mean_class": top1 - 0.01, "loss": 1.5, "n_train": 54, "n_test": 27,
        "per_class": {name: k / len(classes) if k else None for k, name in enumerate(classes)},
        "factors": dict.fromkeys(FACTORS, 0.5) | {"digit": 0.99},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    labels = np.arange(200) % len(classes)
    right = np.random.default_rng(7).random(200) < top1  # a better head has what a worse one has, and more
    logits = np.eye(len(classes))[np.where(right, labels, (labels + 1) % len(classes))]
    np.savez(folder / "predictions.npz", ids=[f"v{k}" for k in range(200)], labels=labels, logits=logits)
    if epochs:
        lines = [
            f"{e},0.001,{2 / e},{1 - 1 / e},{2.4 / e + 0.1 * rng.random()},{top1 * (1 - 1 / e)}"
            for e in range(1, epochs + 1)
        ]
        (folder / "history.csv").write_text(
            "\n".join(["epoch,lr,train_loss,train_top1,test_loss,test_top1", *lines, ""])
        )
    return folder


def make_store(root: Path, name: str, outcomes: dict[str, Outcome], error: float = 1e-3) -> Path:
    folder = root / "features" / name
    folder.mkdir(parents=True)
    for shard, ids in enumerate(np.array_split(np.array(list(outcomes), dtype=object), 2)):
        manifest = Manifest(
            extractor="rgb", digest="ab" * 32, recipe={"kind": "rgb", "sampling": {"kind": "uniform", "n": 25}},
            facts={"weights_sha256": "cd" * 32, "transform": {"size_px": 64}}, shard=shard, list_digest="ef" * 32,
            ids=tuple(ids), outcomes=tuple(outcomes[i] for i in ids), row_shape=(1280,), dtype="float16",
            statistics={"precision_relative_error": error * (shard + 1)}, files={"frames/c/0": (1_500_000, "ab" * 32)},
        )  # fmt: skip
        (folder / f"{shard:05d}.json").write_text(json.dumps(manifest.to_json()))
    return folder


def make_list(classes: Sequence[str] = CLASSES, names: Sequence[str] = ()) -> VideoList:
    ids = names or [f"{name}/clip{n}" for name in classes for n in range(3)]
    splits = ("train", "train", "test")
    videos = tuple(
        Video(i, f"{i}.mp4", (n * len(classes) // len(ids),), (splits[n % 3], splits[(n + 1) % 3]), str(n))
        for n, i in enumerate(ids)
    )
    return VideoList(videos=videos, classes=tuple(classes), splits=("1", "2"), multi_label=False)


def example(root: Path, **changes: Any) -> Path:
    scores = {
        ("attention_cluster", "1"): (0.8, 0.9),
        ("attention_cluster", "2"): (0.6, 0.7),
        ("average", "1"): (0.5, 0.5),
        ("average", "2"): (0.4, 0.4),
    }
    runs = [make_run(root, h, k, s, top1) for (h, k), both in scores.items() for s, top1 in enumerate(both)]
    runs += [make_run(root, "linear", k, 0, 0.3, epochs=0) for k in "12"]
    videos = make_list()
    outcomes = {v.id: Outcome(outcome="ok", rows=25) for v in videos.videos}
    outcomes[videos.videos[3].id] = Outcome(
        outcome="partial", reason="57 of 100 frames decoded", rows=25, decoded=57, promised=100
    )
    outcomes[videos.videos[9].id] = Outcome(outcome="undecodable", reason="moov atom not found")
    wanted = {
        "dataset": "made", "title": "A made-up dataset", "runs": runs, "videos": videos,
        "stores": [make_store(root, "rgb-0123abcd", outcomes)], "splits": ("1", "2"), "factors": FACTORS,
        "plan_info": {"command": "snakemake --cores 2 results/made", "versions": {"python": "3.11", "torch": "2.14"}},
    }  # fmt: skip
    assemble(root / "out", **(wanted | changes))
    return root / "out"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of `example`, only read."""
    return example(tmp_path_factory.mktemp("report"))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


class Page(HTMLParser):
    """Tags, attributes and text of a page; text of SVG too."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_leaderboard_is_the_mean_over_splits_of_the_mean_over_seeds(out: Path) -> None:
    board = rows_of(out / "leaderboard.csv")
    assert [row["head"] for row in board] == ["attention_cluster", "average", "linear"]
    best = board[0]
    assert float(best["top1"]) == pytest.approx(0.75)
    assert (float(best["top1_split_1"]), float(best["top1_split_2"])) == pytest.approx((0.85, 0.65))
    assert float(best["top1_std_over_seeds"]) == pytest.approx(np.std([0.7, 0.8], ddof=1), rel=1e-5)
    assert best["top1_of_each_seed"] == "0.7 0.8"
    assert (best["digit"], best["sound"], best["parameters"], best["features"]) == ("0.99", "0.5", "123456", "rgb")
    assert board[2]["top1_std_over_seeds"] == "", "a single seed has no deviation"


def test_every_seed_is_printed(out: Path) -> None:
    seeds = rows_of(out / "seeds.csv")
    assert len(seeds) == 10
    found = {(row["head"], row["split"], row["seed"]): float(row["top1"]) for row in seeds}
    assert found["attention_cluster", "2", "1"] == 0.7
    text = Page((out / "index.html").read_text()).text
    assert all(score in text for score in ("80.00", "90.00", "60.00", "70.00"))


def test_results_folder(out: Path) -> None:
    assert {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()} == {
        "index.html", "leaderboard.csv", "seeds.csv", "outcomes.csv", "metrics.json", "run.json",
        "figures/confusion.svg", "figures/classes.svg", "figures/factors.svg",
        "figures/learning-attention_cluster.svg", "figures/learning-average.svg",
    }  # fmt: skip
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["ranked_by"] == "top1"
    assert len(metrics["heads"][0]["runs"]) == 4
    run = json.loads((out / "run.json").read_text())
    assert run["plan"]["versions"]["torch"] == "2.14"
    assert (run["stores"][0]["rows"], run["stores"][0]["outcomes"]) == (
        35 * 25,
        {"ok": 34, "partial": 1, "undecodable": 1},
    )
    assert run["training_seconds"] == 72.5
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", run["assembled"])


def test_page_names_every_video_that_is_not_ok_with_its_reason(out: Path) -> None:
    text = Page((out / "index.html").read_text()).text
    for part in (
        "34 ok, 1 partial, 1 undecodable",
        "57 of 100 frames decoded",
        "moov atom not found",
        "0.001 to 0.002",
        "ab" * 32,
    ):
        assert part in text, part
    assert [row["outcome"] for row in rows_of(out / "outcomes.csv")] == ["partial", "undecodable"]


def test_page_without_stores_says_nothing_of_their_videos(tmp_path: Path) -> None:
    text = (example(tmp_path, stores=[]) / "index.html").read_text()
    for part in ("Every video of every store", "Not ok", "<h2>Videos", "<h2>Feature stores"):
        assert part not in text


def test_a_name_outside_of_the_font_draws_no_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    classes = ["走る", "跳ぶ"]
    head = by_head([read_run(make_run(tmp_path, "average", "1", 0, 0.5, classes), ())])[0]
    assert "走る" in (figures.confusion(head) or "") and not [w for w in recwarn if "Glyph" in str(w.message)]


def test_page_asks_nothing_of_any_network(out: Path) -> None:
    text = (out / "index.html").read_text()
    page = Page(text)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    links = [
        value
        for _, attrs in page.tags
        for key, value in attrs.items()
        if key in ("src", "href", "xlink:href", "srcset")
    ]
    assert [link for link in links if not str(link).startswith(("#", "data:image/png;base64,"))] == []
    assert "@import" not in text
    assert [url for url in re.findall(r"url\((.*?)\)", text) if not url.startswith("#")] == []
    assert "default-src 'none'" in text


def test_names_that_would_be_something_else(tmp_path: Path) -> None:
    """F47, F48: markup, templates, formulas, terminal escapes and mathematics in names of videos and classes."""
    classes = (NASTY, "=cmd()|'/c calc'!A1", "@sum", "plain")
    videos = make_list(classes, [f"{NASTY}/{k}" for k in range(8)])
    outcomes = {v.id: Outcome(outcome="undecodable", reason=f"=1+1 {NASTY}") for v in videos.videos}
    outcomes["=HYPERLINK(1)"] = Outcome(outcome="timeout", reason="-2+3")
    out = example(
        tmp_path,
        title=NASTY,
        videos=videos,
        factors=(),
        runs=[make_run(tmp_path, "nasty", "1", 0, 0.5, classes)],
        stores=[make_store(tmp_path, "odd-0123abcd", outcomes)],
        splits=("1",),
    )
    files = [p for p in out.rglob("*") if p.is_file() and p.suffix != ".json"]
    for path in files:
        text = path.read_text()
        assert not [c for c in text if not c.isprintable() and c != "\n"], path.name
        if path.suffix != ".csv":
            assert "<script" not in text.lower(), path.name
    assert "<script>alert(1)</script>{{ 7*7 }}\\x1b[31m\\n$\\frac" in Page((out / "index.html").read_text()).text
    for row in rows_of(out / "outcomes.csv"):
        assert not [value for value in row.values() if value.startswith(("=", "+", "-", "@"))]
    assert rows_of(out / "outcomes.csv")[-1]["video"] == "'=HYPERLINK(1)"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((text, f"'{text}") for text in ("=1", "+1", "-x", "@a")),
        ("\tx", "'\\tx"), ("a\nb", "a\\nb"), (-0.5, "-0.5"), (3, 3), (None, ""),
    ],
)  # fmt: skip
def test_cell(value: Any, expected: Any) -> None:
    assert cell(value) == expected


def test_figures_are_whole_and_take_the_ink_of_the_page(out: Path) -> None:
    for path in (out / "figures").glob("*.svg"):
        text = path.read_text()
        ElementTree.fromstring(text)
        assert "currentColor" in text
        assert figures.INK not in text
        assert "#000000" not in text.lower(), f"{path.name} has black that a dark page hides"


def test_same_numbers_same_figures(out: Path, tmp_path: Path) -> None:
    again = example(tmp_path)
    for path in (out / "figures").glob("*.svg"):
        assert path.read_bytes() == (again / "figures" / path.name).read_bytes()


def test_many_classes_stay_readable(tmp_path: Path) -> None:
    classes = [f"class {k:03d} with a rather long name of its own" for k in range(400)]
    (head,) = by_head([read_run(make_run(tmp_path, "wide", "1", 0, 0.5, classes))])
    bars = figures.per_class(head)
    assert bars is not None
    assert "359 classes between" in bars
    matrix = figures.confusion(head)
    assert matrix is not None
    assert len(matrix) < 600_000
    assert "class 000" not in matrix


def test_several_labels(tmp_path: Path) -> None:
    """Average precision ranks, and there is no confusion matrix."""
    folder = make_run(tmp_path, "multi", "1", 0, 0.5, epochs=0)
    per_class = dict.fromkeys(CLASSES, 0.25)
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"multi_label": True}))
    (folder / "metrics.json").write_text(
        json.dumps(
            {"map": 0.25, "map_unlabelled_last": 0.24, "loss": 0.3, "n_test": 5, "n_train": 7, "per_class": per_class}
        )
    )
    videos = make_list()
    videos = VideoList(videos=videos.videos, classes=videos.classes, splits=videos.splits, multi_label=True)
    out = example(tmp_path, videos=videos, runs=[folder], factors=(), splits=("1",))
    assert rows_of(out / "leaderboard.csv")[0]["map"] == "0.25"
    assert sorted(p.stem for p in (out / "figures").glob("*")) == ["classes"]
    page = (out / "index.html").read_text()
    assert "mAP on the test videos" in page and "without any row" not in page


def test_test_videos_without_rows_are_told_of(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "one", "1", 0, 0.5)
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps({**metrics, "n_test_without_rows": 5}))
    page = (example(tmp_path, runs=[folder], splits=("1",)) / "index.html").read_text()
    assert "what a head says of nothing: up to 5 of 27 (one)." in page and "Top-1 on the test videos" in page


def test_factors_that_were_named_since_are_counted_from_the_scores(tmp_path: Path) -> None:
    folder, renamed = make_run(tmp_path, "average", "1", 0, 0.6), ("number", "way", "noise")
    assert read_run(folder, FACTORS).value("factors.digit") == 0.99  # as the training measured it
    found = read_predictions(folder)
    parts = np.array([name.split("-") for name in CLASSES])
    right = (parts[found.logits.argmax(axis=1)] == parts[found.labels]).mean(axis=0)
    assert [read_run(folder, renamed).value(f"factors.{name}") for name in renamed] == pytest.approx(right)


def test_without_heads(tmp_path: Path) -> None:
    out = example(tmp_path, runs=[])
    assert "No head was trained." in (out / "index.html").read_text()
    assert rows_of(out / "leaderboard.csv") == []


def test_unfinished_run_is_refused(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "average", "1", 0, 0.5)
    (folder / "metrics.json").unlink()
    with pytest.raises(DamagedStore, match=r"^run is not complete: .*metrics\.json: got .*; run `framepool train`"):
        read_run(folder)


def test_empty_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(FramepoolError, match=r"^store is empty: "):
        example(tmp_path, stores=[tmp_path / "nothing"])


def test_old_figures_go(tmp_path: Path) -> None:
    out = example(tmp_path)
    (out / "figures" / "learning-removed_head.svg").write_text("old")
    (out / "notes.txt").write_text("mine")
    assemble(
        out, dataset="made", title="T", runs=[], stores=[], videos=make_list(), splits=("1",), factors=(), plan_info={}
    )
    assert list((out / "figures").iterdir()) == []
    assert (out / "notes.txt").read_text() == "mine"
