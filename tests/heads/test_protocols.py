"""Options that are there for a paper's protocol or for speed: the peak of the test, bf16 steps, codes, unused nulls."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from extract.networks.bf16 import has_bf16
from features.errors import UserError
from heads.checkpoint import load_head
from heads.kinds import AttentionClusterConfig, AverageConfig, NoisyOrConfig
from heads.results import in_short, measure, read_predictions
from tests.heads.made import CLASSES, problem
from tests.heads.test_training import bytes_of, go


def history(folder: Path) -> list[dict[str, str]]:
    names, *lines = (folder / "history.csv").read_text().splitlines()
    return [dict(zip(names.split(","), line.split(","), strict=True)) for line in lines]


def test_training_stops_once_the_test_has_peaked(tmp_path: Path) -> None:
    train = {"epochs": 60, "stop_at_peak": 3, "lr": 1e-2}
    go(tmp_path, AverageConfig(features=("rgb",), train=train))  # type: ignore[arg-type]
    scores = [float(row["test_top1"]) for row in history(tmp_path)]
    assert 4 <= len(scores) < 60
    assert scores.index(max(scores)) == len(scores) - 4
    assert json.loads((tmp_path / "metrics.json").read_text())["top1"] == pytest.approx(scores[-1])


def test_steps_in_bf16_learn_the_same_and_keep_exact_weights(tmp_path: Path) -> None:
    scores, weights = {}, {}
    for precision in ("fp32", "bf16"):
        train = {"epochs": 8, "precision": precision, "optimizer": "adam", "lr": 1e-2, "batch": 16}
        config = AttentionClusterConfig(features=("rgb",), clusters=4, dropout=0.2, train=train)  # type: ignore[arg-type]
        scores[precision] = go(tmp_path / precision, config)["top1"]
        weights[precision] = load_head(tmp_path / precision)[0].state_dict()
    assert scores["bf16"] == pytest.approx(scores["fp32"], abs=0.1) and scores["bf16"] > 0.7
    for name, exact in weights["fp32"].items():
        assert exact.dtype == weights["bf16"][name].dtype
    rounded = any(not exact.equal(weights["bf16"][name]) for name, exact in weights["fp32"].items())
    assert rounded == has_bf16(torch.device("cpu"))


def test_a_processor_without_bf16_takes_fp32_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("extract.networks.bf16", "heads.loop"):
        monkeypatch.setattr(f"{module}.has_bf16", lambda device: False)
    said: dict[str, list[str]] = {"fp32": [], "bf16": []}
    for precision, lines in said.items():
        train = {"epochs": 2, "precision": precision}
        go(tmp_path / precision, AverageConfig(features=("rgb",), train=train), log=lines.append)  # type: ignore[arg-type]
    assert bytes_of(tmp_path / "bf16") == bytes_of(tmp_path / "fp32")
    assert [line for line in said["bf16"] if "steps are in fp32: bf16 is slower" in line]
    assert not [line for line in said["fp32"] if "bf16" in line]
    records = {precision: json.loads((tmp_path / precision / "run.json").read_text()) for precision in said}
    assert records["bf16"]["steps"] == "fp32" and "steps" not in records["fp32"]


def test_steps_of_two_precisions_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed where the processor has bf16, and begun again where it has not."""
    config = AverageConfig(features=("rgb",), train={"epochs": 2, "precision": "bf16"})  # type: ignore[arg-type]
    lines: list[str] = []

    def stop(line: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("heads.loop.has_bf16", lambda device: True)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, config, log=stop)
    monkeypatch.setattr("heads.loop.has_bf16", lambda device: False)
    go(tmp_path, config, log=lines.append)
    assert lines[1].endswith("last.pt: steps 'bf16', not 'fp32'") and lines[2].startswith("epoch 1/2")


def test_bf16_on_a_cpu_takes_avx_512() -> None:
    if platform.machine() != "x86_64":
        pytest.skip("other processors have other names for it")
    assert has_bf16(torch.device("cpu")) == ("AVX512" in torch.backends.cpu.get_cpu_capability())


def test_a_head_with_codes_is_trained_saved_and_loaded(tmp_path: Path) -> None:
    features, _ = problem()
    classes = ("none", "a", "b", "a+b")
    config = NoisyOrConfig(features=("rgb",), hidden=16, codes="+", train={"epochs": 25, "lr": 2e-2})  # type: ignore[arg-type]
    found = go(tmp_path, config, classes=classes)
    assert found["top1"] > 0.6
    head, run = load_head(tmp_path, classes=classes)
    assert head.num_classes == 2 and run["config"]["codes"] == "+"
    assert len(read_predictions(tmp_path).logits[0]) == 4
    labels = np.zeros((len(features.ids), 4), np.int64)
    with pytest.raises(UserError, match="codes are for classes of which a video has one: head noisy_or"):
        go(tmp_path / "several", config, data=(features, labels), classes=classes)


def test_unused_options_are_no_part_of_a_recipe() -> None:
    plain = AverageConfig(features=("rgb",)).recipe()
    assert not {"codes", "align"} & plain.keys() and "clip" not in plain["train"]
    cluster = AttentionClusterConfig(features=("rgb",), train={"clip": None})  # type: ignore[arg-type]
    assert cluster.recipe()["train"]["clip"] is None, "null is no default there"
    for config in (AverageConfig(features=("rgb",)), cluster):
        assert type(config).model_validate(config.recipe()) == config


@pytest.mark.parametrize("several", [False, True])
def test_the_test_between_epochs_says_what_the_last_says(several: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels: Any = rng.integers(0, 4, 20) if not several else rng.random((20, 4)) < 0.4
    from heads.results import Predictions

    predictions = Predictions([str(k) for k in range(20)], labels, rng.standard_normal((20, 4)).astype(np.float32))
    whole, short = measure(predictions, CLASSES), in_short(predictions)
    assert short == {key: whole[key] for key in short} and len(short) == 2
