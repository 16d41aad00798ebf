"""The paired bootstrap of the leaderboard."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from features.errors import DamagedStore
from pipelines.report.compare import behind, interval
from pipelines.report.runs import by_head, read_run
from tests.pipelines.test_report import make_run


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
