"""VGGish and VGG-16 on sound: public state dicts fit, and mean what they meant where they came from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from extract.networks import NetworkError, build, names, save_network, save_state


def patches(seed: int = 0) -> torch.Tensor:
    """(2, 1, 96, 64)."""
    return torch.randn(2, 1, 96, 64, generator=torch.Generator().manual_seed(seed))


def test_names() -> None:
    assert {"vgg16_audio", "vggish", "yamnet"} <= set(names("framepool"))
    with pytest.raises(NetworkError, match=r"unknown network: timm: 'yamnet'; framepool has it: set `library: framep"):
        build("yamnet")
    with pytest.raises(NetworkError, match=r"unknown network: framepool: 'vgish'; near: vggish"):
        build("vgish", library="framepool")


@pytest.mark.parametrize("name", ["yamnet", "vggish", "vgg16_audio"])
def test_they_hear_one_channel_and_have_no_weights_of_their_own(name: str) -> None:
    with torch.device("meta"):
        network = build(name, library="framepool")
    assert network.input.reads == "logmel" and network.input.shape(1) == (1, 96, 64)
    with pytest.raises(NetworkError, match=f"framepool's {name} reads 1 channel, grey or log-mel; got in_chans 3"):
        build(name, library="framepool", in_chans=3)
    if name != "vgg16_audio":
        with pytest.raises(NetworkError, match=f"weights DEFAULT of {name} cannot be had: framepool has none; give"):
            build(name, library="framepool", weights="DEFAULT")
    with pytest.raises(NetworkError, match=f"options do not fit: {name}: "):
        build(name, library="framepool", options={"no_such": 1})


def vggish_state() -> dict[str, torch.Tensor]:
    """Keys, shapes and order of harritaylor/torchvggish, with the PCA that it may carry; small random values."""
    torch.manual_seed(0)
    convolutions = {0: (64, 1), 3: (128, 64), 6: (256, 128), 8: (256, 256), 11: (512, 256), 13: (512, 512)}
    linear = {0: (4096, 12288), 2: (4096, 4096), 4: (128, 4096)}
    shapes = {f"features.{n}": (*s, 3, 3) for n, s in convolutions.items()} | {
        f"embeddings.{n}": s for n, s in linear.items()
    }
    found = {}
    for key, shape in shapes.items():
        found[f"{key}.weight"] = torch.randn(shape) * (2 / torch.Size(shape[1:]).numel()) ** 0.5
        found[f"{key}.bias"] = torch.randn(shape[0]) / 10
    return found | {"pproc.pca_means": torch.zeros(128, 1)}


@pytest.mark.slow
def test_a_public_vggish_is_what_it_was(tmp_path: Path) -> None:
    state = vggish_state()
    torch.save(state, tmp_path / "vggish.pth")
    network = build("vggish", library="framepool", weights=tmp_path / "vggish.pth")
    x = patches()
    with torch.no_grad():
        got = network.trunk(x)
        maps = x
        for number in range(16):  # the public network, one layer a line
            if f"features.{number}.weight" in state:
                weight, bias = (state[f"features.{number}.{kind}"] for kind in ("weight", "bias"))
                maps = nn.functional.conv2d(maps, weight, bias, padding=1).relu()
            elif number in (2, 5, 10, 15):
                maps = nn.functional.max_pool2d(maps, 2)
        x = maps.transpose(1, 3).transpose(1, 2).flatten(1)
        for number in (0, 2, 4):
            weight, bias = (state[f"embeddings.{number}.{kind}"] for kind in ("weight", "bias"))
            x = nn.functional.linear(x, weight, bias).relu()
    assert got.shape == (2, 128) and network.num_classes == 0 and (got > 0).any()
    torch.testing.assert_close(got, x)
    torch.save({key: value for key, value in state.items() if key != "embeddings.4.bias"}, tmp_path / "less.pth")
    with pytest.raises(NetworkError, match=r"they lack key 'embeddings.4.bias' \(1 missing"):
        build("vggish", library="framepool", weights=tmp_path / "less.pth")


def test_sizes_of_the_papers() -> None:
    with torch.device("meta"):
        vggish, fc7 = (build(name, library="framepool", num_classes=10) for name in ("vggish", "vgg16_audio"))
        pool = build("vgg16_audio", library="framepool", options={"feature": "pool"}, num_classes=10)
        maps = build("vgg16_audio", library="framepool", layer="features", pool=False)
        x = torch.empty(2, 1, 96, 64)
    assert [n.trunk(x).shape[1] for n in (vggish, fc7, pool)] == [128, 4096, 512]
    assert [n(x).shape[1] for n in (vggish, fc7, pool)] == [10, 10, 10]
    assert maps.feature_shape == (512, 3, 2)
    with pytest.raises(NetworkError, match="feature: expected fc7 or pool, got 'fc8'"):
        build("vgg16_audio", library="framepool", options={"feature": "fc8"})


def picture_convolutions(path: Path) -> dict[str, torch.Tensor]:
    """The convolutions of torchvision's VGG-16 and one of its linear layers, random, in a file."""
    torch.manual_seed(0)
    with torch.device("meta"):
        import torchvision

        shapes = {k: v.shape for k, v in torchvision.models.vgg16().features.state_dict().items()}
    state = {f"features.{key}": torch.randn(shape) / 50 for key, shape in shapes.items()}
    state["classifier.6.bias"] = torch.zeros(1000)
    path.write_bytes(save_state(state, {}))
    return state


