"""TSN end to end: it learns from maps, its CNN comes back as an extractor's weights, and options do as told."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import heads
from extract.networks import build, save_network
from features.batches import Features, even_rows
from features.errors import UserError
from heads.checkpoint import load_head
from heads.kinds import NetworkConfig, TsnConfig, TsnTrain
from heads.loop import seeded
from heads.training import evaluate_run, train_run
from tests.heads.made import SMALL_CNN, map_problem, rows
from tests.heads.test_training import go

CONFIG = TsnConfig(
    features=("pixels",),
    network=SMALL_CNN,
    crop_px=32,
    augment="crop",
    dropout=0.2,
    sample={"train": 2, "test": 4},
    train={"epochs": 15, "batch": 6, "lr": 0.02, "schedule": {"kind": "constant"}},
)


@pytest.mark.parametrize("asked", [None, "bicubic"])
def test_its_cnn_wants_pictures_made_as_those_that_it_saw(tmp_path: Path, asked: str | None) -> None:
    features, labels = map_problem()
    transform = {"resize": 40, "crop": 40, **({"interpolation": asked} if asked else {})}
    stores = {"pixels": {"store": "p", "digest": "p", "facts": {"transform": transform}}}
    config = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"epochs": 1})})
    go(
        tmp_path,
        config,
        data=(replace(features, stores=stores), labels),
        train=range(18),
        test=range(18, 24),
        classes=list("rgb"),
    )
    network = build("resnet10t", options=SMALL_CNN["options"], weights=tmp_path / "network.safetensors")
    assert network.input.interpolation == (asked or "bilinear")


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


def test_augmentation_only_in_training_and_one_crop_a_video() -> None:
    head = make((48, 64, 3), augment="crop_flip", dropout=0)
    boxes = head.train()._boxes(50, torch.device("cpu"))
    assert len(boxes.unique(dim=0)) > 20
    assert head.eval()._boxes(3, torch.device("cpu")).tolist() == [[8, 16, 40, 48]] * 3
    assert len(make((48, 64, 3), augment="none").train()._boxes(5, torch.device("cpu")).unique(dim=0)) == 1


@pytest.mark.parametrize(
    ("shape", "reads", "channels"),
    [
        ((32, 32, 10), "flow", 10),
        ((4, 32, 32, 3), "rgbdiff", 9),
        ((96, 64), "logmel", 1),
        ((32, 32, 1), "rgb", 3),
    ],
)
def test_stores_of_other_maps(shape: tuple[int, ...], reads: str, channels: int) -> None:
    """Against the network on what the rows stand for."""
    augment = {"augment": "none"} if reads == "logmel" else {"crop_px": 32}
    network = {**SMALL_CNN, "reads": reads}
    head: Any = heads.build("tsn", {"maps": shape}, 3, network=network, dropout=0, **augment).eval()
    assert head.network.trunk.conv1[0].weight.shape[1] == channels
    rows = torch.randint(0, 256, (2, 4, *shape), dtype=torch.uint8)
    maps = rows.float().flatten(0, 1)
    std = torch.tensor(head.network.input.std)
    if reads == "flow":
        images = ((maps - 128) / 255 / std.mean()).permute(0, 3, 1, 2)
    elif reads == "rgbdiff":
        images = ((maps[:, 1:] - maps[:, :-1]) / 255 / std).permute(0, 1, 4, 2, 3).flatten(1, 2)
    elif reads == "rgb":
        mean = torch.tensor(head.network.input.mean)
        images = ((maps / 255 - mean) / std).permute(0, 3, 1, 2)
    else:
        images = maps[:, None]
    scores = head.network(images).unflatten(0, (2, 4)).mean(dim=1)
    given = rows.float() if reads == "logmel" else rows
    mask = {"maps": torch.ones(2, 4, dtype=torch.bool)}
    torch.testing.assert_close(head({"maps": given}, mask), scores, rtol=1e-4, atol=1e-5)
    assert head.train()({"maps": given}, mask).isfinite().all()


def test_a_mirror_turns_flow_around() -> None:
    """A mirrored crop of flow to the right is the crop of flow to the left, seen in a mirror."""
    head: Any = heads.build("tsn", {"maps": (32, 32, 4)}, 3, network={**SMALL_CNN, "reads": "flow"}, crop_px=32).train()
    maps = torch.randint(0, 256, (2, 32, 32, 4), dtype=torch.uint8)
    straight, mirrored = torch.tensor([[0.0, 0, 32, 32]] * 2), torch.tensor([[0.0, 32, 32, 0]] * 2)
    expected = maps.flip(2).float()
    expected[..., 0::2] = 255 - expected[..., 0::2]
    torch.testing.assert_close(head._cropped(maps, mirrored), expected)
    torch.testing.assert_close(head._cropped(maps, straight), maps.float())


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        (
            (32, 32),
            {},
            "network.reads: rgb: expected (H,W,3), (T,H,W,3) or grey (H,W,1), got (32, 32); set network",
        ),
        ((32, 32, 10), {}, "network.reads: rgb: expected (H,W,3), (T,H,W,3) or grey (H,W,1), got (32, 32, 10)"),
        ((32, 32, 5), {"reads": "flow"}, "network.reads: flow: expected (H,W,2l), got (32, 32, 5)"),
        ((32, 32, 3), {"reads": "rgbdiff"}, "network.reads: rgbdiff: expected (l+1,H,W,3), got (32, 32, 3)"),
        ((4, 32, 32, 3), {}, "rows do not fit the network: resnet10t: expected (H,W,3), got (4, 32, 32, 3); choose a"),
        ((96, 64), {"reads": "logmel"}, "augment: none and no crop_px with network.reads: logmel"),
    ],
)
def test_rows_of_another_kind(shape: tuple[int, ...], options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        heads.build("tsn", {"maps": shape}, 3, network={**SMALL_CNN, **options})


def test_clips_that_a_network_of_clips_cannot_take() -> None:
    network = {"name": "c3d", "library": "framepool"}
    with pytest.raises(UserError, match=r"tsn: C3d cannot take an input of 3x16x64x64: .*; set crop_px"):
        heads.build("tsn", {"clips": (16, 64, 64, 3)}, 3, network=network, crop_px=64)
    network = {"name": "i3d", "library": "framepool", "reads": "rgbdiff"}
    with pytest.raises(UserError, match=r"rows do not fit the network: i3d: expected \(T,H,W,3\), got"):
        heads.build("tsn", {"clips": (16, 64, 64, 3)}, 3, network=network, crop_px=64)


def test_a_crop_that_a_transformer_cannot_take() -> None:
    network = {"name": "vit_tiny_patch16_224", "library": "timm"}
    with pytest.raises(UserError, match=r"tsn: VisionTransformer cannot take an input of 3x32x32: .*; set crop_px"):
        heads.build("tsn", {"frames": (64, 64, 3)}, 3, network=network, crop_px=32)


def test_patches_of_sound_have_one_size() -> None:
    network = {**SMALL_CNN, "reads": "logmel"}
    with pytest.raises(UserError, match=re.escape("network.reads: logmel: expected (96,64), got (96, 40)")):
        heads.build("tsn", {"maps": (96, 40)}, 3, network=network, augment="none")


def test_our_own_audio_networks() -> None:
    network = {"name": "yamnet", "library": "framepool", "reads": "logmel"}
    head: Any = heads.build("tsn", {"logmel": (96, 64)}, 3, network=network, augment="none").eval()
    patches = torch.randn(1, 2, 96, 64)
    scores = head({"logmel": patches}, {"logmel": torch.ones(1, 2, dtype=torch.bool)})
    torch.testing.assert_close(scores[0], head.network(patches[0, :, None]).mean(dim=0), rtol=1e-4, atol=1e-5)


def test_clips_for_a_network_of_clips() -> None:
    """Cropped alike in all frames."""
    network = {"name": "r3d_18", "library": "torchvision"}
    head: Any = heads.build("tsn", {"clips": (4, 24, 28, 3)}, 3, network=network, crop_px=24).eval()
    clips, mask = rows((4, 24, 28, 3), 1, 2), {"clips": torch.ones(1, 2, dtype=torch.bool)}
    mean, std = (torch.tensor(v) for v in (head.network.input.mean, head.network.input.std))
    images = ((clips[0, :, :, :, 2:26] / 255 - mean) / std).permute(0, 4, 1, 2, 3)
    torch.testing.assert_close(head({"clips": clips}, mask)[0], head.network(images).mean(dim=0), rtol=1e-3, atol=1e-4)
    still = clips[:, :, :1].expand_as(clips).flatten(0, 1)
    cropped = head.train()._cropped(still, head._boxes(1, still.device).expand(2, 4))
    assert torch.equal(cropped, cropped[:, :1].expand_as(cropped))


@pytest.mark.parametrize(("reads", "smallest"), [("rgb", 0.66), ("flow", 0.75)])
def test_motion_is_cropped_less_far(reads: str, smallest: float) -> None:
    shape = (100, 100, 4) if reads == "flow" else (100, 100, 3)
    head: Any = heads.build("tsn", {"maps": shape}, 3, network={**SMALL_CNN, "reads": reads}, crop_px=32).train()
    boxes = head._boxes(300, torch.device("cpu"))
    assert float((boxes[:, 2] - boxes[:, 0]).min()) == 100 * smallest


def test_the_first_convolution_learns_at_its_own_rate(tmp_path: Path) -> None:
    """After one plain step, five times as far from where it began; all else where it would be."""
    features, labels = map_problem()
    train = {"epochs": 1, "batch": 24, "lr": 1e-3, "momentum": 0, "weight_decay": 0, "clip": None}
    config = CONFIG.model_copy(update={"augment": "none", "dropout": 0.0, "train": TsnTrain(**train)})
    with seeded(0, device=torch.device("cpu")):
        began = heads.from_config(config, features.shapes, 3).state_dict()
    moved = {}
    for factor in (1.0, 5.0):
        train_run(
            tmp_path / str(factor),
            config=config.model_copy(update={"first_conv_lr": factor}),
            features=features,
            labels=labels,
            train=range(24),
            test=[],
            classes=["red", "green", "blue"],
            seed=0,
            split="1",
            provenance={"digest": "d"},
            log=lambda line: None,
        )
        state = load_head(tmp_path / str(factor))[0].state_dict()
        moved[factor] = {key: state[key] - began[key] for key in state}
    for key in moved[1.0]:
        times = 5 if key == "network.trunk.conv1.0.weight" else 1
        assert times == 1 or moved[1.0][key].abs().max() > 1e-6
        torch.testing.assert_close(moved[5.0][key], times * moved[1.0][key], rtol=1e-2, atol=1e-6)


def test_a_run_on_flow_loads_back(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    arrays = [generator.integers(0, 256, (3, 32, 32, 4), dtype=np.uint8) for _ in range(12)]
    given: dict[str, Any] = {
        "features": Features.of([str(k) for k in range(12)], {"pixels": arrays}),
        "labels": np.arange(12) % 3,
        "test": range(6, 12),
        "classes": ["red", "green", "blue"],
    }
    network = NetworkConfig(**SMALL_CNN, reads="flow")
    config = CONFIG.model_copy(update={"network": network, "train": TsnTrain(epochs=1, batch=6)})
    made = {"config": config, "train": range(6), "seed": 0, "split": "1", "provenance": {"digest": "d"}}
    found = train_run(tmp_path, log=lambda line: None, **made, **given)
    assert evaluate_run(tmp_path, **given) == found
    weights = tmp_path / "network.safetensors"
    network_again = build("resnet10t", options=SMALL_CNN["options"], weights=weights, in_chans=4, reads="flow")
    assert network_again.input.reads == "flow" and network_again.num_classes == 3


def test_a_flow_network_begins_as_one_for_pictures(tmp_path: Path) -> None:
    """Cross-modality initialisation: the first kernel's mean over colours, for each channel; all else as it was."""
    rgb = build("resnet10t", options=SMALL_CNN["options"], num_classes=3)
    (tmp_path / "rgb.safetensors").write_bytes(save_network(rgb))
    network = {**SMALL_CNN, "reads": "flow", "weights": str(tmp_path / "rgb.safetensors")}
    head: Any = heads.build("tsn", {"maps": (32, 32, 4)}, 3, network=network)
    old, new = rgb.state_dict(), head.network.state_dict()
    (first,) = [key for key in old if old[key].shape != new[key].shape]
    torch.testing.assert_close(new[first], old[first].mean(dim=1, keepdim=True).expand(-1, 4, -1, -1))
    for key in old.keys() - {first}:
        torch.testing.assert_close(new[key], old[key])


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


def test_a_network_of_one_channel_reads_grey_frames_as_they_are() -> None:
    network = {"name": "flash_cnn", "library": "framepool"}
    head: Any = heads.build("tsn", {"frames": (28, 28, 1)}, 11, network=network, augment="none").eval()
    frames, mask = rows((28, 28, 1), 2, 3), torch.ones(2, 3, dtype=torch.bool)
    normal = (frames.float() / 255 - 0.1307) / 0.3081
    expected = head.network(normal.flatten(0, 1).permute(0, 3, 1, 2)).unflatten(0, (2, 3)).mean(dim=1)
    torch.testing.assert_close(head({"frames": frames}, {"frames": mask}), expected)
