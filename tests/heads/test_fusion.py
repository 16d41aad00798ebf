"""Score fusion of finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.atomic import Lock
from features.errors import Busy, DamagedStore, UserError
from heads.fusion import fuse, fuse_run
from heads.kinds import AverageConfig, FusionConfig
from heads.training import train_run
from tests.heads.made import CLASSES, problem

SCORES = {"a": np.array([[2.0, 0.0, -1.0]]), "b": np.array([[0.0, 3.0, 1.0]])}


def softmax(x: Any) -> Any:
    return np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)


def test_means_by_hand() -> None:
    even = {"a": 1.0, "b": 1.0}
    np.testing.assert_allclose(fuse(SCORES, even, "logits", False), [[1.0, 1.5, 0.0]])
    np.testing.assert_allclose(fuse(SCORES, {"a": 3.0, "b": 1.0}, "logits", False), [[1.5, 0.75, -0.5]])
    mean = (softmax(SCORES["a"]) + softmax(SCORES["b"])) / 2
    np.testing.assert_allclose(softmax(fuse(SCORES, even, "softmax", False)), mean, rtol=1e-6)
    odds = sum(1 / (1 + np.exp(-s)) for s in SCORES.values()) / 2
    np.testing.assert_allclose(1 / (1 + np.exp(-fuse(SCORES, even, "softmax", True))), odds, rtol=1e-6)
    sure = {"a": np.array([[900.0, -900.0]]), "b": np.array([[-900.0, 900.0]])}
    assert (
        np.isfinite(fuse(sure, even, "softmax", False)).all() and np.isfinite(fuse(sure, even, "softmax", True)).all()
    )


def test_what_a_sure_member_leaves_keeps_its_rank_and_its_loss() -> None:
    sure = np.array([[100.0, 0, 3, 20], [90.0, 2, 1, 0]], np.float32)
    even = {"a": 1.0, "b": 1.0}
    logs = sure - np.logaddexp.reduce(sure.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(fuse({"a": sure, "b": sure}, even, "softmax", False), logs, rtol=1e-6)
    np.testing.assert_allclose(fuse({"a": sure, "b": -sure}, even, "softmax", True), np.zeros_like(sure), atol=1e-6)
    for sign in (1, -1):  # of one label by itself
        np.testing.assert_allclose(fuse({"a": sign * sure, "b": sign * sure}, even, "softmax", True), sign * sure)


STORES = {"rgb": {"store": "rgb-0", "digest": "s", "facts": {}}}


def run(folder: Path, seed: int, **options: Any) -> Path:
    features, labels = problem()
    config = AverageConfig.parse({"kind": "average", "features": ["rgb"], "train": {"epochs": 2}}, where="test")
    given = {"train": range(40), "test": range(40, 60), "classes": CLASSES, "split": "1", **options}
    provenance = {"head": "x", "digest": "d", "stores": STORES, "versions": {}}
    train_run(
        folder, config=config, features=features, labels=labels, seed=seed, provenance=provenance, log=str, **given
    )
    return folder


def test_a_fused_run_stands_like_any_other(tmp_path: Path) -> None:
    members = {name: run(tmp_path / name, seed) for seed, name in enumerate("ab")}
    config = FusionConfig.parse({"kind": "fusion", "heads": {"a": 2, "b": 1}}, where="test")
    metrics = fuse_run(
        tmp_path / "both", config=config, members=members, seed=0, split="1", provenance={"head": "both", "digest": "d"}
    )
    kept = {name: np.load(tmp_path / name / "predictions.npz")["logits"] for name in ("a", "b", "both")}
    np.testing.assert_allclose(kept["both"], (2 * kept["a"] + kept["b"]) / 3, rtol=1e-5)
    labels = problem()[1][40:]
    assert metrics["top1"] == (kept["both"].argmax(axis=1) == labels).mean()
    assert metrics["n_train"] == 40
    from pipelines.report.runs import read_run

    record = read_run(tmp_path / "both").record
    assert record["stores"] == STORES and record["members"]["a"] == str(tmp_path / "a")


def test_what_does_not_belong_together_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = FusionConfig.parse({"kind": "fusion", "heads": ["a", "b"]}, where="test")
    given: dict[str, Any] = {"config": config, "seed": 0, "split": "1", "provenance": {}}
    members = {"a": run(tmp_path / "a", 0), "b": run(tmp_path / "b", 0, test=range(41, 60))}
    with pytest.raises(DamagedStore, match="runs of other videos or classes"):
        fuse_run(tmp_path / "both", members=members, **given)
    monkeypatch.setattr("heads.checkpoint.LOCK_WAIT_S", 0)
    (tmp_path / "both").mkdir()
    with Lock(tmp_path / "both" / "run.lock"), pytest.raises(Busy, match=r"run\.lock: got held by process"):
        fuse_run(tmp_path / "both", members={**members, "b": members["a"]}, **given)
    with pytest.raises(DamagedStore, match="no finished run here"):
        fuse_run(tmp_path / "both", members={**members, "b": tmp_path / "nowhere"}, **given)
    (tmp_path / "b" / "predictions.npz").write_bytes(b"")
    with pytest.raises(DamagedStore, match=r"predictions\.npz"):
        fuse_run(tmp_path / "both", members=members, **given)
    for heads in ([], ["a"], ["a", "a"]):
        with pytest.raises(UserError, match="two or more heads"):
            FusionConfig.parse({"kind": "fusion", "heads": heads}, where="test")
