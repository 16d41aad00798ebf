"""Any classifier by name is a trunk and a classifier; weights fit exactly or are refused in one line (F44, F45)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from extract.networks import Library, NetworkError, build, load_state, names, save_network, save_state, state_sha256
from extract.networks.describe import describe
from tests.extract.photos import WEIGHTS, photos, reference, relative
from tests.media import needs_shared, write_network

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
]
LINEAR = [pair for pair in SMALL if pair[0] != "squeezenet1_0"]


@pytest.mark.filterwarnings("ignore:The default weight initialization")
@pytest.mark.parametrize(("name", "library"), LINEAR)
def test_every_network_is_a_trunk_and_a_classifier(name: str, library: Library) -> None:
    with torch.device("meta"):
        network = build(name, library=library)
        images = torch.empty(2, 3, network.input.size_px, network.input.size_px)  # (B, C, H, W)
    assert not network.training
    features = network.trunk(images)
    assert features.shape == (2, network.feature_dim)
    assert network.classifier(features).shape == network(images).shape == (2, network.num_classes)
    assert network.num_classes == 1000 and network.input.resize_px >= network.input.size_px
    with torch.device("meta"):
        trunk = build(name, library=library, num_classes=0)
        own = build(name, library=library, num_classes=7)
    assert trunk(images).shape == (2, network.feature_dim) and trunk.num_classes == 0
    assert own(images).shape == (2, 7) and own.num_classes == 7


def test_the_pair_equals_the_librarys_own_network() -> None:
    import timm

    torch.manual_seed(0)
    theirs = timm.create_model("test_resnet").eval()
    torch.manual_seed(0)
    ours = build("test_resnet")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))


def test_options_and_channels_go_to_the_library() -> None:
    network = build("test_resnet", in_chans=10, num_classes=4)
    assert network(torch.zeros(1, 10, 32, 32)).shape == (1, 4)
    with pytest.raises(NetworkError, match=r"options do not fit: test_resnet: .*unexpected.*'no_such'"):
        build("test_resnet", options={"no_such": 1})
    with pytest.raises(NetworkError, match="takes 3 channels, got 10"):
        build("resnet18", library="torchvision", in_chans=10)


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


def test_names_lists_both_libraries() -> None:
    assert "resnet50" in names("timm") and "resnet50" in names("torchvision")


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_saved_and_loaded_again(tmp_path: Path, name: str) -> None:
    path = write_network(tmp_path / "n.safetensors", name, num_classes=5)
    first, second = build(name, weights=path), build(name, weights=path)
    images = torch.randn(2, 3, 64, 64) if name == "test_resnet" else torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(first(images), second(images))
    assert first.num_classes == 5 and first.weights_sha256 == second.weights_sha256 == state_sha256(first.state_dict())
    assert save_network(first) == path.read_bytes()
    assert build(name, weights=str(path), num_classes=0)(images).shape == (2, first.feature_dim)  # type: ignore[arg-type]
    assert build(name, weights=path, num_classes=9)(images).shape == (2, 9)


def test_other_weights_have_another_digest() -> None:
    torch.manual_seed(0)
    state = build("test_resnet").state_dict()
    before = state_sha256(state)
    assert state_sha256(dict(reversed(state.items()))) == before
    key = next(iter(state))
    state[key] = state[key] + 1
    assert state_sha256(state) != before


def state_of(name: str = "test_resnet") -> dict[str, torch.Tensor]:
    """As the library saves it: its own keys, no notes."""
    import timm

    torch.manual_seed(0)
    return dict(timm.create_model(name).state_dict())


def test_a_librarys_own_file_fits_in_every_wrapping(tmp_path: Path) -> None:
    state = state_of()
    (tmp_path / "a.safetensors").write_bytes(save_state(state, {}))
    safetensors.torch.save_file(state, tmp_path / "b.safetensors")
    torch.save(state, tmp_path / "c.pt")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, tmp_path / "d.pth")
    torch.save({"model": state}, tmp_path / "e.pt")
    digests = {build("test_resnet", weights=p).weights_sha256 for p in sorted(tmp_path.iterdir())}
    assert len(digests) == 1


def first_of(state: dict[str, torch.Tensor], change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    key = next(k for k in state if k.endswith("weight"))
    return {**state, key: change(state[key])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: dict(list(s.items())[1:]), r"they lack key '.*' \(1 missing, 0 unknown of \d+ keys\)"),
        (lambda s: {**s, "extra.key": torch.zeros(1)}, r"they have an unknown key 'extra.key' \(0 missing, 1 unknown"),
        (lambda s: first_of(s, lambda t: t[:1]), r"weight: expected \[\d+, .*\], got \[1, "),
        (lambda s: first_of(s, lambda t: t * float("nan")), r"weights are not finite: .*: .*weight"),
        (lambda s: {}, r"they lack key"),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(save_state(change(state_of()), {}))
    with pytest.raises(NetworkError, match=message) as error:
        build("test_resnet", weights=path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_weights_of_another_network_or_option_are_refused(tmp_path: Path) -> None:
    path = write_network(tmp_path / "n.safetensors", "test_vit")
    with pytest.raises(NetworkError, match="of name 'test_vit', the config asks for 'test_resnet'"):
        build("test_resnet", weights=path)
    with pytest.raises(NetworkError, match=r"of in_chans 3, the config asks for 1"):
        build("test_vit", weights=path, in_chans=1)
    with pytest.raises(NetworkError, match=r"of options \{\}, the config asks for \{'class_token': False\}"):
        build("test_vit", weights=path, options={"class_token": False})


class Bomb:
    """Touches a canary when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.canary}'",)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_a_pickle_bomb_is_not_executed(tmp_path: Path, suffix: str) -> None:
    path, canary = tmp_path / f"bomb{suffix}", tmp_path / "canary"
    torch.save({"state_dict": {"x": Bomb(canary)}}, path)
    with pytest.raises(NetworkError, match=f"weights do not load: {path}: .*; nothing in the file was executed"):
        build("test_resnet", weights=path)
    assert not canary.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("data", [b"", b"\0", b"no weights at all", b"\xff" * 64])
