"""TV-L1 flow again, slowly: plain numpy, one line a step, no trick. What the fast versions are held against.

    flow = slow_tvl1(first, second)      # uint8 (H, W) twice -> float32 (2, H, W)

Algorithm 1 of Sánchez, Meinhardt-Llopis, Facciolo (IPOL 2013) with the parameters of OpenCV's DualTVL1OpticalFlow.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

Plane = npt.NDArray[np.float32]
TAU, LAMBDA, THETA, EPSILON = (np.float32(x) for x in (0.25, 0.15, 0.3, 0.01))
FLT_EPSILON = np.finfo(np.float32).eps


def slow_tvl1(first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8]) -> Plane:
    pyramid = [(first.astype(np.float32), second.astype(np.float32))]
    while len(pyramid) < 5:
        h, w = (round(side * 0.8) for side in pyramid[-1][0].shape)
        if h < 16 or w < 16:
            break
        here, there = (resize(picture, (h, w), (1.25, 1.25)) for picture in pyramid[-1])
        pyramid.append((here, there))
    u = np.zeros((2, *pyramid[-1][0].shape), np.float32)
    for here, there in reversed(pyramid):
        (h, w), size = u.shape[1:], here.shape
        if (h, w) != size:
            u = np.stack([resize(plane, size, (h / size[0], w / size[1])) / np.float32(0.8) for plane in u])
        u = one_scale(here, there, u)
    return u


def one_scale(first: Plane, second: Plane, u: Plane) -> Plane:
    u, p = u.copy(), np.zeros((2, 2, *first.shape), np.float32)
    y, x = np.mgrid[: first.shape[0], : first.shape[1]].astype(np.float32)
    planes = [second, *centred_gradient(second)]
    for _ in range(5):
        image, gx, gy = (bicubic(plane, x + u[0], y + u[1]) for plane in planes)
        rho_c = image - gx * u[0] - gy * u[1] - first
        error = np.inf
        for _ in range(10):
            if error > EPSILON**2 * first.size:
                u = np.stack([median(plane) for plane in u])
            for _ in range(30):
                if error > EPSILON**2 * first.size:
                    u, p, error = iterate(u, p, gx, gy, rho_c)
    return u


def iterate(u: Plane, p: Plane, gx: Plane, gy: Plane, rho_c: Plane) -> tuple[Plane, Plane, float]:
    square = gx**2 + gy**2
    rho = rho_c + gx * u[0] + gy * u[1]
    limit = LAMBDA * THETA * square
    between = np.where(square > FLT_EPSILON, -rho / np.maximum(square, FLT_EPSILON), 0)
    d = np.where(rho < -limit, LAMBDA * THETA, np.where(rho > limit, -LAMBDA * THETA, between))
    v = u + d * np.stack([gx, gy])
    new = v + THETA * np.stack([divergence(*p[0]), divergence(*p[1])])
    error = float(np.sum((new - u) ** 2, dtype=np.float64))
    p = p.copy()
    for k in range(2):
        dx, dy = forward_gradient(new[k])
        p[k] = (p[k] + TAU / THETA * np.stack([dx, dy])) / (1 + TAU / THETA * np.hypot(dx, dy))
    return new, p, error


def centred_gradient(picture: Plane) -> tuple[Plane, Plane]:
    wide = np.pad(picture, 1, mode="edge")
    return (wide[1:-1, 2:] - wide[1:-1, :-2]) / 2, (wide[2:, 1:-1] - wide[:-2, 1:-1]) / 2


def forward_gradient(plane: Plane) -> tuple[Plane, Plane]:
    wide = np.pad(plane, ((0, 1), (0, 1)), mode="edge")
    return wide[:-1, 1:] - plane, wide[1:, :-1] - plane


def divergence(px: Plane, py: Plane) -> Plane:
    return np.diff(px, axis=1, prepend=0) + np.diff(py, axis=0, prepend=0)


def resize(plane: Plane, size: tuple[int, ...], steps: tuple[float, float]) -> Plane:
    y, x = ((np.arange(n) + 0.5) * step - 0.5 for n, step in zip(size, steps, strict=True))
    rows = np.stack([np.interp(x, np.arange(plane.shape[1]), row) for row in plane])
    return np.stack([np.interp(y, np.arange(plane.shape[0]), column) for column in rows.T], 1).astype(np.float32)


def keys(distance: Any) -> Any:
    """The cubic convolution kernel of Keys 1981 with a = -0.75."""
    a, t = -0.75, np.abs(distance)
    near, far = ((a + 2) * t - (a + 3)) * t * t + 1, ((t - 5) * t + 8) * t * a - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0))


def bicubic(plane: Plane, x: Plane, y: Plane) -> Plane:
    h, w = plane.shape
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    total = np.zeros(plane.shape)
    for row in range(-1, 3):
        for column in range(-1, 3):
            i, j = top + row, left + column
            pixels = np.where(
                (i >= 0) & (i < h) & (j >= 0) & (j < w), plane[np.clip(i, 0, h - 1), np.clip(j, 0, w - 1)], 0
            )
            total += keys(x - j) * keys(y - i) * pixels
    return total.astype(np.float32)


def median(plane: Plane) -> Plane:
    return np.median(sliding_window_view(np.pad(plane, 2, mode="edge"), (5, 5)), axis=(2, 3)).astype(np.float32)
