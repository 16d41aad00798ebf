"""The small CNN that looks at the frames of Flash-MNIST.

"Attention Clusters" (CVPR 2018), §4.1: two convolutions with max-pooling and ReLU, 50 numbers, 11 classes. The dropouts
are those of the authors' code (longxiang92/Flash-MNIST), which the paper does not tell of; the code also sends the 50
numbers through a log-softmax before anything reads them, while the paper speaks of what ReLU leaves.

    network = build("flash_cnn", library="framepool", num_classes=11, options={"feature_norm": "none"})
    network.trunk(images)                            # (B, 1, 28, 28) -> (B, 50)
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from extract.networks.spec import InputSpec
from extract.networks.weights import NetworkError


class FlashCnn(nn.Module):
    """21,891 parameters. `feature_norm` is what the 50 numbers go through: nothing, or a log-softmax."""

    spec: ClassVar = InputSpec(28, (0.1307,), (0.3081,), "bilinear", 1.0)  # mean and deviation of MNIST's pictures
    feature_dim = 50

    def __init__(self, feature_norm: Literal["none", "log_softmax"] = "none") -> None:
        super().__init__()
        if feature_norm not in ("none", "log_softmax"):
            got = repr(feature_norm)
            raise NetworkError(f"options do not fit: flash_cnn: feature_norm: expected none or log_softmax, got {got}")
        self.conv1, self.conv2 = nn.Conv2d(1, 10, 5), nn.Conv2d(10, 20, 5)
        self.whole_maps = nn.Dropout2d()
        self.fc1, self.dropout = nn.Linear(320, 50), nn.Dropout()
        self.norm = nn.LogSoftmax(dim=1) if feature_norm == "log_softmax" else nn.Identity()
        self.fc: nn.Module = nn.Linear(50, 11)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, 28, 28) -> (B, 11) logits, or what else `fc` makes of (B, 50)."""
        x = F.relu(F.max_pool2d(self.conv1(images), 2))  # (B, 10, 12, 12)
        x = F.relu(F.max_pool2d(self.whole_maps(self.conv2(x)), 2))  # (B, 20, 4, 4)
        x = self.norm(self.dropout(F.relu(self.fc1(x.flatten(1)))))
        logits: Tensor = self.fc(x)
        return logits
