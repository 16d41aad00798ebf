"""Parameters, MACs and sizes of a network, counted on the meta device: no weights, no memory, no time.

describe("resnet50")                             # {"parameters": 25557032, "macs": 4089184256, ...}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from extract.networks.libraries import Library, own_channels
from extract.networks.registry import build

PAPERS: tuple[tuple[str, Library], ...] = (
    ("resnet18", "timm"),
    ("resnet34", "timm"),
    ("resnet50", "timm"),
    ("resnet101", "timm"),
    ("resnet152", "timm"),
    ("inception_v3", "timm"),
    ("inception_resnet_v2", "timm"),
    ("seresnext101_32x4d", "timm"),
    ("mobilenetv2_100", "timm"),
    ("vgg16", "timm"),
    ("vgg16_audio", "framepool"),
    ("vggish", "framepool"),
    ("yamnet", "framepool"),
    ("r3d_18", "torchvision"),
    ("mc3_18", "torchvision"),
    ("r2plus1d_18", "torchvision"),
    ("s3d", "torchvision"),
    ("r3d34", "framepool"),
    ("i3d", "framepool"),
    ("kft_trunk", "framepool"),
    ("c3d", "framepool"),
    ("mvit_v2_s", "torchvision"),
    ("swin3d_t", "torchvision"),
)


def describe(name: str, library: Library = "timm", options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Of the whole classifier at its own input size, one input: parameters, MACs (convolutions, linear, matmul)."""
    with torch.device("meta"):
        network = build(name, library=library, options=options)
        images = torch.empty(1, *network.input.shape(own_channels(name, library)))
    return {
        "name": name,
        "library": library,
        "parameters": parameters(network),
        "macs": macs(network, images),
        "features": network.feature_dim,
        "input": list(images.shape[1:]),
    }


def parameters(module: nn.Module) -> int:
    """Trainable numbers; running statistics are not counted."""
    return sum(p.numel() for p in module.parameters())


def macs(module: nn.Module, *inputs: Any) -> int:
    """Multiply-accumulates of one forward pass: half of what torch's counter calls FLOPs. Attention goes the plain way,
    as the counter overlooks the fused one of a CPU."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return int(counter.get_total_flops()) // 2
