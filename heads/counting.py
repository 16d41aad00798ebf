"""What a model costs a frame, by the rule of VTN's authors, so that the figures of its tables can be had again.

"Lightweight Network Architecture for Real-Time Action Recognition" (Kozlov et al., 2019) counts in Tables 1, 2 and 5
one new frame through the encoder and the decoder on 16 embeddings, and goes beyond multiply-accumulates in ways that
the authors' `model_summary.py` shows:

    convolution          (k^2 * C_in + 1) * C_out at each place, over groups twice where it has some
    batch norm, ReLU     1 an output number; max-pool: k^2; those of pictures alone, and ReLU6 is none
    linear               (in + 1) * out a row
    Q, K, V              3 * H * d * T * H for H heads of a block of d numbers: in truth 3 * d * d * T
    attention            H * T * (d / H) * T + 2 * H * T^3
    LSTM                 one step of time
    layer norm, positions, additions: nothing

What is run indeed is counted by `extract.networks.describe.macs`.
Legend: H heads, d numbers, T tokens, k side of a kernel.

    rule_macs(network, torch.empty(1, 3, 224, 224, device="meta"))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from heads.vtn import Attention, Block

Count = Callable[[Any, Tensor, Any], int]  # module, its input, its output


def _convolution(module: Any, _: Tensor, output: Tensor) -> int:
    taps = prod(module.kernel_size) * module.in_channels // module.groups + 1
    return int(taps * output[0].numel() // module.groups)


def _pooling(module: Any, _: Tensor, output: Tensor) -> int:
    return int(module.kernel_size**2 * output[0].numel())


def _linear(module: Any, rows: Tensor, _: Any) -> int:
    return int((module.in_features + 1) * module.out_features * (rows[0].numel() // module.in_features))


def _lstm(module: Any, _: Tensor, __: Any) -> int:
    sizes = [module.input_size, *[module.hidden_size] * (module.num_layers - 1)]
    return sum(4 * module.hidden_size * (size + module.hidden_size) for size in sizes)


def _attention(module: Any, rows: Tensor, _: Any) -> int:
    h, (t, d) = module.heads, rows.shape[1:]
    return int(3 * h * d * t * h + h * t * (d // h) * t + 2 * h * t**3)


def _block(module: Any, rows: Tensor, _: Any) -> int:
    return int(rows.shape[1] * module.wide.out_features)  # the ReLU between its linear layers, which is no module


def _output(_: Any, __: Tensor, output: Tensor) -> int:
    return output[0].numel()


_RULES: Final[tuple[tuple[type[nn.Module], Count], ...]] = (
    (_ConvNd, _convolution),
    (nn.BatchNorm2d, _output),
    (nn.ReLU, _output),
    (nn.MaxPool2d, _pooling),
    (nn.Linear, _linear),
    (nn.LSTM, _lstm),
    (Attention, _attention),
    (Block, _block),
)


def rule_macs(module: nn.Module, *inputs: Any, places: Mapping[nn.Module, int] | None = None) -> int:
    """The count of one forward pass of `module`. A linear layer in `places` counts as often as is told: the authors'
    1x1 convolution stands before the pooling, where ours, after it, gives the same."""
    total = 0
    inside = {part for whole in module.modules() if isinstance(whole, Attention) for part in whole.children()}

    def counting(count: Count) -> Callable[..., None]:
        def hook(part: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            nonlocal total
            total += count(part, args[0], output) * (places or {}).get(part, 1)

        return hook

    handles = [
        part.register_forward_hook(counting(count))
        for part in module.modules()
        if part not in inside
        for kind, count in _RULES
        if isinstance(part, kind)
    ]
    try:
        with torch.no_grad():
            module(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return total
