"""TV-L1 flow of many pairs at once in torch, for CUDA; the steps and constants of `extract.tvl1`, where the papers are.

A batch iterates until the last of its pairs has come to rest, but a pair at rest no longer changes: what is found for a
pair does not depend on its company.

    flows = tvl1_batch(first, second)      # uint8 (B, H, W) twice -> float32 (B, 2, H, W), x then y, px

Shapes: B pairs, H W of one scale. The dual variable p is (B, component of the flow, axis of the derivative, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from extract.tvl1 import EPSILON, INNER, KEYS, LAMBDA, OUTER, SCALE_STEP, TAU, THETA, WARPS, check, sizes

TINY = torch.finfo(torch.float32).eps  # a squared gradient that is none
BORDER = 4  # zeros around what is warped
# Comparisons that put 5 in order.
ORDER = ((0, 1), (3, 4), (2, 4), (2, 3), (0, 3), (0, 2), (1, 4), (1, 3), (1, 2))


@torch.no_grad()
def tvl1_batch(first: Tensor, second: Tensor) -> Tensor:
    """The motion from `first` to `second`, uint8 (B, H, W) on one device: float32 (B, 2, H, W) there, x then y, px.

    Raises:
        UserError: not two batches of grey pictures of one size, of SMALLEST_PX a side or more.
    """
    check(first, second, 3)
    firsts, seconds = [first.float()], [second.float()]
    for size in sizes(*first.shape[-2:])[1:]:
        step = (1 / SCALE_STEP, 1 / SCALE_STEP)
        firsts.append(_resized(firsts[-1], size, step))
        seconds.append(_resized(seconds[-1], size, step))
    flow = torch.zeros_like(firsts[-1]).unsqueeze(1).repeat(1, 2, 1, 1)
    for here, there in zip(reversed(firsts), reversed(seconds), strict=True):
        (h, w), (finer_h, finer_w) = flow.shape[-2:], here.shape[-2:]
        if (h, w) != (finer_h, finer_w):
            flow = _resized(flow, (finer_h, finer_w), (h / finer_h, w / finer_w)) / SCALE_STEP
        flow = _one_scale(here, there, flow)
    return flow


def _resized(planes: Tensor, size: Sequence[int], steps: tuple[float, float]) -> Tensor:
    """Bilinear (..., *size): output pixel centres are `steps` input pixels apart."""
    for dim, length, step in ((-1, size[1], steps[1]), (-2, size[0], steps[0])):
        position = ((torch.arange(length, dtype=torch.float64, device=planes.device) + 0.5) * step - 0.5).clamp(min=0)
        at = position.long().clamp(max=planes.shape[dim] - 2)
        part = (position - at).clamp(max=1).float()
        part = part if dim == -1 else part[:, None]
        near, far = planes.index_select(dim, at), planes.index_select(dim, at + 1)
        planes = near + part * (far - near)
    return planes


def _one_scale(first: Tensor, second: Tensor, u: Tensor) -> Tensor:
    """The flow (B, 2, H, W) that begins as `u`, at one scale."""
    p = u.new_zeros(len(u), 2, 2, *u.shape[-2:])
    moving = _with_gradients(second)
    enough = EPSILON * EPSILON * first[0].numel()
    for _ in range(WARPS):
        gradient, rho, inverse = _warped(first, moving, u)
        active = torch.ones(len(u), dtype=torch.bool, device=u.device)
        for iteration in range(OUTER * INNER):
            going = active.view(-1, 1, 1, 1)
            if iteration % INNER == 0:
                u = torch.where(going, _median(u), u)
            now, moved = _primal(u, p, gradient, rho, inverse)
            u = torch.where(going, now, u)
            p = torch.where(going.unsqueeze(1), _dual(u, p), p)
            active = active & (moved > enough)
            if not active.any():
                break
    return u


def _with_gradients(picture: Tensor) -> Tensor:
    """(B, 3, H + 8, W + 8) in a border of zeros: the picture and its centred differences in x and y."""
    wide = F.pad(picture.unsqueeze(1), (1, 1, 1, 1), mode="replicate").squeeze(1)
    across = (wide[:, 1:-1, 2:] - wide[:, 1:-1, :-2]) / 2
    down = (wide[:, 2:, 1:-1] - wide[:, :-2, 1:-1]) / 2
    return F.pad(torch.stack([picture, across, down], 1), (BORDER,) * 4)


def _cubic(t: Tensor) -> list[Tensor]:
    """Weights of the 4 pixels around a position that is `t` right of the second (Keys 1981)."""
    r = 1 - t
    near = [((KEYS + 2) * s - (KEYS + 3)) * s * s + 1 for s in (t, r)]
    return [KEYS * t * r * r, *near, KEYS * r * t * t]


def _warped(first: Tensor, moving: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Linearised around u: gradient (B, 2, H, W), constant part of the residual and 1 / |gradient|^2 (B, 1, H, W)."""
    h, w = first.shape[-2:]
    x = (torch.arange(w, device=u.device) + u[:, 0]).clamp(-3, w + 1)
    y = (torch.arange(h, device=u.device)[:, None] + u[:, 1]).clamp(-3, h + 1)
    left, top = x.floor(), y.floor()
    across, down = _cubic(x - left), _cubic(y - top)
    wide = moving.shape[-1]
    at = (top.long() + BORDER - 1) * wide + left.long() + BORDER - 1  # the first of the 4x4 pixels
    flat, found = moving.flatten(2), torch.zeros_like(moving[..., :h, :w])
    for row in range(4):
        for column in range(4):
            taps = (at + row * wide + column).flatten(1).unsqueeze(1).expand(-1, 3, -1)
            found += (down[row] * across[column]).unsqueeze(1) * flat.gather(2, taps).view_as(found)
    gradient = found[:, 1:]
    rho = found[:, :1] - (gradient * u).sum(1, keepdim=True) - first.unsqueeze(1)
    return gradient, rho, 1 / gradient.square().sum(1, keepdim=True).clamp(min=TINY)


