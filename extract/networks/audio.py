"""Networks for sound that no library has: YAMNet, VGGish, and VGG-16 on log-mel patches.

- yamnet: MobileNetV1 of AudioSet (tensorflow/models, research/audioset/yamnet), batch norms folded into convolutions;
  1024 numbers, 521 classes (logits: their sigmoid is the score). Trained with ``log(mel + 0.001)``.
- vggish: "CNN Architectures for Large-Scale Audio Classification" (ICASSP 2017) as AudioSet released it; 128 numbers
  before the PCA. Keys as in the PyTorch port harritaylor/torchvggish. Trained with ``log(mel + 0.01)``.
- vgg16_audio: VGG-16 as "Attention Clusters" (CVPR 2018), §4, hears Kinetics. The paper names neither how three
  channels become one nor the layer of the features: the first is cross-modality initialisation, the second an option.

Every one reads (B, 1, 96, 64): patches of 96 frames of 10 ms, 64 mel bands.

    network = build("yamnet", library="framepool", weights="yamnet_folded_fp32.npz")
    network.trunk(patches)                           # (B, 1024)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import ClassVar, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from extract.networks.weights import NetworkError

_YAMNET: Final = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
_VGG16: Final = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")
_VGGISH: Final = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M")


class Yamnet(nn.Module):
    """Layer 1 a convolution, layers 2 to 14 depthwise then pointwise; ReLU after each; the mean over time and bands."""

    feature_dim = 1024

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = _Same(1, 32, stride=2)
        width = 32
        for number, (wider, stride) in enumerate(_YAMNET, 2):
            self.add_module(f"layer{number}_dw", _Same(width, width, stride=stride, groups=width))
            self.add_module(f"layer{number}_pw", nn.Conv2d(width, wider, 1))
            width = wider
        self.fc: nn.Module = nn.Linear(width, 521)
        _initialise(self)

    def forward(self, patches: Tensor) -> Tensor:
        """(B, 1, 96, 64) -> (B, 521) logits, or what else `fc` makes of (B, 1024)."""
        x = patches
        for name, layer in self.named_children():
            if name != "fc":
                x = F.relu(layer(x))
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


class Vggish(nn.Module):
    """Four blocks of convolutions, three linear layers, ReLU after each."""

    feature_dim = 128

    def __init__(self) -> None:
        super().__init__()
        self.features = _vgg(_VGGISH)
        sizes = (512 * 6 * 4, 4096, 4096, 128)
        self.embeddings = nn.Sequential()
        for size, following in pairwise(sizes):
            self.embeddings.extend((nn.Linear(size, following), nn.ReLU()))
        self.classifier: nn.Module = nn.Identity()
        _initialise(self)

    def adopt(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """What of a public `state` is for this network: all but the PCA that some ports keep beside it."""
        return {key: value for key, value in state.items() if not key.startswith("pproc.")}, ()

    def forward(self, patches: Tensor) -> Tensor:
        """(B, 1, 96, 64) -> (B, 128)."""
        maps = self.features(patches)  # (B, 512, 6, 4)
        flat = maps.permute(0, 2, 3, 1).flatten(1)  # channels last, as TensorFlow trained it
        embedding: Tensor = self.classifier(self.embeddings(flat))
        return embedding


class Vgg16Audio(nn.Module):
    """VGG-16's convolutions on one channel, then the 4096 numbers of ``fc7``, or the 512 of an average ``pool``."""

    pictures: ClassVar = "vgg16"  # the network of torchvision's whose weights it begins with

    def __init__(self, feature: Literal["fc7", "pool"] = "fc7") -> None:
        super().__init__()
        if feature not in ("fc7", "pool"):
            raise NetworkError(f"options do not fit: vgg16_audio: feature: expected fc7 or pool, got {feature!r}")
        self.features = _vgg(_VGG16)
        if feature == "pool":
            self.head, self.feature_dim = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), 512
        else:
            fc6, fc7 = nn.Linear(512 * 3 * 2, 4096), nn.Linear(4096, 4096)
            self.head = nn.Sequential(nn.Flatten(), fc6, nn.ReLU(), nn.Dropout(), fc7, nn.ReLU())
            self.feature_dim = 4096
        self.classifier: nn.Module = nn.Identity()
        _initialise(self)

    def forward(self, patches: Tensor) -> Tensor:
        """(B, 1, 96, 64) -> (B, 4096) or (B, 512)."""
        features: Tensor = self.classifier(self.head(self.features(patches)))  # of maps (B, 512, 3, 2)
        return features

    def adopt(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """What of a public `state` is for this network, and what it lacks: a VGG-16 for pictures has the convolutions,
        and linear layers for maps of another size, in whose place the random ones stay."""
        convolutions = {key: value for key, value in state.items() if key.startswith("features.")}
        if state.get("features.0.weight", torch.empty(0, 1)).shape[1] != 3:
            return dict(state), ()
        return convolutions, tuple(key for key in self.state_dict() if not key.startswith("features."))


NETWORKS: Final[Mapping[str, Callable[..., nn.Module]]] = MappingProxyType(
    {"vgg16_audio": Vgg16Audio, "vggish": Vggish, "yamnet": Yamnet}
)


class _Same(nn.Conv2d):
    """3 x 3 with TensorFlow's SAME padding of even sizes: at stride 2 one row below and one column to the right."""

    def __init__(self, size: int, following: int, *, stride: int, groups: int = 1) -> None:
        super().__init__(size, following, 3, stride=stride, padding=1 if stride == 1 else 0, groups=groups)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, (0, 1, 0, 1)) if self.stride == (2, 2) else input)


def _vgg(plan: tuple[int | str, ...]) -> nn.Sequential:
    layers, channels = nn.Sequential(), 1
    for width in plan:
        if isinstance(width, int):
            layers.extend((nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()))
            channels = width
        else:
            layers.append(nn.MaxPool2d(2))
    return layers


def _initialise(module: nn.Module) -> None:
    """He et al. (ICCV 2015): without batch norms, torch's own start would fade on the way through these layers."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
