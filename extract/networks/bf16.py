"""bf16 where the processor multiplies in it, fp32 where it does not.

A CPU without AVX-512 and a GPU before Ampere have no instructions for bf16. Torch imitates it there: on such a CPU a
product of matrices takes a hundred times as long as in fp32 (torch 2.14, AVX2), and torch's own LSTM refuses it. So
fp32 takes its place, as it does in OpenVINO: faster there, and nearer to the truth.

    with autocast(device, precision):
        logits = head(features, masks).float()
"""

from __future__ import annotations

import torch


def has_bf16(device: torch.device) -> bool:
    """Whether products in bf16 are of the processor's own."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    on_cpu = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(on_cpu and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Products are in bf16 inside, if that is the `precision` and `device` has it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16" and has_bf16(device))
