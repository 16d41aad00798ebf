"""TSN end to end: it learns from maps, its CNN comes back as an extractor's weights, and options do as told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import heads
from extract.networks import build
from features.batches import even_rows
from features.errors import UserError
from heads.config import TsnConfig
from heads.training import evaluate_run, train_run
from tests.heads.made import SMALL_CNN, map_problem, rows

CONFIG = TsnConfig(
    features=("pixels",),
    network=SMALL_CNN,
    crop_px=32,
    augment="crop",
    dropout=0.2,
    sample={"train": 2, "test": 4},
    train={"epochs": 15, "batch": 6, "lr": 0.02, "schedule": {"kind": "constant"}},
)


def test_learns_and_its_cnn_becomes_an_extractors(tmp_path: Path) -> None:
    features, labels = map_problem()
    given: dict[str, Any] = {
        "features": features,
        "labels": labels,
        "test": range(18, 24),
        "classes": ["red", "green", "blue"],
    }
    found = train_run(
        tmp_path,
        config=CONFIG,
        train=range(18),
        seed=0,
        split="1",
        provenance={"digest": "d"},
        log=lambda line: None,
        **given,
    )
    assert found["top1"] == 1
    assert evaluate_run(tmp_path, **given) == found
    network = build("resnet10t", options=SMALL_CNN["options"], weights=tmp_path / "network.safetensors")
    assert (network.input.size_px, network.input.crop_ratio) == (32, 1.0)
    pixels, _ = features.batch(torch.arange(18, 24), even_rows(4))
    images = pixels["pixels"].flatten(0, 1).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (network.input.mean, network.input.std))
    with torch.no_grad():
        scores = network((images - mean) / std).unflatten(0, (6, 4)).mean(dim=1)
    with np.load(tmp_path / "predictions.npz") as stored:
        torch.testing.assert_close(scores, torch.from_numpy(stored["logits"]), rtol=1e-4, atol=1e-5)


def make(shape: tuple[int, ...] = (32, 32, 3), **options: Any) -> Any:
    torch.manual_seed(0)
    return heads.build("tsn", {"pixels": shape}, 3, network=SMALL_CNN, **{"crop_px": 32, **options})


def inputs(shape: tuple[int, ...] = (32, 32, 3), videos: int = 3) -> Any:
    return {"pixels": rows(shape, videos, 4)}, {"pixels": torch.ones(videos, 4, dtype=torch.bool)}


def test_partial_bn_freezes_every_batch_norm_but_the_first() -> None:
    head = make(partial_bn=True).train()
    norms = [m for m in head.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert [m.training for m in norms] == [True] + [False] * (len(norms) - 1)
    before = [m.running_mean.clone() for m in norms]
    head(*inputs()).sum().backward()
    assert [not torch.equal(m.running_mean, b) for m, b in zip(norms, before, strict=True)] == [True] + [False] * (
        len(norms) - 1
    )
    assert [m.weight.grad is not None for m in norms] == [True] + [False] * (len(norms) - 1)
    assert not any(m.training for m in head.eval().modules())


def test_padded_rows_stay_out_of_the_batch_norms() -> None:
    features, masks = inputs()
    masks["pixels"][1, 2:] = False
    means = []
    for fill in (0, 255):
        head = make(augment="none", dropout=0).train()
        head({"pixels": features["pixels"].masked_fill(~masks["pixels"][..., None, None, None], fill)}, masks)
        means.append(next(m for m in head.modules() if isinstance(m, torch.nn.BatchNorm2d)).running_mean)
    assert torch.equal(means[0], means[1])


def test_bf16_is_a_named_choice_and_close() -> None:
    exact, rough = make(precision="fp32").eval(), make(precision="bf16").eval()
    a, b = exact(*inputs()), rough(*inputs())
    assert b.dtype == torch.float32
    assert not torch.equal(a, b)
    assert (a - b).norm() < 0.05 * a.norm() + 0.02


def test_augmentation_only_in_training_and_one_crop_a_video() -> None:
    head = make((48, 64, 3), augment="crop_flip", dropout=0)
    boxes = head.train()._boxes(50, torch.device("cpu"))
    assert len(boxes.unique(dim=0)) > 20
    assert head.eval()._boxes(3, torch.device("cpu")).tolist() == [[8, 16, 40, 48]] * 3
    assert len(make((48, 64, 3), augment="none").train()._boxes(5, torch.device("cpu")).unique(dim=0)) == 1


@pytest.mark.parametrize("shape", [(32, 32, 10), (32, 32)])
def test_flow_stacks_and_single_channel_maps(shape: tuple[int, ...]) -> None:
    head = make(shape).eval()
    assert head(*inputs(shape)).shape == (3, 3)
    floats = {"pixels": torch.randn(2, 4, *shape)}
    assert head(floats, {"pixels": torch.ones(2, 4, dtype=torch.bool)}).isfinite().all()


def test_takes_a_built_network_and_keeps_its_normalisation() -> None:
    network = build("resnet10t", options=SMALL_CNN["options"], num_classes=3)
    network.input = replace(network.input, mean=(0.5,) * 3, std=(0.25,) * 3)
    head: Any = heads.build("tsn", {"pixels": (32, 32, 3)}, 3, network=network, crop_px=32).eval()
    assert head.network is network
    features, masks = inputs(videos=1)
    images = (features["pixels"][0].permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    torch.testing.assert_close(head(features, masks)[0], network(images).mean(dim=0), rtol=1e-4, atol=1e-5)


def test_an_unknown_network_is_one_line() -> None:
    with pytest.raises(UserError, match="tsn: unknown network: timm: 'resnet10x'"):
        heads.build("tsn", {"pixels": (32, 32, 3)}, 3, network={"name": "resnet10x"})
