"""Any classifier by name is a trunk and a classifier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from extract.networks import (
    Library,
    Network,
    NetworkError,
    build,
    names,
    save_network,
)
from extract.networks.describe import PAPERS, describe
from tests.extract.photos import WEIGHTS, photos, reference, relative
from tests.media import needs_shared

SMALL: list[tuple[str, Library]] = [
    ("test_resnet", "timm"),
    ("test_vit", "timm"),
    ("test_efficientnet", "timm"),
    ("test_convnext", "timm"),
    ("mobilenetv3_small_050", "timm"),
    ("squeezenet1_0", "torchvision"),
    ("resnet18", "torchvision"),
    ("mobilenet_v3_small", "torchvision"),
    ("vit_b_16", "torchvision"),
    ("googlenet", "torchvision"),
    ("inception_v3", "torchvision"),
    ("vgg16", "timm"),
    ("r3d_18", "torchvision"),
    ("i3d", "framepool"),
    ("kft_trunk", "framepool"),
    ("c3d", "framepool"),
]


CLASSES = {"r3d_18": 400, "i3d": 400, "kft_trunk": 400, "c3d": 487}  # 1000 of all others


LINEAR = [pair for pair in SMALL if pair[0] != "squeezenet1_0"]


@pytest.mark.filterwarnings("ignore:The default weight initialization")
@pytest.mark.parametrize(("name", "library"), LINEAR)
def test_every_network_is_a_trunk_and_a_classifier(name: str, library: Library) -> None:
    with torch.device("meta"):
        network = build(name, library=library)
        images = torch.empty(2, *network.input.shape(3))  # (B, C, H, W) or (B, C, T, H, W)
    assert not network.training
    features = network.trunk(images)
    assert features.shape == (2, network.feature_dim)
    assert network.classifier(features).shape == network(images).shape == (2, network.num_classes)
    assert network.num_classes == CLASSES.get(name, 1000) and network.input.resize_px >= network.input.size_px
    with torch.device("meta"):
        trunk = build(name, library=library, num_classes=0)
        own = build(name, library=library, num_classes=7)
    assert trunk(images).shape == (2, network.feature_dim) and trunk.num_classes == 0
    assert own(images).shape == (2, 7) and own.num_classes == 7


PICTURES = {  # as the papers read them: px, short side before the crop, mean of red, features
    "resnet18": (224, 236, 0.485, 512),
    "resnet34": (224, 236, 0.485, 512),
    "resnet50": (224, 236, 0.485, 2048),
    "resnet101": (224, 236, 0.485, 2048),
    "resnet152": (224, 236, 0.485, 2048),
    "inception_v3": (299, 342, 0.5, 2048),
    "inception_resnet_v2": (299, 333, 0.5, 1536),
    "seresnext101_32x4d": (224, 256, 0.485, 2048),
    "mobilenetv2_100": (224, 256, 0.485, 1280),
    "vgg16": (224, 256, 0.485, 4096),
}


@pytest.mark.parametrize("name", PICTURES)
def test_the_papers_networks_see_what_their_weights_saw(name: str) -> None:
    import timm

    assert (name, "timm") in PAPERS
    with torch.device("meta"):
        network = build(name)
        features = network.trunk(torch.empty(1, *network.input.shape(3)))
    spec = network.input
    assert (spec.size_px, spec.resize_px, spec.mean[0], features.shape[1]) == PICTURES[name]
    cfg = timm.get_pretrained_cfg(name)
    assert (spec.mean, spec.std, spec.interpolation) == (cfg.mean, cfg.std, cfg.interpolation)


def library_model(name: str, library: Library) -> Any:
    import timm
    import torchvision

    torch.manual_seed(0)
    made = timm.create_model(name) if library == "timm" else torchvision.models.get_model(name, weights=None)
    return made.eval()


@pytest.mark.filterwarnings("ignore:The default weight initialization")
@pytest.mark.parametrize(
    ("name", "library", "size_px"),
    [
        ("test_resnet", "timm", 64),
        ("test_vit", "timm", 160),
        pytest.param("test_efficientnet", "timm", 64, marks=pytest.mark.slow),
        ("test_convnext", "timm", 64),
        ("mobilenet_v3_small", "torchvision", 64),
        ("shufflenet_v2_x0_5", "torchvision", 64),
        pytest.param("googlenet", "torchvision", 96, marks=pytest.mark.slow),
        pytest.param("inception_v3", "torchvision", 96, marks=pytest.mark.slow),
    ],
)
def test_the_pair_equals_the_librarys_own_network(tmp_path: Path, name: str, library: Library, size_px: int) -> None:
    """With its weights from a file; twice the same; and again from a file of ours."""
    theirs = library_model(name, library)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    ours = build(name, library=library, weights=tmp_path / "theirs.pt")
    (tmp_path / "ours.safetensors").write_bytes(save_network(ours))
    again = build(name, library=library, weights=tmp_path / "ours.safetensors")
    images = torch.randn(2, 3, size_px, size_px, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, got = theirs(images), ours.classifier(ours.trunk(images))
        assert torch.linalg.norm(got - expected) / torch.linalg.norm(expected) < 1e-5
        assert torch.equal(got, ours(images)) and torch.equal(got, again(images))
    assert again.input == ours.input and again.weights_sha256 == ours.weights_sha256


def test_inceptions_of_torchvision_normalise_once() -> None:
    """Their downloaded weights want (x - .5) / .5, which they make of ImageNet's mean and std inside."""
    network = build("googlenet", library="torchvision", options={"transform_input": True, "init_weights": False})
    assert network.input.mean == network.input.std == (0.5, 0.5, 0.5) and not network.trunk.transform_input
    pixels = torch.rand(1, 3, 8, 8)
    network.trunk.transform_input = True
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    inside = network.trunk._transform_input((pixels - mean) / std)  # type: ignore[operator]
    torch.testing.assert_close(inside, (pixels - 0.5) / 0.5)


