"""The output of a named layer of a trunk instead of its last: pooled over space, time or tokens, or as the map it is.

    network = build("resnet50", weights=path, layer="layer3")                # (B, 1024)
    network = build("resnet50", weights=path, layer="layer3", pool=False)    # (B, 1024, 14, 14)

What comes after the layer is not run; under tracing and compilation it is, and removed as dead code.
Legend: B rows, C channels, T frames, H W height and width, N tokens.
"""

from __future__ import annotations

import difflib
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from extract.networks.weights import NetworkError


class _Reached(Exception):
    """The layer's output is there; the rest of the network need not run."""


class Layer(nn.Module):
    """``trunk`` up to the module called `path`; `shape` is that of one row.

    Which axis of a map has the channels is found once: the other axes keep the proportions of the input (Swin networks
    have channels last). Of three axes (B, N, C) those of the tokens are averaged, class tokens and all.
    """

    def __init__(self, trunk: nn.Module, path: str, input_shape: tuple[int, ...], *, pool: bool) -> None:
        """`input_shape`: (C, H, W) or (C, T, H, W). Raises `NetworkError` where there is no such layer."""
        super().__init__()
        self.trunk, self.path, self.pool = trunk, path, pool
        self._found: list[Tensor] = []
        self._axes: tuple[int, ...] = ()
        _module(trunk, path).register_forward_hook(self._keep)
        whole = output_shape(self, input_shape)
        if output_shape(self, input_shape, 2) != (2, *whole[1:]):
            raise NetworkError(
                f"layer {path!r} has no row of its own for each input: it sees parts of them, such as windows; "
                f"got {whole[0]} rows of one input; take the block that it is in"
            )
        if pool:
            self._axes = _pooled_axes(whole, input_shape)
        self.shape = tuple(n for axis, n in enumerate(whole) if axis and axis not in self._axes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) or (B, C, T, H, W) -> (B, *shape)."""
        with suppress(_Reached):
            self.trunk(x)
        if not self._found:
            raise NetworkError(f"layer {self.path!r} gives no tensor: it is not part of the way to the features")
        found = self._found.pop()
        return found.mean(dim=self._axes) if self._axes else found

    def _keep(self, module: nn.Module, args: Any, output: Any) -> None:
        output = output[0] if isinstance(output, tuple) and output else output
        if self._found or not isinstance(output, Tensor):  # of a module that is used twice, the first time
            return
        self._found.append(output)
        if not (torch.jit.is_tracing() or torch.compiler.is_compiling()):  # type: ignore[attr-defined, no-untyped-call]
            raise _Reached


def _module(trunk: nn.Module, path: str) -> nn.Module:
    there: dict[str, nn.Module] = {name: module for name, module in trunk.named_modules() if name}
    if path in there:
        return there[path]
    near = difflib.get_close_matches(path, there, n=3, cutoff=0)
    raise NetworkError(f"unknown layer: {path!r} of {type(trunk).__name__}; near: {', '.join(near)}")


def output_shape(module: nn.Module, input_shape: tuple[int, ...], inputs: int = 1) -> tuple[int, ...]:
    """(1, *F): of one input, or of several, that exist in shape alone. Raises `NetworkError` for what `module` cannot
    take."""
    try:
        return _shape(module, input_shape, inputs)
    except NetworkError:
        raise
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:  # each library has its own way
        shape = "x".join(map(str, input_shape))
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160].rstrip(".")
        raise NetworkError(f"{type(module).__name__} cannot take an input of {shape}: {reason}") from error


def _shape(module: nn.Module, input_shape: tuple[int, ...], inputs: int) -> tuple[int, ...]:
    parameter = next(module.parameters(), torch.empty(0))
    x = torch.empty(inputs, *input_shape, device=parameter.device, dtype=parameter.dtype)
    with torch.no_grad():
        if parameter.is_meta:
            return tuple(module(x).shape)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            return tuple(module(mode.from_tensor(x)).shape)


def _pooled_axes(shape: tuple[int, ...], input_shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) == 3:
        return (1,)
    height, width = input_shape[-2:]

    def a_picture(h: int, w: int) -> bool:
        return h * width == w * height

    axes = range(1, len(shape))
    last = len(shape) > 3 and a_picture(*shape[-3:-1]) and not a_picture(*shape[-2:])
    return tuple(axes[:-1] if last else axes[1:])