def test_a_vgg16_for_pictures_gives_its_convolutions(tmp_path: Path) -> None:
    state = picture_convolutions(tmp_path / "vgg16.safetensors")
    options = {"feature": "pool"}
    network = build("vgg16_audio", library="framepool", weights=tmp_path / "vgg16.safetensors", options=options)
    own = network.trunk.state_dict()
    assert own.keys() == {key for key in state if key.startswith("features.")} and network.fresh == ()
    torch.testing.assert_close(own["features.0.weight"], state["features.0.weight"].sum(1, keepdim=True) / 3)
    assert all(torch.equal(own[key], state[key]) for key in own if key != "features.0.weight")
    with torch.no_grad():
        maps = network.trunk.get_submodule("features")(patches())  # (2, 512, 3, 2)
        torch.testing.assert_close(network.trunk(patches()), maps.mean(dim=(2, 3)))


@pytest.mark.slow
def test_what_a_vgg16_for_pictures_cannot_give_is_named(tmp_path: Path) -> None:
    picture_convolutions(tmp_path / "vgg16.safetensors")
    network = build("vgg16_audio", library="framepool", weights=tmp_path / "vgg16.safetensors")
    (tmp_path / "ours.safetensors").write_bytes(save_network(network))
    again = build("vgg16_audio", library="framepool", weights=tmp_path / "ours.safetensors")
    assert again.weights_sha256 == network.weights_sha256 and again.fresh == ()
    assert network.fresh == ("trunk.head.1.weight", "trunk.head.1.bias", "trunk.head.4.weight", "trunk.head.4.bias")
    assert network.trunk(patches()).shape == (2, 4096)


@pytest.mark.slow
def test_vgg16_begins_with_torchvisions_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first kernels are the mean over colours; they are found on disk here."""
    pictures = torchvision.models.vgg16(weights=None).state_dict()
    place = tmp_path / "hub/checkpoints" / Path(torchvision.models.VGG16_Weights.DEFAULT.url).name
    place.parent.mkdir(parents=True)
    torch.save(pictures, place)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    network = build("vgg16_audio", library="framepool", weights="DEFAULT", options={"feature": "pool"})
    found = network.trunk.state_dict()
    torch.testing.assert_close(found["features.0.weight"], pictures["features.0.weight"].mean(dim=1, keepdim=True))
    assert torch.equal(found["features.28.weight"], pictures["features.28.weight"])