def test_broken_files_are_refused_in_one_line(tmp_path: Path, suffix: str, data: bytes) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(data)
    with pytest.raises(NetworkError, match=f"weights do not load: {path}: .+; nothing") as error:
        load_state(path)
    assert "\n" not in str(error.value)


def test_a_file_that_holds_something_else(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(NetworkError, match="expected a state dict of tensors, got list"):
        load_state(tmp_path / "list.pt")
    with pytest.raises(NetworkError, match=r"weights are not there: .*absent.pt: expected a .safetensors, .pt or .pth"):
        load_state(tmp_path / "absent.pt")


def test_weights_that_cannot_be_downloaded_say_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch.hub

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(NetworkError, match=r"weights DEFAULT of resnet18 cannot be had: Name or service .*local file"):
        build("resnet18", library="torchvision", weights="DEFAULT")


def test_descriptions_count_what_papers_count() -> None:
    found = describe("resnet50")
    assert found["parameters"] == 25_557_032 and found["features"] == 2048 and found["input"] == [3, 224, 224]
    assert found["macs"] == pytest.approx(4.1e9, rel=0.01)
    assert describe("resnet18", "torchvision")["parameters"] == 11_689_512
    json.dumps(found)


@needs_shared
def test_the_shared_mobilenet_gives_its_reference_outputs() -> None:
    network = build("mobilenetv2_100", weights=WEIGHTS, options={"pad_type": "same"})
    pixels = torch.from_numpy(photos()).permute(0, 3, 1, 2).float() / 127.5 - 1  # (B, C, H, W)
    with torch.no_grad():
        features = network.trunk(pixels)
        logits = network.classifier(features)
    assert relative(features.numpy(), reference()["features"]) < 1e-4
    assert relative(logits.numpy(), reference()["logits"]) < 1e-4