def _primal(u: Tensor, p: Tensor, gradient: Tensor, rho: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """The next flow, and how far each pair moved: (B,) sum of squares, px^2."""
    step = (-(rho + (gradient * u).sum(1, keepdim=True)) * inverse).clamp(-LAMBDA * THETA, LAMBDA * THETA)
    divergence = p[:, :, 0] + p[:, :, 1]
    divergence[..., 1:] -= p[:, :, 0, :, :-1]
    divergence[..., 1:, :] -= p[:, :, 1, :-1]
    now = u + step * gradient + THETA * divergence
    # In float64 the order of the sum, which a batch of another size changes, does not decide who is at rest.
    return now, (now - u).square().sum((1, 2, 3), dtype=torch.float64)


def _dual(u: Tensor, p: Tensor) -> Tensor:
    """The next p, by a semi-implicit step along the gradient of the flow."""
    gradient = torch.zeros_like(p)
    gradient[:, :, 0, :, :-1] = u[..., 1:] - u[..., :-1]
    gradient[:, :, 1, :-1] = u[..., 1:, :] - u[..., :-1, :]
    length = gradient.square().sum(2, keepdim=True).sqrt()
    return (p + TAU / THETA * gradient) / (1 + TAU / THETA * length)


def _median(u: Tensor) -> Tensor:
    """5x5 median of (B, 2, H, W); beyond the border its nearest pixel stands. How: see `extract.tvl1`."""
    h, w = u.shape[-2:]
    wide = F.pad(u, (2, 2, 2, 2), mode="replicate")
    columns = _ordered([wide[..., k : k + h, :] for k in range(5)])
    rows = [_ordered([column[..., k : k + w] for k in range(5)]) for column in columns]
    low, high = rows[0][3], rows[1][4]
    for k in range(1, 4):
        low, high = torch.maximum(low, rows[k][3 - k]), torch.minimum(high, rows[k + 1][4 - k])
    _, b, c, d, _ = _ordered([rows[k][4 - k] for k in range(5)])
    low, high = torch.minimum(low, high), torch.maximum(low, high)
    return torch.maximum(b, torch.maximum(torch.minimum(c, high), torch.minimum(d, low)))


def _ordered(five: Sequence[Tensor]) -> list[Tensor]:
    found = list(five)
    for i, j in ORDER:
        found[i], found[j] = torch.minimum(found[i], found[j]), torch.maximum(found[i], found[j])
    return found
