"""Any classifier by name is a trunk and a classifier; weights fit exactly or are refused in one line (F44, F45)."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from extract.networks import (
    FromRows,
    Library,
    Network,
    NetworkError,
    Reads,
    build,
    channels,
    load_state,
    names,
    save_network,
    save_state,
    state_sha256,
)
from extract.networks.describe import PAPERS, describe
from extract.networks.layers import Layer
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


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt"])
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
    with pytest.raises(
        NetworkError, match=r"weights are not there: .*absent.pt: expected a .safetensors, .npz, .pt or .pth"
    ):
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


def test_a_layer_is_what_the_trunk_computes_on_its_way() -> None:
    torch.manual_seed(0)
    whole = build("test_resnet").trunk
    torch.manual_seed(0)
    pooled = build("test_resnet", layer="layer2")
    torch.manual_seed(0)
    raw = build("test_resnet", layer="layer2", pool=False)
    size_px = pooled.input.size_px
    images = torch.randn(2, 3, size_px, size_px)
    with torch.no_grad():
        x = images
        for step in ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2"):
            x = whole.get_submodule(step)(x)
        assert torch.equal(raw(images), x) and raw.feature_shape == tuple(x.shape[1:])
        torch.testing.assert_close(pooled(images), x.mean(dim=(2, 3)))
    assert pooled.feature_shape == (x.shape[1],) == (pooled.feature_dim,)
    assert raw.feature_dim == x[0].numel() and raw.num_classes == pooled.num_classes == 0
    assert not pooled.training and not any(m.training for m in pooled.modules())


def test_what_comes_after_the_layer_is_not_run() -> None:
    network = build("test_resnet", layer="layer2")
    ran = []
    for name in ("layer2", "layer3"):
        module = network.trunk.get_submodule(f"trunk.{name}")
        module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    network(torch.zeros(1, 3, 64, 64))
    assert ran == ["layer2"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_layer_is_the_same_however_it_is_run() -> None:
    """Traced, compiled, exported, copied; also of a module that the network uses twice, whose first output counts."""
    network = build("resnet18", library="torchvision", layer="layer2.0.relu")
    trunk, images = network.trunk, torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = trunk(images)
        ways = {
            "traced": torch.jit.trace(trunk, images)(images),  # type: ignore[no-untyped-call]
            "compiled": torch.compile(trunk, backend="eager")(images),
            "exported": torch.export.export(trunk, (images,)).module()(images),
            "copied": copy.deepcopy(network)(images),
        }
    for way, got in ways.items():
        torch.testing.assert_close(got, expected, msg=way)


@pytest.mark.parametrize(
    ("name", "library", "layer", "shape", "axes"),
    [
        ("resnet50", "timm", "layer3", (1024, 14, 14), (2, 3)),
        ("inception_v3", "timm", "Mixed_5b", (256, 35, 35), (2, 3)),
        ("test_vit", "timm", "blocks.2", (101, 64), (1,)),
        ("swin_tiny_patch4_window7_224", "timm", "layers.1", (28, 28, 192), (1, 2)),
        ("swin_t", "torchvision", "features.7", (7, 7, 768), (1, 2)),
        ("convnext_tiny", "torchvision", "features.3", (192, 28, 28), (2, 3)),
        ("resnet18", "timm", "global_pool", (512,), ()),
        ("yamnet", "framepool", "layer13_dw", (512, 3, 2), (2, 3)),
    ],
)
def test_channels_of_a_layer_are_found(
    name: str, library: Library, layer: str, shape: tuple[int, ...], axes: tuple[int, ...]
) -> None:
    with torch.device("meta"):
        raw, pooled = (build(name, library=library, layer=layer, pool=pool) for pool in (False, True))
    assert raw.feature_shape == shape
    assert pooled.feature_shape == tuple(n for axis, n in enumerate(shape, 1) if axis not in axes)


class Aside(torch.nn.Module):
    """Has a module that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.attn_pool = torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.conv(x)
        return found


def test_layers_that_are_not_there() -> None:
    with pytest.raises(NetworkError, match=r"unknown layer: 'layer9' of ResNet; near: layer\d, layer\d, layer\d"):
        build("test_resnet", layer="layer9")
    with pytest.raises(NetworkError, match=r"layer 'attn_pool' gives no tensor: it is not part of the way"):
        Layer(Aside(), "attn_pool", (3, 8, 8), pool=True)
    with pytest.raises(NetworkError, match=r"pool: false gives the map of a layer: name one with `layer`"):
        build("test_resnet", pool=False)
    with pytest.raises(NetworkError, match=r"a classifier reads pooled features, not maps of \d+x\d+x\d+: set pool"):
        build("test_resnet", layer="layer2", pool=False, num_classes=3)


def test_saved_with_a_layer_and_loaded_for_another(tmp_path: Path) -> None:
    path, images = tmp_path / "n.safetensors", torch.randn(1, 3, 160, 160)
    torch.manual_seed(0)
    network = build("test_resnet", layer="layer2", num_classes=4)
    path.write_bytes(save_network(network))
    same, other = build("test_resnet", weights=path, layer="layer2"), build("test_resnet", weights=path, layer="layer1")
    whole = build("test_resnet", weights=path)
    with torch.no_grad():
        assert torch.equal(same(images), network(images)) and same.num_classes == 4
        assert other.num_classes == whole.num_classes == 0
        torch.manual_seed(0)
        assert torch.equal(whole(images), build("test_resnet", num_classes=0)(images))
    assert save_network(same) == path.read_bytes()
    assert build("test_resnet", weights=path, num_classes=3)(images).shape == (1, 3)


