"""3D ResNet-34: the residual network of pictures with every kernel along time, too.

"Learning Spatio-Temporal Features with 3D Residual Networks" (Hara et al., ICCV workshops 2017), with the stem as long
in time as in space, as VTN (Kozlov et al., 2019), Table 2, counts it: 7x7x7, which keeps every frame, a max-pool, then
stages that halve time, height and width. Shortcuts where shapes change: B, a 1x1x1 convolution, which ImageNet's
weights have; or A, without weights, every other place and zeros for new channels. Keys are those of torchvision's and
timm's `resnet34`, so that their weights inflate by key.

    network = build("r3d34", library="framepool", weights="resnet34.pth")     # of pictures: inflated
    network.trunk(clips)                                                      # (B, 3, 16, 224, 224) -> (B, 512)

Legend: B clips, C D channels, T frames, H W height and width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from extract.networks.conv3d import Conv3d
from extract.networks.inflate import inflate
from extract.networks.spec import InputSpec
from extract.networks.weights import NetworkError

_STAGES: Final = ((64, 3), (128, 4), (256, 6), (512, 3))  # channels, blocks


class Subsample(nn.Module):
    """Shortcut A: every other place, zeros for the channels that are new."""

    def __init__(self, stride: int, more: int) -> None:
        super().__init__()
        self.stride, self.more = stride, more

    def forward(self, maps: Tensor) -> Tensor:
        """(B,C,T,H,W) -> (B,C+more,T/stride,H/stride,W/stride)."""
        s = self.stride
        return F.pad(maps[:, :, ::s, ::s, ::s], (0, 0, 0, 0, 0, 0, 0, self.more))


class Block(nn.Module):
    """Two 3x3x3 convolutions and a shortcut."""

    def __init__(self, size: int, following: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = Conv3d(size, following, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm3d(following)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = Conv3d(following, following, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(following)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or size != following:
            projection = Conv3d(size, following, 1, stride, bias=False), nn.BatchNorm3d(following)
            self.downsample = nn.Sequential(*projection) if shortcut == "B" else Subsample(stride, following - size)

    def forward(self, maps: Tensor) -> Tensor:
        """(B,C,T,H,W) -> (B,D,T',H',W')."""
        found = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(maps)))))
        out: Tensor = self.relu(found + self.downsample(maps))
        return out


class R3d34(nn.Module):
    """63.5 million parameters. `classes` are those of the weights: ImageNet's 1000 where they are of pictures."""

    spec: ClassVar = InputSpec(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", 0.875, frames=16)
    channels: ClassVar = 3
    pictures: ClassVar = "resnet34"  # the network of torchvision's that it is made of
    feature_dim = 512

    def __init__(self, in_chans: int = 3, shortcut: Literal["A", "B"] = "B", classes: int = 1000) -> None:
        super().__init__()
        if shortcut not in ("A", "B"):
            raise NetworkError(f"options do not fit: r3d34: shortcut: expected A or B, got {shortcut!r}")
        self.conv1 = Conv3d(in_chans, 64, 7, (1, 2, 2), padding=3, bias=False)
        self.bn1, self.relu = nn.BatchNorm3d(64), nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d(3, 2, padding=1)
        size = 64
        for number, (width, blocks) in enumerate(_STAGES, 1):
            stage = nn.Sequential()
            for k in range(blocks):
                stage.append(Block(size, width, 2 if k == 0 and number > 1 else 1, shortcut))
                size = width
            self.add_module(f"layer{number}", stage)
        self.fc: nn.Module = nn.Linear(size, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, clips: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> (B, classes), or what else `fc` makes of (B, 512)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(clips))))
        for number in range(1, len(_STAGES) + 1):
            x = self.get_submodule(f"layer{number}")(x)
        logits: Tensor = self.fc(x.mean(dim=(2, 3, 4)))
        return logits

    def adopt(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """What of a public `state` is for this network: all of it, inflated where it is of pictures."""
        flat = "conv1.weight" in state and state["conv1.weight"].ndim == 4
        return (inflate(state, self.state_dict()) if flat else dict(state)), ()