def test_options_go_to_the_library() -> None:
    with pytest.raises(NetworkError, match=r"options do not fit: test_resnet: .*unexpected.*'no_such'"):
        build("test_resnet", options={"no_such": 1})
    assert build("test_vit", options={"img_size": 64}).input.size_px == 64
    with pytest.raises(
        NetworkError, match="unknown library: expected one of timm, torchvision, framepool, got 'keras'"
    ):
        build("test_resnet", library="keras")  # type: ignore[arg-type]


def first_kernel(network: Network) -> torch.Tensor:
    """(D, C, k, k)"""
    return next(p for p in network.trunk.parameters() if p.ndim == 4).detach()


@pytest.mark.parametrize(
    ("name", "library", "in_chans"),
    [
        ("test_resnet", "timm", 1),
        ("test_resnet", "timm", 10),
        pytest.param("shufflenet_v2_x0_5", "torchvision", 15, marks=pytest.mark.slow),
    ],
)
def test_colours_become_any_channels(tmp_path: Path, name: str, library: Library, in_chans: int) -> None:
    """Wang et al. 2016, §3.2: the mean over the colours, repeated, not rescaled; all else as it was."""
    theirs = library_model(name, library)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    rgb = build(name, library=library, weights=tmp_path / "theirs.pt", num_classes=5)
    (tmp_path / "ours.safetensors").write_bytes(save_network(rgb))
    for file in ("theirs.pt", "ours.safetensors"):
        network = build(name, library=library, weights=tmp_path / file, in_chans=in_chans, reads="flow")
        kernel = first_kernel(rgb)
        red, green, blue = kernel[:, 0], kernel[:, 1], kernel[:, 2]
        found = first_kernel(network)
        assert found.shape[1] == in_chans
        for channel in range(in_chans):
            torch.testing.assert_close(found[:, channel], (red + green + blue) / 3)
        changed = [k for k, v in network.trunk.state_dict().items() if not torch.equal(v, rgb.trunk.state_dict()[k])]
        assert len(changed) == 1 and network.input.reads == "flow"
    images = torch.randn(1, in_chans, 160, 160)
    with torch.no_grad():
        alike = rgb.trunk(images.mean(1, keepdim=True).expand(1, 3, -1, -1) * in_chans / 3)
        torch.testing.assert_close(network.trunk(images), alike, rtol=1e-3, atol=1e-4)
    (tmp_path / "flow.safetensors").write_bytes(save_network(network))
    again = build(name, library=library, weights=tmp_path / "flow.safetensors")
    assert again.input.reads == "flow" and torch.equal(first_kernel(again), first_kernel(network))
    with pytest.raises(NetworkError, match=f"of in_chans {in_chans}, the config asks for 3"):
        build(name, library=library, weights=tmp_path / "flow.safetensors", in_chans=3)


