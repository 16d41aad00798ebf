"""Weights of a 2D network for the 3D network made of it: each kernel repeated along time, or put in its middle.

"Quo Vadis, Action Recognition?" (CVPR 2017), §2.4.1: a kernel N frames long is the 2D kernel N times, divided by N, so
that a still clip gives what the picture gave. ``centre`` leaves the 2D kernel as it is in the middle frame and zeros in
the others: at first each frame is seen by itself, and motion is for training to find.

Zeros that pad a clip in time are no part of the still: with ``mean`` features agree where no kernel on the way has
reached over either end, with ``centre`` at every frame.

    taken = inflate(load_state(Path("resnet34.pth"))[0], network_3d.state_dict(), "mean")

Legend: O I channels out and in, T frames, H W of a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from extract.networks.weights import NetworkError

Inflation = Literal["mean", "centre"]


def inflated(kernel: Tensor, frames: int, how: Inflation = "mean") -> Tensor:
    """(O,I,H,W) -> (O,I,T,H,W) with T = `frames`. The middle of an even number is the later one of the two."""
    if how == "mean":
        return (kernel / frames).unsqueeze(2).repeat(1, 1, frames, 1, 1)
    whole = kernel.new_zeros(*kernel.shape[:2], frames, *kernel.shape[2:])
    whole[:, :, frames // 2] = kernel
    return whole


def inflate(
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    how: Inflation = "mean",
    name: Callable[[str], str | None] = lambda key: key,
) -> dict[str, Tensor]:
    """What the 3D network with the state dict `own` takes of the 2D `state`: kernels inflated, all else as it is.

    `name` gives the 2D key of a 3D one, and None for what begins at random. 2D keys that nobody asks for are left.
    Kernels of 3 input channels fit any number of them, see `weights.across_channels`. Raises `NetworkError` where a key
    is not there or its shape is another.
    """
    found: dict[str, Tensor] = {}
    for key, value in own.items():
        source = name(key)
        if source is None:
            continue
        if source not in state and key.endswith("num_batches_tracked"):  # which old files lack
            found[key] = value
            continue
        if source not in state:
            raise NetworkError(f"weights do not inflate: they lack {source!r}, which becomes {key!r}")
        flat = state[source]
        whole = inflated(flat, value.shape[2], how) if value.ndim == 5 and flat.ndim == 4 else flat
        expected = (*whole.shape[:1], *value.shape[1:2], *whole.shape[2:])  # channels in may differ
        if value.shape != whole.shape and not (whole.ndim == 5 and whole.shape[1] == 3 and value.shape == expected):
            raise NetworkError(
                f"weights do not inflate: {source} becomes {key}: expected {list(value.shape)}, got {list(whole.shape)}"
            )
        found[key] = whole.to(torch.float32) if whole.is_floating_point() else whole
    return found
