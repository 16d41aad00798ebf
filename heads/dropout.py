"""Dropout whose mask costs 16 random bits an element, and a linear layer behind it that asks for no memory.

At a drop rate of 0.9 over 64 units of 1280 dims torch's own mask is most of a training step on a CPU. The rate is
rounded to a multiple of 2^-16 and what is kept is scaled by the rounded rate, so the mean is exact. Other devices use
torch's own.

A classifier of 160,000 inputs by 400 classes has a gradient of 260 MB. Fresh memory of that size is made page by page,
which can take longer than the arithmetic; so masks, dropped inputs and gradients of a wide layer live as long as it.
Where at least four inputs of five are dropped and it has 64 outputs or more, it computes with the others alone
(`heads.sparse`).

    Dropout(0.9)(x)                                             # x (*,) -> (*,)
    DropoutLinear(163840, 400, 0.9)(x)                          # (B,D) -> (B,C)
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from heads.kinds import HEAVY
from heads.memory import Kept, parts
from heads.parallel import ranks

if TYPE_CHECKING:
    from heads.sparse import Sparse

_LEVELS: Final = 1 << 16
_WIDE: Final = 1 << 22  # weights from which on memory is kept
_OUTPUTS: Final = 64  # fewer do not fill the vectors of `heads.sparse`


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`; torch's global generator seeds what is drawn."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0 or input.device.type != "cpu":
            return super().forward(input)
        dropped = _dropped(self.p)
        keep = _Keep(dropped).into(torch.empty(input.shape, dtype=input.dtype))
        return input * keep.mul_(_LEVELS / (_LEVELS - dropped))


class _Keep:
    """Masks of what is kept. The bits are SFC64's, twice as fast as those of torch's Mersenne twister and of one thread
    as well; torch's global generator gives the seed."""

    def __init__(self, dropped: int) -> None:
        self.dropped = dropped
        self.bits = np.random.SFC64(int(torch.randint(2**63 - 1, ())))

    def into(self, mask: Tensor) -> Tensor:
        """`mask` with 1 for what is kept and 0 for the rest; each call gives another. In the type that it is used in:
        torch takes ten times as long to make numbers of bools."""
        levels = torch.from_numpy(self.bits.random_raw(-(-mask.numel() // 4)).view(np.int16))
        return torch.ge(levels[: mask.numel()].view(mask.shape), self.dropped - _LEVELS // 2, out=mask)


class DropoutLinear(nn.Linear):
    """`Dropout`, then `torch.nn.Linear`; a wide one trains, on a CPU and in one process, in memory that it keeps: in
    bf16 under autocast, or, where dropout is heavy, in fp32 with what is kept alone."""

    def __init__(self, in_features: int, out_features: int, p: float) -> None:
        super().__init__(in_features, out_features)
        self.dropout = Dropout(p)
        self.kept = Kept()
        self.sparse: Sparse | None = None  # from the first step on: its machine code takes a second to load
        if p >= HEAVY and self.weight.numel() >= _WIDE and out_features >= _OUTPUTS:
            self.weight = nn.Parameter(self.weight.detach().t().contiguous().t())  # an input's weights side by side

    def forward(self, *inputs: Tensor) -> Tensor:
        """(B,D1), (B,D2), ... side by side -> (B,C)."""
        narrow = self.weight.numel() < _WIDE or self.dropout.p == 0 or ranks().count > 1  # others wait for gradients
        if narrow or not self.training or inputs[0].device.type != "cpu" or not torch.is_grad_enabled():
            return super().forward(self.dropout(torch.cat(inputs, dim=1) if len(inputs) > 1 else inputs[0]))
        way = _Wide if self.weight.is_contiguous() else _Heavy
        logits: Tensor = way.apply(self, self.weight, self.bias, *inputs)
        return logits


class _Wide(torch.autograd.Function):
    """y = s (x * keep) W^T + b, with s for what is dropped; W's gradient is put in its place, not handed on."""

    @staticmethod
    def forward(ctx: Any, layer: DropoutLinear, weight: Tensor, bias: Tensor, *inputs: Tensor) -> Tensor:
        kept, shape = layer.kept, (len(inputs[0]), layer.in_features)
        ctx.number = kept.forward()
        dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32
        with torch.autocast("cpu", enabled=False):
            dropped = _dropped(layer.dropout.p)
            keep, used = kept("keep", shape, dtype), kept("used", shape, dtype)
            masks, ends = _Keep(dropped), list(accumulate(x.shape[1] for x in inputs))
            for part in parts(used):
                masks.into(keep[part])
                for x, end in zip(inputs, ends, strict=True):
                    used[part, end - x.shape[1] : end].copy_(x.detach()[part])
                used[part].mul_(keep[part])
            matrix = weight.detach()
            if dtype != matrix.dtype:
                matrix = kept("matrix", tuple(weight.shape), dtype).copy_(matrix)
            ctx.scale, ctx.sizes = _LEVELS / (_LEVELS - dropped), [x.shape[1] for x in inputs]
            ctx.kept, ctx.weight, ctx.parts = kept, weight, (keep, used, matrix)
            logits: Tensor = (used @ matrix.t()).float().mul_(ctx.scale).add_(bias.detach())
            return logits

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (keep, used, matrix), kept, weight = ctx.parts, ctx.kept, ctx.weight
        kept.backward(ctx.number)
        scaled = (grads[0] * ctx.scale).to(used.dtype)  # (B,C)
        first = weight.grad is None  # else those of the batch's parts add up, and the first one's memory is in use
        grad = kept("grad" if first else "more grad", tuple(weight.shape))
        if used.dtype == grad.dtype:
            torch.mm(scaled.t(), used, out=grad)
        else:
            grad.copy_(torch.mm(scaled.t(), used, out=kept("rough grad", tuple(weight.shape), used.dtype)))
        weight.grad = grad if first else weight.grad.add_(grad)
        if not any(ctx.needs_input_grad[3:]):  # of units that only average nothing is learnt
            return None, None, grads[0].sum(dim=0), *(None for _ in ctx.sizes)
        rough = torch.mm(scaled, matrix, out=kept("rough back", tuple(used.shape), used.dtype))
        back = kept("back", tuple(used.shape))
        for part in parts(back):
            back[part].copy_(rough[part].mul_(keep[part]))
        return None, None, grads[0].sum(dim=0), *back.split(ctx.sizes, dim=1)


class _Heavy(torch.autograd.Function):
    """As `_Wide`, in fp32, of what is kept."""

    @staticmethod
    def forward(ctx: Any, layer: DropoutLinear, weight: Tensor, bias: Tensor, *inputs: Tensor) -> Tensor:
        from heads.sparse import Sparse

        layer.sparse = layer.sparse or Sparse()
        levels = _LEVELS - _dropped(layer.dropout.p)
        ctx.scale, ctx.layer, ctx.weight = _LEVELS / levels, layer, weight
        logits: Tensor = layer.sparse.forward(levels, inputs, weight.detach().t())
        ctx.passes = layer.sparse.passes
        return logits.mul_(ctx.scale).add_(bias.detach())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        layer, weight, needed = ctx.layer, ctx.weight, any(ctx.needs_input_grad[3:])
        if layer.sparse.passes != ctx.passes:
            raise RuntimeError("a forward pass of this layer came between another and its way back")
        first = weight.grad is None
        grad = layer.kept("grad" if first else "more grad", tuple(weight.t().shape))
        back = layer.sparse.backward(grads[0] * ctx.scale, weight.detach().t(), grad, needed=needed)
        weight.grad = grad.t() if first else weight.grad.add_(grad.t())
        return None, None, grads[0].sum(dim=0), *(back or (None for _ in ctx.needs_input_grad[3:]))


def _dropped(p: float) -> int:
    """Of 2^16 levels."""
    return min(round(p * _LEVELS), _LEVELS - 1)
