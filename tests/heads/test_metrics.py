"""Metrics against hand-made cases and scikit-learn: ties, one class, nothing to test."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, confusion_matrix, log_loss, recall_score, top_k_accuracy_score

from features.errors import UserError
from heads.metrics import (
    average_precision,
    confusion,
    global_average_precision,
    multi_label,
    precision_at_equal_recall,
    ranks,
    single_label,
)
from heads.results import Predictions, write_predictions

GENERATOR = np.random.default_rng(0)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_against_scikit_learn() -> None:
    logits = GENERATOR.standard_normal((200, 9)).astype(np.float32)
    labels = GENERATOR.integers(0, 9, 200)
    names = [str(k) for k in range(9)]
    found = single_label(logits, labels, names)
    predicted = logits.argmax(axis=1)
    assert found["top1"] == pytest.approx((predicted == labels).mean())
    assert found["top5"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=range(9)))
    assert found["mean_class"] == pytest.approx(recall_score(labels, predicted, average="macro"))
    assert found["loss"] == pytest.approx(log_loss(labels, softmax(logits.astype(np.float64)), labels=range(9)))
    assert confusion(logits, labels).tolist() == confusion_matrix(labels, predicted, labels=range(9)).tolist()
    assert found["per_class"]["3"] == pytest.approx((predicted[labels == 3] == 3).mean())


def test_ties_go_to_the_first_class() -> None:
    logits = np.zeros((3, 4), dtype=np.float32)
    assert ranks(logits, np.array([0, 1, 3])).tolist() == [0, 1, 3]
    assert single_label(logits, np.array([0, 1, 3]), list("abcd"))["top1"] == pytest.approx(1 / 3)


def test_a_class_without_videos_and_no_videos_at_all() -> None:
    found = single_label(np.eye(3, dtype=np.float32)[:2], np.array([0, 1]), ["a", "b", "c"])
    assert found["per_class"] == {"a": 1.0, "b": 1.0, "c": None}
    assert found["mean_class"] == 1.0
    nothing = single_label(np.zeros((0, 3), np.float32), np.zeros(0, np.int64), ["a", "b", "c"], ())
    assert nothing["top1"] is nothing["top5"] is nothing["mean_class"] is nothing["loss"] is None
    assert nothing["n_test"] == 0
    json.dumps([found, nothing], allow_nan=False)


def test_one_class() -> None:
    found = single_label(np.ones((4, 1), np.float32), np.zeros(4, np.int64), ["only"])
    assert (found["top1"], found["loss"]) == (1.0, 0.0)


def test_large_logits_do_not_overflow() -> None:
    assert single_label(np.array([[1e4, 0]], np.float32), np.array([1]), ["a", "b"])["loss"] == pytest.approx(1e4)
    assert multi_label(np.array([[1e4, -1e4]], np.float32), np.array([[1, 0]]), ["a", "b"])["loss"] == 0


def test_factors() -> None:
    classes = ["3-left-low", "3-right-low", "7-left-high"]
    logits = np.eye(3, dtype=np.float32)[[1, 1, 2]]
    found = single_label(logits, np.array([0, 1, 1]), classes, ("digit", "motion", "sound"))["factors"]
    assert found == {"digit": pytest.approx(2 / 3), "motion": pytest.approx(1 / 3), "sound": pytest.approx(2 / 3)}
    with pytest.raises(UserError, match="class name does not fit the factors: jump: expected <digit>-<motion>"):
        single_label(logits[:, :1], np.array([0, 0, 0]), ["jump"], ("digit", "motion"))


def test_average_precision_by_hand() -> None:
    scores, positive = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False])
    assert average_precision(scores, positive) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(scores, np.zeros(4, bool)) is None
    assert average_precision(np.zeros(4), positive) == pytest.approx(0.5)  # one tie of all: the share of positives


def test_multi_label_against_scikit_learn() -> None:
    logits = np.round(GENERATOR.standard_normal((120, 6)), 1).astype(np.float32)  # rounded: many ties
    labels = GENERATOR.random((120, 6)) < [0.3, 0.1, 0.5, 0.02, 0.9, 0]
    found = multi_label(logits, labels, list("abcdef"))
    expected = [average_precision_score(labels[:, k], logits[:, k]) for k in range(5) if labels[:, k].any()]
    assert found["map"] == pytest.approx(np.mean(expected))
    assert found["per_class"]["f"] is None
    last = np.where(labels.any(axis=1, keepdims=True), logits, -1e9)
    expected = [average_precision_score(labels[:, k], last[:, k]) for k in range(5) if labels[:, k].any()]
    assert found["map_unlabelled_last"] == pytest.approx(np.mean(expected))
    assert found["loss"] == pytest.approx(log_loss(labels.ravel(), 1 / (1 + np.exp(-logits.astype(float).ravel()))))


def test_gap_and_hit1_of_youtube_8m() -> None:
    """Three videos, two classes each in the list: scores 9 (right), 8 (wrong), 7 (right), 6 (right), 5, 4 (wrong); one
    label of five is not in it, and one stands below a worse class."""
    logits = np.array([[9, 5, -1], [8, 6, -2], [-3, 4, 7]], np.float32)
    labels = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 1]], bool)
    assert global_average_precision(logits, labels, top=2) == pytest.approx((1 + 2 / 3 + 3 / 4) / 4)
    assert global_average_precision(logits, np.zeros((3, 3), bool)) is None
    tied, first = np.array([[1, 0], [1, 0]], np.float32), np.array([[1, 0], [0, 0]], bool)
    assert global_average_precision(tied, first) == global_average_precision(tied, first[::-1]) == 0.5
    found = multi_label(logits, labels, list("abc"))
    assert found["hit1"] == pytest.approx(2 / 3)
    assert found["gap"] == pytest.approx(global_average_precision(logits, labels))
    unlabelled = multi_label(logits, labels & np.array([[True], [False], [True]]), list("abc"))
    assert unlabelled["hit1"] == 1, "videos without a label have no hit to make"


def test_precision_at_equal_recall_by_hand() -> None:
    logits = np.array([[4, 3, 2, 1], [1, 2, 3, 4], [1, 1, 1, 0], [9, 0, 0, 0]], dtype=np.float32)
    labels = np.array([[1, 0, 1, 0], [0, 0, 0, 1], [0, 1, 1, 0], [0, 0, 0, 0]], dtype=bool)
    # 1 of the 2 best; 1 of 1; of three equal ones the first two, 1 of 2; a video without labels does not count
    assert precision_at_equal_recall(logits, labels) == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert precision_at_equal_recall(logits[3:], labels[3:]) is None
    assert multi_label(logits, labels, list("abcd"))["perr"] == pytest.approx(2 / 3)


@pytest.mark.filterwarnings("error")
def test_probabilities_of_large_logits(tmp_path: Path) -> None:
    logits, labels = np.array([[-2000, -1000]], np.float32), np.array([[False, True]])
    write_predictions(tmp_path, Predictions(["v"], labels, logits), ["a", "b"])
    assert (tmp_path / "predictions.csv").read_text().splitlines()[1] == "v,b,b,0.000000,b|a"
    write_predictions(tmp_path, Predictions(["v"], labels, -logits), ["a", "b"])
    assert (tmp_path / "predictions.csv").read_text().splitlines()[1] == "v,b,a,1.000000,a|b"
