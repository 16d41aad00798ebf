"""Torchvision's 3D networks: clips in, pooled features out, and the library's own logits from them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision

from extract.networks import build, names
from extract.networks.describe import describe

CLIPS = {  # name: features, frames, crop, short side
    "r3d_18": (512, 16, 112, 128),
    "mc3_18": (512, 16, 112, 128),
    "r2plus1d_18": (512, 16, 112, 128),
    "s3d": (1024, 64, 224, 256),
    "mvit_v1_b": (768, 16, 224, 256),
    "mvit_v2_s": (768, 16, 224, 256),
    "swin3d_t": (768, 16, 224, 256),
    "swin3d_s": (768, 16, 224, 256),
    "swin3d_b": (1024, 16, 224, 256),
}


def library(name: str) -> Any:
    torch.manual_seed(0)
    return torchvision.models.get_model(name).eval()


def ours(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return build(name, library="torchvision", **options)


def test_all_of_them_are_there() -> None:
    assert set(CLIPS) == set(torchvision.models.list_models(module=torchvision.models.video))
    assert set(CLIPS) <= set(names("torchvision"))


@pytest.mark.parametrize("name", CLIPS)
def test_shapes_and_inputs(name: str) -> None:
    features, frames, crop_px, resize_px = CLIPS[name]
    with torch.device("meta"):
        network = build(name, library="torchvision")
        clips = torch.empty(2, *network.input.shape(3))  # (B, C, T, H, W)
    assert clips.shape == (2, 3, frames, crop_px, crop_px)
    assert network.input.resize_px == resize_px and network.input.reads == "rgb"
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    assert [list(network.input.mean), list(network.input.std)] == [preset.mean, preset.std]
    assert network.trunk(clips).shape == (2, features) == (2, network.feature_dim)
    assert network(clips).shape == (2, 400)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("r3d_18", (4, 32, 32)),
        ("mc3_18", (4, 32, 32)),
        ("r2plus1d_18", (4, 32, 32)),
        pytest.param("swin3d_t", (4, 32, 32), marks=pytest.mark.slow),
        pytest.param("s3d", (24, 256, 256), marks=pytest.mark.slow),
        pytest.param("mvit_v2_s", (16, 224, 224), marks=pytest.mark.slow),
    ],
)
def test_the_pair_equals_the_librarys_own_network(name: str, shape: tuple[int, ...]) -> None:
    theirs, network = library(name), ours(name)
    clips = torch.randn(1, 3, *shape)
    with torch.no_grad():
        expected, got = theirs(clips), network.classifier(network.trunk(clips))
    assert got.shape == (1, 400)
    assert torch.linalg.norm(got - expected) / torch.linalg.norm(expected) < 1e-5


@pytest.mark.parametrize(
    ("name", "layer", "shape"),
    [
        ("r3d_18", "layer2", (128, 8, 28, 28)),
        ("s3d", "features.5", (256, 32, 28, 28)),
        ("swin3d_t", "features.2", (8, 28, 28, 192)),
        ("mvit_v2_s", "blocks.3", (1 + 8 * 14 * 14, 384)),
    ],
)
def test_layers(name: str, layer: str, shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        pooled, whole = (build(name, library="torchvision", layer=layer, pool=pool) for pool in (True, False))
        clips = torch.empty(1, *pooled.input.shape(3))
    channels = shape[0] if name in ("r3d_18", "s3d") else shape[-1]
    assert pooled.feature_shape == (channels,) and whole.feature_shape == shape
    assert pooled(clips).shape[1:] == (channels,) and whole(clips).shape[1:] == shape


def test_flow_through_a_3d_network() -> None:
    network = build("r3d_18", library="torchvision", in_chans=2, num_classes=3)
    assert network(torch.zeros(1, 2, 4, 32, 32)).shape == (1, 3)


def test_descriptions_count_clips() -> None:
    found = describe("r3d_18", "torchvision")
    assert found["input"] == [3, 16, 112, 112] and found["parameters"] == 33_371_472
    assert found["macs"] == pytest.approx(40.697e9, rel=0.01)  # torchvision's own count
