"""Denormals are zero while a head computes, and what they were before it and after it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from heads.average import Average
from heads.denormals import flushed
from heads.kinds import AverageConfig
from heads.training import evaluate_run, train_run
from tests.heads.made import CLASSES, problem


def flushes() -> bool:
    return not (torch.full((1 << 17,), 1e-20) * 1e-20).any()


def keeps() -> bool:
    return bool((torch.full((8,), 1e-20) * 1e-20).all())


@pytest.fixture(autouse=True)
def able() -> None:
    able = torch.set_flush_denormal(True)
    torch.set_flush_denormal(False)
    if not able:
        pytest.skip("this processor cannot flush denormals")


def test_inside_they_are_zero_and_outside_as_before() -> None:
    with flushed():
        with flushed():
            assert flushes()
        assert flushes(), "the inner one leaves it to the outer one"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.finfo(np.float32), np.finfo(np.float64)
    assert keeps()
    with pytest.raises(KeyError), flushed():
        raise KeyError
    assert keeps()


def test_a_head_is_trained_and_tested_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, forward = [], Average.forward

    def looked(self: Average, *rows: Any) -> torch.Tensor:
        found.append(flushes())
        return forward(self, *rows)

    monkeypatch.setattr(Average, "forward", looked)
    features, labels = problem()
    common: Any = {"features": features, "labels": labels, "test": range(40, 60), "classes": CLASSES}
    provenance = {"head": "mine", "digest": "d" * 64, "stores": {}, "versions": {}}
    config = AverageConfig(features=("rgb",), train={"epochs": 1})
    train_run(tmp_path, config=config, train=range(40), seed=0, split="1", provenance=provenance, **common)
    trained = len(found)
    evaluate_run(tmp_path, **common)
    assert 0 < trained < len(found) and all(found) and keeps()
