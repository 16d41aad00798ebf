"""Dense optical flow by duality of total variation and the L1 norm (TV-L1), fast on a CPU.

Zach, Pock, Bischof, "A Duality Based Approach for Realtime TV-L1 Optical Flow" (2007), in the form of Sánchez,
Meinhardt-Llopis, Facciolo (IPOL 2013, algorithm 1), with the choices of OpenCV 5's DualTVL1OpticalFlow on a CPU:
bilinear pyramid, bicubic warp with zeros outside of the picture, a 5x5 median before each round of iterations, and a
stop when an iteration moved the flow by no more than EPSILON (root mean square). OpenCV 4 warps on a grid of 1/32 px,
which moves the flow by 0.02 to 0.03 px.

    flow = tvl1(first, second)      # uint8 (H, W) grey twice -> float32 (2, H, W), x then y, px

Shapes: H W of one scale. What iterates lies "in rows": flat, row y of the picture at (y + 1) * S, S a multiple of LANES
above W, zeros wherever there is no picture. So loops run over whole vectors, the left and upper neighbours of the
border are the zeros that the divergence asks for, and no index needs a test. Indices are unsigned because numba tests
signed ones for being negative, which would keep the loops from becoming vector code.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from features.errors import UserError
from features.machine_code import compiled

TAU: Final = 0.25  # time step of the dual variable
LAMBDA: Final = 0.15  # weight of the data term
THETA: Final = 0.3  # tightness between the two halves of the problem
SCALES: Final = 5
SMALLEST_PX: Final = 3  # a side of a picture
SMALLEST_SCALE_PX: Final = 16  # a side of a further scale
SCALE_STEP: Final = 0.8
WARPS: Final = 5
OUTER: Final = 10  # rounds a warp, each begins with a median
INNER: Final = 30  # iterations a round
EPSILON: Final = 0.01  # px
KEYS: Final = -0.75  # the parameter of the bicubic kernel
LANES: Final = np.uint64(16)

Grey = npt.NDArray[np.uint8]
Flow = npt.NDArray[np.float32]
Plane = Any  # float32 (H, W), or flat in rows; what is compiled is typed by what it is called with
Planes = Any  # tuple of planes in rows
Index = Any  # uint64

_ONE, _TWO, _THREE, _FOUR = (np.uint64(n) for n in (1, 2, 3, 4))
_F0, _F1, _F2, _F3, _HALF = (np.float32(n) for n in (0, 1, 2, 3, 0.5))
_KEYS, _THETA, _TAUT, _STEP = (np.float32(n) for n in (KEYS, THETA, TAU / THETA, LAMBDA * THETA))
_TINY = np.float32(np.finfo(np.float32).eps)  # a squared gradient that is none
_BORDER = 4  # zeros around what is warped: 4 pixels that begin here lie outside, all of them


def tvl1(first: Grey, second: Grey) -> Flow:
    """The motion from `first` to `second`, uint8 (H, W) each: float32 (2, H, W), x then y, px.

    Holds no Python lock while it computes: call it from as many threads as there are cores.

    Raises:
        UserError: not two grey pictures of one size, of SMALLEST_PX a side or more.
    """
    check(first, second)
    found: Flow = solve(np.ascontiguousarray(first), np.ascontiguousarray(second), np.array(sizes(*first.shape)))[0]
    return found


def check(first: Any, second: Any, ndim: int = 2, smallest_px: int = SMALLEST_PX) -> None:
    """Raise a UserError unless the two, arrays or tensors, are uint8 of one shape: `ndim` sides, H and W the last."""
    got = [(str(frames.dtype).removeprefix("torch."), tuple(frames.shape)) for frames in (first, second)]
    (dtype, shape), other = got
    if (dtype, shape) != other or dtype != "uint8" or len(shape) != ndim or min(shape[-2:]) < smallest_px:
        expected = f"uint8, one shape of {ndim} sides, {smallest_px} px high and wide or more"
        what = " and ".join(f"{dtype} {shape}" for dtype, shape in got)
        raise UserError("no flow between these", where="flow", expected=expected, got=what)


def sizes(height: int, width: int) -> list[tuple[int, int]]:
    """(H, W) of each scale, the picture itself first."""
    found = [(height, width)]
    while len(found) < SCALES:
        h, w = (round(side * SCALE_STEP) for side in found[-1])
        if min(h, w) < SMALLEST_SCALE_PX:
            break
        found.append((h, w))
    return found


@compiled
def solve(first: Any, second: Any, sizes: Any) -> Any:
    """The flow (2, H, W) of contiguous pictures, and the work that it took: the sum of pixels times iterations."""
    firsts, seconds = [first.astype(np.float32)], [second.astype(np.float32)]
    for h, w in sizes[1:]:
        firsts.append(_resize(firsts[-1], h, w, 1 / SCALE_STEP, 1 / SCALE_STEP))
        seconds.append(_resize(seconds[-1], h, w, 1 / SCALE_STEP, 1 / SCALE_STEP))
    flow = np.zeros((2, *firsts[-1].shape), np.float32)
    work = _one_scale(firsts[-1], seconds[-1], flow)
    for scale in range(len(firsts) - 2, -1, -1):
        h, w = firsts[scale].shape
        finer = np.empty((2, h, w), np.float32)
        for c in range(2):
            finer[c] = _resize(flow[c], h, w, flow.shape[1] / h, flow.shape[2] / w) * np.float32(1 / SCALE_STEP)
        flow = finer
        work += _one_scale(firsts[scale], seconds[scale], flow)
    return flow, work


@compiled
def _resize(picture: Plane, height: int, width: int, step_y: float, step_x: float) -> Plane:
    """Bilinear (height, width): output pixel centres are `step` input pixels apart."""
    h, w = picture.shape
    at, part = np.empty(width, np.int64), np.empty(width, np.float32)
    for x in range(width):
        position = max((x + 0.5) * step_x - 0.5, 0.0)
        at[x] = min(int(position), w - 2)
        part[x] = min(position - at[x], 1.0)
    out = np.empty((height, width), np.float32)
    for y in range(height):
        position = max((y + 0.5) * step_y - 0.5, 0.0)
        top = min(int(position), h - 2)
        down = np.float32(min(position - top, 1.0))
        for x in range(width):
            i = at[x]
            upper = picture[top, i] + part[x] * (picture[top, i + 1] - picture[top, i])
            lower = picture[top + 1, i] + part[x] * (picture[top + 1, i + 1] - picture[top + 1, i])
            out[y, x] = upper + down * (lower - upper)
    return out


@compiled
def _one_scale(first: Plane, second: Plane, flow: Any) -> int:
    """Algorithm 1 at one scale: `flow` (2, H, W) is where it starts and what it finds. Returns pixels x iterations."""
    h, w = np.uint64(first.shape[0]), np.uint64(first.shape[1])
    s = (w // LANES + _ONE) * LANES
    rows = _aligned(11, (h + _ONE) * s + LANES)
    u, p, spare = (rows[0], rows[1]), (rows[2], rows[3], rows[4], rows[5]), rows[6]
    data = (rows[7], rows[8], rows[9], rows[10])
    columns = np.empty((5, s + LANES), np.float32)
    inside = np.zeros(s, np.float32)  # 1 where there is a pixel to the right
    inside[: w - _ONE] = _F1
    for c in range(2):
        for y in range(h):
            u[c][(y + _ONE) * s : (y + _ONE) * s + w] = flow[c, y]
    moving = _with_gradients(second)
    enough = EPSILON * EPSILON * first.size
    iterations = 0
    for _ in range(WARPS):
        _warp(first, moving, u, data, s)
        moved = math.inf
        for _ in range(OUTER):
            _median(u[0], spare, columns, h, w, s)
            _median(u[1], spare, columns, h, w, s)
            for _ in range(INNER):
                moved = iterate(u, p, data, inside, h, s)
                iterations += 1
                if moved <= enough:
                    break
            if moved <= enough:
                break
    for c in range(2):
        for y in range(h):
            flow[c, y] = u[c][(y + _ONE) * s : (y + _ONE) * s + w]
    return int(iterations * first.size)


@compiled
def _aligned(planes: int, length: Index) -> Any:
    """(planes, length) zeros; where length is a multiple of LANES, each plane begins with a line of the cache."""
    flat = np.zeros(planes * length + LANES, np.float32)
    skip = np.uint64(-(flat.ctypes.data // 4) % int(LANES))
    return flat[skip : skip + planes * length].reshape(planes, length)


@compiled
def _with_gradients(picture: Plane) -> Any:
    """(3, H + 8, W + 8) in a border of zeros: the picture and its centred differences in x and y."""
    h, w = picture.shape
    out = np.zeros((3, h + 2 * _BORDER, w + 2 * _BORDER), np.float32)
    for y in range(h):
        above, below = max(y - 1, 0), min(y + 1, h - 1)
        for x in range(w):
            i, j = y + _BORDER, x + _BORDER
            out[0, i, j] = picture[y, x]
            out[1, i, j] = _HALF * (picture[y, min(x + 1, w - 1)] - picture[y, max(x - 1, 0)])
            out[2, i, j] = _HALF * (picture[below, x] - picture[above, x])
    return out


@compiled
def _warp(first: Plane, moving: Any, u: Planes, data: Planes, s: Index) -> None:
    """Linearise around the flow: the gradient there, the constant part of the residual, 1 / |gradient|^2."""
    (u1, u2), (gx, gy, rho, inverse) = u, data
    h, w = np.uint64(first.shape[0]), np.uint64(first.shape[1])
    wide = np.uint64(moving.shape[2])
    image, across, down = moving[0].reshape(-1), moving[1].reshape(-1), moving[2].reshape(-1)
    at, tx, ty = np.empty(w, np.int32), np.empty(w, np.float32), np.empty(w, np.float32)
    right, bottom = np.float32(w) + _F1, np.float32(h) + _F1
    for y in range(h):
        row = (y + _ONE) * s
        for x in range(w):  # places apart from fetches: only they become vector code
            px, py = np.float32(x) + u1[row + x], np.float32(y) + u2[row + x]
            px, py = min(max(px, -_F3), right), min(max(py, -_F3), bottom)
            left, top = np.int32(px + _F3), np.int32(py + _F3)
            at[x] = top * np.int32(wide) + left
            tx[x], ty[x] = px - np.float32(left) + _F3, py - np.float32(top) + _F3
        for x in range(w):
            i, j, weights_x, weights_y = row + x, np.uint64(at[x]), _cubic(tx[x]), _cubic(ty[x])
            rho[i] = _patch(image, j, wide, weights_x, weights_y)
            gx[i] = _patch(across, j, wide, weights_x, weights_y)
            gy[i] = _patch(down, j, wide, weights_x, weights_y)
        for x in range(w):
            i = row + x
            rho[i] -= gx[i] * u1[i] + gy[i] * u2[i] + first[y, x]
            inverse[i] = _F1 / max(gx[i] * gx[i] + gy[i] * gy[i], _TINY)


@compiled
def _cubic(t: Any) -> Any:
    """Weights of the 4 pixels around a position that is `t` right of the second (Keys 1981)."""
    r = _F1 - t
    b, c = ((_KEYS + _F2) * t - (_KEYS + _F3)) * t * t + _F1, ((_KEYS + _F2) * r - (_KEYS + _F3)) * r * r + _F1
    return _KEYS * t * r * r, b, c, _KEYS * r * t * t


@compiled
def _patch(plane: Plane, i: Index, wide: Index, across: Any, down: Any) -> Any:
    """The 4x4 pixels from `i` on, weighted `across` and `down`."""
    (a, b, c, d), (e, f, g, k) = across, down
    total = e * (a * plane[i] + b * plane[i + _ONE] + c * plane[i + _TWO] + d * plane[i + _THREE])
    i += wide
    total += f * (a * plane[i] + b * plane[i + _ONE] + c * plane[i + _TWO] + d * plane[i + _THREE])
    i += wide
    total += g * (a * plane[i] + b * plane[i + _ONE] + c * plane[i + _TWO] + d * plane[i + _THREE])
    i += wide
    return total + k * (a * plane[i] + b * plane[i + _ONE] + c * plane[i + _TWO] + d * plane[i + _THREE])


@compiled
def iterate(u: Planes, p: Planes, data: Planes, inside: Any, h: Index, s: Index) -> float:
    """One iteration on planes in rows, in one sweep: the dual variable follows by a row, while both are in cache.

    Returns the sum of the squared moves, px^2.
    """
    moved = 0.0
    last = h * s
    for y in range(_ONE, h + _ONE):
        moved += _primal(u, p, data, y * s, s)
        if y > _ONE:
            _dual(u[0], p[0], p[1], inside, (y - _ONE) * s, y * s, s)
            _dual(u[1], p[2], p[3], inside, (y - _ONE) * s, y * s, s)
    _dual(u[0], p[0], p[1], inside, last, last, s)
    _dual(u[1], p[2], p[3], inside, last, last, s)
    return moved


@compiled
def _primal(u: Planes, p: Planes, data: Planes, row: Index, s: Index) -> Any:
    """The thresholding step as a clamp, then the flow from the dual variable, on the row that begins at `row`."""
    (u1, u2), (p11, p12, p21, p22), (gx, gy, rho, inverse) = u, p, data
    moved = _F0
    for x in range(s):
        i = row + x
        left, above = i - _ONE, i - s
        was1, was2, ix, iy = u1[i], u2[i], gx[i], gy[i]
        step = max(-_STEP, min(_STEP, -(rho[i] + ix * was1 + iy * was2) * inverse[i]))
        now1 = was1 + step * ix + _THETA * (p11[i] - p11[left] + p12[i] - p12[above])
        now2 = was2 + step * iy + _THETA * (p21[i] - p21[left] + p22[i] - p22[above])
        u1[i], u2[i] = now1, now2
        moved += (now1 - was1) * (now1 - was1) + (now2 - was2) * (now2 - was2)
    return moved


@compiled
def _dual(u: Plane, px: Plane, py: Plane, inside: Any, row: Index, below: Index, s: Index) -> None:
    """The semi-implicit dual step on one row of one component; on the last row, `below` is `row`."""
    for x in range(s):
        i = row + x
        dx, dy = (u[i + _ONE] - u[i]) * inside[x], u[below + x] - u[i]
        shrink = _F1 / (_F1 + _TAUT * math.sqrt(dx * dx + dy * dy))
        px[i] = (px[i] + _TAUT * dx) * shrink
        py[i] = (py[i] + _TAUT * dy) * shrink


@compiled
def _sorted5(a: Any, b: Any, c: Any, d: Any, e: Any) -> Any:
    a, b = min(a, b), max(a, b)
    d, e = min(d, e), max(d, e)
    c, e = min(c, e), max(c, e)
    c, d = min(c, d), max(c, d)
    a, d = min(a, d), max(a, d)
    a, c = min(a, c), max(a, c)
    b, e = min(b, e), max(b, e)
    b, d = min(b, d), max(b, d)
    b, c = min(b, c), max(b, c)
    return a, b, c, d, e


@compiled
def _median7(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any) -> Any:
    a, b, c, d, e = _sorted5(a, b, c, d, e)
    f, g = min(f, g), max(f, g)
    # of 5 and 2 in order, the 4th of all
    return max(b, min(c, g), min(d, f))


@compiled
def _median(u: Plane, spare: Plane, columns: Any, h: Index, w: Index, s: Index) -> None:
    """5x5 median of a plane in rows, in place; beyond the border its nearest pixel stands.

    The 5 pixels of each column are sorted once for all windows, then the rows of a window. Of a 5x5 in order both ways
    the median is that of 7: its antidiagonal, the largest above it and the smallest below.
    """
    spare[:] = u
    c0, c1, c2, c3, c4 = columns[0], columns[1], columns[2], columns[3], columns[4]
    for y in range(_ONE, h + _ONE):
        r1 = max(y - _ONE, _ONE)
        r0 = max(r1 - _ONE, _ONE)
        r3, r4 = min(y + _ONE, h), min(y + _TWO, h)
        for x in range(w):
            c0[x + _TWO], c1[x + _TWO], c2[x + _TWO], c3[x + _TWO], c4[x + _TWO] = _sorted5(
                spare[r0 * s + x], spare[r1 * s + x], spare[y * s + x], spare[r3 * s + x], spare[r4 * s + x]
            )
        for column in (c0, c1, c2, c3, c4):
            column[0] = column[1] = column[2]
            column[w + _TWO] = column[w + _THREE] = column[w + _ONE]
        for x in range(w):
            i, j, k, m = x + _ONE, x + _TWO, x + _THREE, x + _FOUR
            _, _, _, a3, a4 = _sorted5(c0[x], c0[i], c0[j], c0[k], c0[m])
            _, _, b2, b3, b4 = _sorted5(c1[x], c1[i], c1[j], c1[k], c1[m])
            _, m1, m2, m3, _ = _sorted5(c2[x], c2[i], c2[j], c2[k], c2[m])
            d0, d1, d2, _, _ = _sorted5(c3[x], c3[i], c3[j], c3[k], c3[m])
            e0, e1, _, _, _ = _sorted5(c4[x], c4[i], c4[j], c4[k], c4[m])
            low, high = max(a3, b2, m1, d0), min(b4, m3, d2, e1)
            u[y * s + x] = _median7(a4, b3, m2, d1, e0, low, high)
