"""Parameters and MACs of the models in the papers' tables, beside the figures that the papers print.

    for row in ROWS: found = row.measure(); print(row.name, found.parameters, found.macs, found.rule, row.gmacs)

Networks are counted on the meta device, without weights; the KFT heads, which pick rows by a mask, on the CPU. A row is
a line in `ROWS`; `of_network` is for a network on one input, `online` for an end-to-end head on one new frame and the
embeddings of those before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch

import heads
from extract.networks import Library, build
from extract.networks.describe import macs, parameters
from heads.counting import rule_macs
from heads.streaming import Online

CLASSES: Final = 200  # Mini-Kinetics: the classes that the parameters of VTN's Table 2 are of
_SIDE_PX: Final = 224


@dataclass(frozen=True)
class Measured:
    """`rule`: MACs as the paper's authors count them; None where that is what everybody does."""

    parameters: int
    macs: int
    rule: int | None = None

    def __add__(self, other: Measured) -> Measured:
        rule = None if self.rule is None or other.rule is None else self.rule + other.rule
        return Measured(self.parameters + other.parameters, self.macs + other.macs, rule)


@dataclass(frozen=True)
class Row:
    """A model of a paper's table; its printed figures in millions and in 10^9, None where it prints none."""

    table: str
    name: str
    measure: Callable[[], Measured]
    parameters: float | None
    gmacs: float | None


def of_network(
    name: str,
    library: Library = "timm",
    *,
    in_chans: int = 3,
    num_classes: int = CLASSES,
    options: Mapping[str, Any] | None = None,
    rule: bool = True,
) -> Measured:
    """A network on one input of its own size; `rule`: by VTN's as well."""
    with torch.device("meta"):
        network = build(name, library=library, in_chans=in_chans, num_classes=num_classes, options=options)
        images = torch.empty(1, *network.input.shape(in_chans))
        own = rule_macs(network, images) if rule else None
        return Measured(parameters(network), macs(network, images), own)


def online(kind: str, encoder: str, *, reads: str = "rgb", frames: int = 16, num_classes: int = CLASSES) -> Measured:
    """An end-to-end head of `kind`, with the defaults of its config, on one new frame."""
    shape = (frames, _SIDE_PX, _SIDE_PX, 3)
    with torch.device("meta"):
        network = {"name": encoder, "reads": reads}
        head: Any = heads.build(kind, {"clips": shape}, num_classes, network=network)
        model = Online(head.eval())
        frame = torch.empty(model.frame_shape, dtype=torch.uint8)
        state = model.begin(frame)
        trunk = build(encoder, layer=_last_map(encoder), pool=False)
        height, width = trunk.feature_shape[-2:]
        places = {head.head.embed: height * width} if hasattr(head.head, "embed") else {}
        own = rule_macs(model, frame, *state, places=places)
        return Measured(parameters(head), macs(model, frame, *state), own)


def kft(dims: str, num_classes: int = 101) -> Measured:
    """KFT and its trunk on one clip of 32 frames, with UCF101's classes."""
    with torch.device("meta"):
        trunk = build("kft_trunk", library="framepool", num_classes=0, layer="AvgPool", pool=False)
        before = Measured(parameters(trunk), macs(trunk, torch.empty(1, *trunk.input.shape(3))))
    head = heads.build("kft", {"maps": trunk.feature_shape}, num_classes, dims=dims).eval()  # picks rows by a mask
    rows = {"maps": torch.zeros(1, 1, *trunk.feature_shape)}, {"maps": torch.ones(1, 1, dtype=torch.bool)}
    return before + Measured(parameters(head), macs(head, *rows))


def _last_map(encoder: str) -> str:
    """The layer whose map the encoder pools."""
    return "conv_head" if encoder.startswith("mobilenet") else "layer4"


def _two(first: Callable[[], Measured], second: Callable[[], Measured]) -> Measured:
    return first() + second()


_TABLE_2: Final = "VTN (2019), Table 2"
_TABLE_5: Final = "VTN (2019), Table 5"
_TABLE_I: Final = "KFT (2020), Table I"
_FRAME: Final = partial(of_network, "resnet34")  # a classifier at each frame: the stream of colours in a fused model
ROWS: Final[tuple[Row, ...]] = (
    Row(_TABLE_2, "3D ResNet-34", partial(of_network, "r3d34", "framepool"), 63.5, 50.2),
    Row(_TABLE_2, "fused RGB + flow", partial(_two, _FRAME, partial(_FRAME, in_chans=32)), 42.8, 8.5),
    Row(_TABLE_2, "fused RGB + difference", partial(_two, _FRAME, partial(_FRAME, in_chans=48)), 42.9, 9.1),
    Row(_TABLE_2, "stacked LSTMs", partial(online, "stacked_lstm", "resnet34"), 27.6, 3.7),
    Row(_TABLE_2, "ResNet-34 VTN", partial(online, "vtn", "resnet34"), 29.0, 3.8),
    Row(_TABLE_5, "ResNet-34 VTN", partial(online, "vtn", "resnet34"), None, 3.77),
    Row(_TABLE_5, "ResNet-34 VTN, stacked", partial(online, "vtn", "resnet34", reads="stacked"), None, 3.88),
    Row(_TABLE_5, "ResNet-50 VTN", partial(online, "vtn", "resnet50"), None, 4.25),
    Row(_TABLE_5, "MobileNetV2 VTN", partial(online, "vtn", "mobilenetv2_100"), None, 0.4),
    Row(_TABLE_I, "KFT-3D", partial(kft, "3d"), None, None),
    Row(_TABLE_I, "KFT-2D", partial(kft, "2d"), None, None),
    Row(_TABLE_I, "KFT-1D", partial(kft, "1d"), None, None),
)