def test_files_from_before_frames_and_reads(tmp_path: Path) -> None:
    network = build("test_resnet", num_classes=5)
    old = {**network.notes, "num_classes": 5}
    old["input"] = {"size_px": 96, "mean": [0.1] * 3, "std": [0.2] * 3, "interpolation": "bicubic", "crop_ratio": 0.9}
    (tmp_path / "old.safetensors").write_bytes(save_state(network.state_dict(), old))
    again = build("test_resnet", weights=tmp_path / "old.safetensors")
    assert (again.input.frames, again.input.reads, again.input.size_px) == (1, "rgb", 96)
    assert again.num_classes == 5 and again.input.mean == (0.1, 0.1, 0.1)


MEAN, STD = (0.1, 0.2, 0.3), (0.2, 0.3, 0.7)


def bytes_of(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_rows_of_pictures_and_clips() -> None:
    rows = bytes_of(2, 4, 5, 6, 3)  # (B, T, H, W, C)
    clips = FromRows("rgb", MEAN, STD)(rows)
    assert clips.shape == (2, 3, 4, 5, 6)
    images = FromRows("rgb", MEAN, STD)(rows[:, 1])
    assert torch.equal(images, clips[:, :, 1])
    for b, t, y, x, c in [(0, 0, 0, 0, 0), (1, 3, 4, 5, 2), (0, 2, 1, 3, 1)]:
        expected = (int(rows[b, t, y, x, c]) / 255 - MEAN[c]) / STD[c]
        assert float(clips[b, c, t, y, x]) == pytest.approx(expected, abs=1e-5)


def test_rows_of_flow() -> None:
    rows = bytes_of(2, 5, 6, 4)
    maps = FromRows("flow", MEAN, STD)(rows)
    assert maps.shape == (2, 4, 5, 6) and channels("flow", (5, 6, 4)) == 4
    assert float(maps[1, 3, 4, 5]) == pytest.approx((int(rows[1, 4, 5, 3]) - 128) / 255 / 0.4, abs=1e-5)
    assert not FromRows("flow", MEAN, STD)(torch.full((1, 2, 2, 2), 128, dtype=torch.uint8)).any()


def test_rows_of_differences() -> None:
    rows = bytes_of(2, 4, 5, 6, 3)
    maps = FromRows("rgbdiff", MEAN, STD)(rows)
    assert maps.shape == (2, 9, 5, 6) and channels("rgbdiff", (4, 5, 6, 3)) == 9
    for pair in range(3):
        for c in range(3):
            expected = (int(rows[1, pair + 1, 2, 3, c]) - int(rows[1, pair, 2, 3, c])) / 255 / STD[c]
            assert float(maps[1, 3 * pair + c, 2, 3]) == pytest.approx(expected, abs=1e-5)


def test_rows_of_pictures_above_their_differences() -> None:
    rows = bytes_of(2, 2, 5, 6, 3)
    found = FromRows("stacked", MEAN, STD)(rows)
    values = (rows.float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(found[:, :3], values[:, 1].permute(0, 3, 1, 2))
    torch.testing.assert_close(found[:, 3:], (values[:, 1] - values[:, 0]).permute(0, 3, 1, 2), rtol=1e-4, atol=1e-5)
    assert channels("stacked", (2, 5, 6, 3)) == 6


def test_rows_of_sound() -> None:
    patches = torch.randn(2, 96, 64)
    assert torch.equal(FromRows("logmel", (0.0,), (1.0,))(patches), patches[:, None])
    assert channels("logmel", (96, 64)) == 1 and channels("rgb", (5, 6, 3)) == channels("rgb", (4, 5, 6, 3)) == 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("reads", "shape"),
    [
        ("rgbdiff", (3, 64, 64, 3)),
        *(
            pytest.param(*row, marks=pytest.mark.slow)
            for row in [("rgb", (64, 64, 3)), ("flow", (64, 64, 4)), ("logmel", (96, 64))]
        ),
    ],
)
def test_rows_and_a_layer_convert_to_openvino(reads: Reads, shape: tuple[int, ...]) -> None:
    import openvino

    network = build("test_resnet", in_chans=channels(reads, shape), reads=reads, layer="layer2")
    whole = torch.nn.Sequential(FromRows(reads, MEAN, STD), network.trunk).eval()
    rows = torch.randn(2, *shape) if reads == "logmel" else bytes_of(2, *shape)
    with torch.inference_mode():
        expected = whole(rows).numpy()
        traced = torch.jit.trace(whole, rows, check_trace=False)  # type: ignore[no-untyped-call]
    kind = openvino.Type.f32 if reads == "logmel" else openvino.Type.u8
    converted = openvino.convert_model(traced, input=[(list(rows.shape), kind)])
    compiled = openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert relative(compiled(rows.numpy())[0], expected) < 1e-5


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
