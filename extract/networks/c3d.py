"""C3D: eight convolutions of 3 x 3 x 3 and two dense layers, on clips of 16 frames.

"Learning Spatiotemporal Features with 3D Convolutional Networks" (ICCV 2015), §3.1 and fig. 3; names as in its Caffe
model and in PyTorch ports of it (conv1, conv2, conv3a ... fc8), so that their state dicts load by key. Its features are
those of ``layer: fc6``, which like fc7 ends in a ReLU. It reads 112 x 112 crops, values of 0 to 255 less a mean; the
paper subtracts a mean clip, ports of it the colour (104, 117, 128).

    network = build("c3d", library="framepool", weights="c3d.pth", layer="fc6")
    network.trunk(clips)                             # (B, 3, 16, 112, 112) -> (B, 4096)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final

from torch import Tensor, nn
from torch.nn import functional as F

from extract.networks.conv3d import Conv3d
from extract.networks.spec import InputSpec

_LAYERS: Final = (
    *(("conv1", 64), ("pool1", 0), ("conv2", 128), ("pool2", 0), ("conv3a", 256), ("conv3b", 256), ("pool3", 0)),
    *(("conv4a", 512), ("conv4b", 512), ("pool4", 0), ("conv5a", 512), ("conv5b", 512), ("pool5", 0)),
)


class Rectified(nn.Linear):
    """A dense layer that ends in its ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        """(B,D) -> (B,D')."""
        return F.relu(super().forward(x))


class C3d(nn.Module):
    """79,991,015 parameters with the 487 classes of Sports-1M. `dropout` is between the dense layers."""

    spec: ClassVar = InputSpec(112, (104 / 255, 117 / 255, 128 / 255), (1 / 255,) * 3, "bilinear", 112 / 128, frames=16)
    channels: ClassVar = 3
    feature_dim = 4096

    def __init__(self, in_chans: int = 3, dropout: float = 0.5) -> None:
        super().__init__()
        size = in_chans
        for name, width in _LAYERS:
            if width:
                self.add_module(name, Conv3d(size, width, 3, padding=1))
                size = width
            else:
                kernel = (1, 2, 2) if name == "pool1" else (2, 2, 2)
                self.add_module(name, nn.MaxPool3d(kernel, padding=(0, 1, 1) if name == "pool5" else 0))
        self.fc6, self.fc7 = Rectified(8192, 4096), Rectified(4096, 4096)
        self.dropout = nn.Dropout(dropout)
        self.fc: nn.Module = nn.Linear(4096, 487)

    def forward(self, clips: Tensor) -> Tensor:
        """(B,C,16,112,112) -> (B,487) logits, or what else `fc` makes of (B,4096)."""
        x = clips
        for name, _ in _LAYERS:
            x = self.get_submodule(name)(x)
            if name.startswith("conv"):
                x = F.relu(x)
        x = self.dropout(self.fc6(x.flatten(1)))
        logits: Tensor = self.fc(self.dropout(self.fc7(x)))
        return logits

    def adopt(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """Public state dicts, whose classifier is fc8, of any number of classes."""
        found = {key.replace("fc8.", "fc.") if key.startswith("fc8.") else key: value for key, value in state.items()}
        if "fc.weight" in found and found["fc.weight"].ndim == 2:
            classes, size = found["fc.weight"].shape
            self.fc = nn.Linear(size, classes)
        return found, ()
