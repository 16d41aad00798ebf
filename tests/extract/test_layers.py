"""A layer of a trunk: its output, its channels, the same however it is run."""

from __future__ import annotations

import copy

import pytest
import torch

from extract.networks import (
    Library,
    NetworkError,
    build,
)
from extract.networks.layers import Layer


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


@pytest.mark.parametrize(
    ("name", "layer", "rows"),
    [("swin_tiny_patch4_window7_224", "layers.0.blocks.0.attn", 64), ("mobilevit_xxs", "stages.2.1.transformer", 4)],
)
def test_a_layer_of_windows_has_no_row_an_input(name: str, layer: str, rows: int) -> None:
    with torch.device("meta"), pytest.raises(NetworkError, match=f"got {rows} rows of one input; take the block that"):
        build(name, layer=layer)
    with torch.device("meta"):
        assert len(build(name, layer=layer.rpartition(".")[0]).feature_shape) == 1


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