def test_downloaded_weights_follow_the_same_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's own rule rescales and torchvision has none. Both find the weights on disk here."""
    theirs = library_model("test_resnet", "timm")
    torch.save(theirs.state_dict(), tmp_path / "test_resnet.pt")
    options = {"pretrained_cfg_overlay": {"file": str(tmp_path / "test_resnet.pt")}}
    network = build("test_resnet", weights="DEFAULT", in_chans=10, options=options)
    rgb = build("test_resnet", weights="DEFAULT", options=options)
    expected = first_kernel(rgb).mean(1, keepdim=True).expand_as(first_kernel(network))
    torch.testing.assert_close(first_kernel(network), expected)
    from torchvision.models import ShuffleNet_V2_X0_5_Weights as Weights

    theirs = library_model("shufflenet_v2_x0_5", "torchvision")
    place = tmp_path / "hub/checkpoints" / Path(Weights.DEFAULT.url).name
    place.parent.mkdir(parents=True)
    torch.save(theirs.state_dict(), place)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    network = build("shufflenet_v2_x0_5", library="torchvision", weights="DEFAULT", in_chans=10)
    expected = theirs.conv1[0].weight.mean(1, keepdim=True).expand_as(first_kernel(network))
    torch.testing.assert_close(first_kernel(network), expected)


@pytest.mark.parametrize(
    ("name", "library", "message"),
    [
        ("resnet5", "timm", r"unknown network: timm: 'resnet5'; near: .*resnet50"),
        ("mobilenet_v3_small", "timm", "torchvision has it: set `library: torchvision`"),
        ("test_resnet", "torchvision", "timm has it: set `library: timm`"),
        ("../etc/passwd", "torchvision", "unknown network: torchvision"),
        ("squeezenet1_0", "torchvision", "SqueezeNet has no linear classifier to take off"),
    ],
)
def test_names_that_are_not_there(name: str, library: Library, message: str) -> None:
    with pytest.raises(NetworkError, match=message):
        build(name, library=library)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features_only": True}, "no linear classifier to take off; choose another network, or other"),
        ({"global_pool": "nope"}, "options do not fit: mobilenetv2_100: Invalid pool type: nope"),
        ({"no_such": 1}, "options do not fit: mobilenetv2_100: "),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(NetworkError, match=message):
        build("mobilenetv2_100", options=options)


@pytest.mark.parametrize(
    ("name", "dim"),
    [("dla34", 512), ("deit_tiny_distilled_patch16_224", 192), ("vit_small_patch14_dinov2", 384), ("repvit_m1", 384)],
)
def test_networks_whose_classifier_is_no_linear_layer_or_that_have_none(name: str, dim: int) -> None:
    with torch.device("meta"):
        network = build(name)
        assert network.feature_shape == (dim,) and network.num_classes == 0
        size_px = network.input.size_px
        assert network.trunk(torch.empty(2, 3, size_px, size_px)).shape == (2, dim)
        assert build(name, num_classes=7).num_classes == 7


def test_names_lists_both_libraries() -> None:
    assert "resnet50" in names("timm") and "resnet50" in names("torchvision")


def test_descriptions_count_what_papers_count() -> None:
    found = describe("resnet50")
    assert found["parameters"] == 25_557_032 and found["features"] == 2048 and found["input"] == [3, 224, 224]
    assert found["macs"] == pytest.approx(4.1e9, rel=0.01)
    assert describe("resnet18", "torchvision")["parameters"] == 11_689_512
    json.dumps(found)


def test_every_paper_is_described() -> None:
    ours = {name for name, library in PAPERS if library == "framepool"}
    assert ours == set(names("framepool")) - {"flash_cnn"} and describe("yamnet", "framepool")["input"] == [1, 96, 64]
    assert describe("vggish", "framepool")["parameters"] == 72_141_184
    assert describe("yamnet", "framepool")["macs"] == pytest.approx(69e6, rel=0.02)


@needs_shared
def test_the_shared_mobilenet_gives_its_reference_outputs() -> None:
    network = build("mobilenetv2_100", weights=WEIGHTS, options={"pad_type": "same"})
    pixels = torch.from_numpy(photos()).permute(0, 3, 1, 2).float() / 127.5 - 1  # (B, C, H, W)
    with torch.no_grad():
        features = network.trunk(pixels)
        logits = network.classifier(features)
    assert relative(features.numpy(), reference()["features"]) < 1e-4
    assert relative(logits.numpy(), reference()["logits"]) < 1e-4
