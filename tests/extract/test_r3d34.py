"""3D ResNet-34: its sizes are the paper's, ImageNet's weights inflate, and a still clip gives what the picture gave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

import heads
from extract.config import Trunk
from extract.convert import prepare
from extract.networks import FromRows, NetworkError, build, save_network
from extract.networks.describe import describe
from extract.runtime import Model, engine


def ours(**options: Any) -> Any:
    torch.manual_seed(0)
    return build("r3d34", library="framepool", **options)


@pytest.mark.parametrize(
    ("shortcut", "classes", "parameters", "gmacs"),
    [("B", 200, 63_616_136, 50.20), ("B", 101, 63_565_349, 50.20), ("A", 400, 63_544_912, 50.15)],
)
def test_sizes(shortcut: str, classes: int, parameters: int, gmacs: float) -> None:
    """vtn.md, section 6; VTN (2019), Table 2, prints 63.5 M and 50.2 GMAC."""
    found = describe("r3d34", "framepool", {"shortcut": shortcut, "classes": classes})
    assert found["parameters"] == parameters and found["macs"] / 1e9 == pytest.approx(gmacs, abs=0.01)
    assert found["input"] == [3, 16, 224, 224] and found["features"] == 512


def test_maps_at_every_stage() -> None:
    shapes = {"relu": (64, 16, 112, 112), "maxpool": (64, 8, 56, 56), "layer1": (64, 8, 56, 56)}
    shapes |= {"layer2": (128, 4, 28, 28), "layer3": (256, 2, 14, 14), "layer4": (512, 1, 7, 7)}
    for layer, shape in shapes.items():
        with torch.device("meta"):
            assert ours(layer=layer, pool=False).feature_shape == shape


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """torchvision's ResNet-34, its batch norms not as they begin, and the file of its weights."""
    torch.manual_seed(0)
    network = torchvision.models.resnet34()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.weight, 0.3, 0.6)
    path = tmp_path_factory.mktemp("weights") / "resnet34.pth"
    torch.save(network.state_dict(), path)
    return network.eval(), path


@pytest.fixture(scope="module")
def inflated(pictures: tuple[Any, Path]) -> dict[str, torch.Tensor]:
    """The state dict of ours from the weights of pictures."""
    state: dict[str, torch.Tensor] = ours(weights=pictures[1]).state_dict()
    return state


def test_pictures_weights_inflate_by_key(pictures: tuple[Any, Path], inflated: dict[str, torch.Tensor]) -> None:
    own, flat = inflated, pictures[0].state_dict()
    for key, value in flat.items():
        found = own[("classifier." + key[3:]) if key.startswith("fc.") else f"trunk.{key}"]
        if value.ndim == 4:
            assert found.shape == (*value.shape[:2], value.shape[-1], *value.shape[2:])  # as long as it is wide
            torch.testing.assert_close(found.sum(dim=2), value, rtol=1e-5, atol=1e-6)
            assert torch.equal(found, found[:, :, :1].expand_as(found))
        else:
            assert torch.equal(found, value)


def test_a_still_clip_gives_what_the_picture_gives(pictures: tuple[Any, Path]) -> None:
    """Where no kernel reaches over the ends of the clip: in the middle of the stem and the first stage."""
    network, path = pictures
    image = torch.randn(1, 3, 64, 64)
    layer = ours(weights=path, layer="layer1", pool=False)
    with torch.no_grad():
        flat = network.layer1(network.maxpool(network.relu(network.bn1(network.conv1(image)))))
        found = layer.trunk(image[:, :, None].expand(-1, -1, 40, -1, -1))
    torch.testing.assert_close(found[:, :, found.shape[2] // 2], flat, rtol=1e-4, atol=1e-5)


def test_channels_and_files_of_its_own(pictures: tuple[Any, Path], tmp_path: Path) -> None:
    network = ours(weights=pictures[1], in_chans=2, reads="flow", num_classes=3)
    first = network.trunk.conv1.weight
    torch.testing.assert_close(first.sum(dim=2)[:, 0], pictures[0].conv1.weight.mean(dim=1), rtol=1e-4, atol=1e-6)
    (tmp_path / "own.safetensors").write_bytes(save_network(network))
    again = ours(weights=tmp_path / "own.safetensors")
    assert torch.equal(again.trunk.conv1.weight, first) and again.num_classes == 3


def test_downloaded_weights_are_torchvisions_inflated(
    pictures: tuple[Any, Path],
    inflated: dict[str, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are found on disk here; torchvision checks the sum of what it downloads, but not of what is there."""
    place = tmp_path / "hub/checkpoints" / Path(torchvision.models.ResNet34_Weights.DEFAULT.url).name
    place.parent.mkdir(parents=True)
    place.write_bytes(pictures[1].read_bytes())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    found = ours(weights="DEFAULT").state_dict()
    assert all(torch.equal(found[key], inflated[key]) for key in inflated)


def test_shortcut_a_takes_every_other_place_and_new_channels_are_zero() -> None:
    block = ours(options={"shortcut": "A"}).trunk.layer2[0]
    maps = torch.randn(1, 64, 4, 6, 6)
    found = block.downsample(maps)
    assert found.shape == (1, 128, 2, 3, 3) and torch.equal(found[:, :64], maps[:, :, ::2, ::2, ::2])
    assert not found[:, 64:].any()
    with pytest.raises(NetworkError, match="r3d34: shortcut: expected A or B, got 'C'"):
        ours(options={"shortcut": "C"})


@pytest.mark.slow
def test_it_trains_in_a_tsn_head() -> None:
    network = {"name": "r3d34", "library": "framepool"}
    head: Any = heads.build("tsn", {"clips": (4, 32, 32, 3)}, 3, network=network, crop_px=32).train()
    clips = torch.randint(0, 256, (2, 1, 4, 32, 32, 3), dtype=torch.uint8)
    head({"clips": clips}, {"clips": torch.ones(2, 1, dtype=torch.bool)}).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.slow
def test_both_runtimes_give_the_networks_features(pictures: tuple[Any, Path], tmp_path: Path) -> None:
    """As a trunk extractor, its weights those of pictures: rows of clips in, features out."""
    clips = np.random.default_rng(0).integers(0, 256, (2, 4, 64, 64, 3), dtype=np.uint8)
    network = ours(weights=pictures[1])
    with torch.no_grad():
        plain = network.trunk(FromRows("rgb", network.input.mean, network.input.std)(torch.from_numpy(clips))).numpy()
    for runtime in ("torch", "openvino"):
        config = Trunk.model_validate(
            {
                "kind": "trunk",
                "sampling": {"kind": "clips", "frames": 4},
                "network": {"name": "r3d34", "library": "framepool", "weights": str(pictures[1])},
                "transform": {"resize": 64, "crop": 64},
                "batch": 2,
                "runtime": runtime,
            }
        )
        model = Model(config, pictures[1])
        run = engine(model, prepare(model, tmp_path), tmp_path, threads=1)
        found = run.finish(run.start(clips))
        run.close()
        assert np.linalg.norm(found - plain) / np.linalg.norm(plain) < 1e-5
