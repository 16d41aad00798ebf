"""TV-L1 flow: ours against OpenCV's on the same pairs, and how near the iteration comes to what bounds it.

    python -m benchmarks.flow [--pairs 12] [--videos FOLDER]

Pairs a second of whole calls on adjacent frames of 340 x 256, all cores: ours by the engine that extraction runs, and
OpenCV's in the best of three ways, its own threads within a call, and calls side by side in threads or in processes.
Then the iteration, in pixels times iterations a second and core: in whole calls, alone, alone on a picture so small
that it stays in the first cache (what arithmetic allows), and a pass that reads and writes the same planes and does
nothing else (what memory allows). Without real clips the frames are made: a texture that moves.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from numba import njit

from benchmarks.extraction import CORES, processor
from extract.flow import FlowEngine
from extract.media import opened
from extract.tvl1 import LANES, iterate, sizes, solve

SHARED = Path("../shared/data/ucf6-orig")
WIDTH, HEIGHT = 340, 256
Stacks = npt.NDArray[np.uint8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, default=SHARED, help="folder of clips (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=12)
    args = parser.parse_args()
    clips = sorted(p for p in args.videos.rglob("*") if p.suffix in (".avi", ".mp4"))
    stacks = from_clips(clips, args.pairs) if clips else made(args.pairs)
    kind = "adjacent frames of clips" if clips else "made pairs"
    print(f"{len(stacks)} {kind}, {WIDTH}x{HEIGHT}, {CORES} cores, {processor()}, OpenCV {cv2.__version__}")
    whole_calls(stacks)
    iterations(stacks)


def from_clips(clips: list[Path], pairs: int) -> Stacks:
    """(pairs, 2, H, W): of each clip in turn two adjacent frames, from the 21st on."""
    found = []
    for n in range(pairs):
        at = 20 + 7 * (n // len(clips))
        with opened(clips[n % len(clips)]) as container:
            frames = [f for k, f in zip(range(at + 2), container.decode(video=0), strict=False) if k >= at]
        found.append([f.reformat(width=WIDTH, height=HEIGHT, format="gray").to_ndarray() for f in frames])
    return np.array([f for f in found if len(f) == 2])


def made(pairs: int) -> Stacks:
    """(pairs, 2, H, W): textures that move by up to 3 px."""
    random, found = np.random.default_rng(0), []
    for _ in range(pairs):
        texture = cv2.GaussianBlur(random.standard_normal((HEIGHT + 8, WIDTH + 8)), (0, 0), 2)
        picture = (128 + 50 * texture / texture.std()).clip(0, 255).astype(np.uint8)
        y, x = random.integers(1, 8, 2)
        found.append([picture[4 : 4 + HEIGHT, 4 : 4 + WIDTH], picture[y : y + HEIGHT, x : x + WIDTH]])
    return np.array(found)


def whole_calls(stacks: Stacks) -> None:
    with closing(FlowEngine("framepool", 20.0, threads=CORES)) as engine:
        engine.finish(engine.start(stacks[:1]))  # compiles, or loads what is compiled
        ours = rate(lambda: engine.finish(engine.start(stacks)), len(stacks), times=3)
    theirs, ones = {}, [1] * len(stacks)
    theirs[f"{CORES} threads in a call"] = rate(
        lambda: [by_opencv(pair, CORES) for pair in stacks], len(stacks), times=2
    )
    pools: dict[str, Executor] = {
        f"{CORES} calls in threads": ThreadPoolExecutor(CORES),
        f"{CORES} calls in processes": ProcessPoolExecutor(CORES, get_context("spawn")),
    }
    for name, pool in pools.items():
        with pool:
            theirs[name] = rate(lambda run=pool.map: list(run(by_opencv, stacks, ones)), len(stacks), times=2)  # type: ignore[misc]
    best = max(theirs.values())
    print(f"\n{'whole calls':<34}{'pairs/s':>9}{'times':>8}")
    for name, value in theirs.items():
        print(f"{'OpenCV, ' + name:<34}{value:>9.2f}{value / best:>8.2f}")
    print(f"{f'ours, {CORES} threads':<34}{ours:>9.2f}{ours / best:>8.2f}", flush=True)


def by_opencv(pair: Stacks, threads: int) -> None:
    cv2.setNumThreads(threads)
    cv2.optflow.DualTVL1OpticalFlow_create().calc(*pair, None)


def iterations(stacks: Stacks) -> None:
    """Each figure of one thread alone, and of all cores at once, a core."""
    scales = np.array(sizes(HEIGHT, WIDTH))
    work = sum(solve(first, second, scales)[1] for first, second in stacks)
    mega = HEIGHT * WIDTH / 1e6
    rows: dict[str, tuple[Callable[[], Callable[[], Any]], float]] = {
        "whole calls": (lambda: lambda: [solve(first, second, scales) for first, second in stacks], work / 1e6),
        "iteration alone": (lambda: planes_of(HEIGHT, WIDTH, iterated), 300 * mega),
        "arithmetic: a picture in cache": (lambda: planes_of(4, WIDTH, iterated, 64), 300 * 64 * 4 * WIDTH / 1e6),
        "memory: same planes, no work": (lambda: planes_of(HEIGHT, WIDTH, passed), 300 * mega),
    }
    print(f"\n{'Mpx iterations / s and core':<34}{'1 core':>9}{f'{CORES} cores':>9}")
    for name, (make, amount) in rows.items():
        one, all_of_them = (side_by_side([make() for _ in range(n)], amount) for n in (1, CORES))
        print(f"{name:<34}{one:>9.0f}{all_of_them:>9.0f}", flush=True)
    print(f"{work / len(stacks) / 1e6:.1f} Mpx iterations a pair")


def planes_of(height: int, width: int, run: Callable[..., Any], times: int = 1) -> Callable[[], Any]:
    """`run` on planes of a picture with random gradients, 300 times `times` times."""
    h, s = np.uint64(height), (np.uint64(width) // LANES + np.uint64(1)) * LANES
    random = np.random.default_rng(0)
    planes = np.zeros((10, int((h + np.uint64(1)) * s + LANES)), np.float32)
    planes[6:9, int(s) :] = random.standard_normal((3, planes.shape[1] - int(s)))
    planes[9] = 1 / (planes[6] ** 2 + planes[7] ** 2 + 1e-6)
    inside = np.ones(int(s), np.float32)
    inside[width - 1 :] = 0
    arguments = (tuple(planes[:2]), tuple(planes[2:6]), tuple(planes[6:]), inside, h, s)
    run(1, *arguments)
    return lambda: run(300 * times, *arguments)


@njit(nogil=True)  # type: ignore[untyped-decorator]
def iterated(times: int, u: Any, p: Any, data: Any, inside: Any, h: Any, s: Any) -> float:
    moved = 0.0
    for _ in range(times):
        moved += iterate(u, p, data, inside, h, s)
    return moved


@njit(nogil=True, fastmath=True)  # type: ignore[untyped-decorator]
def passed(times: int, u: Any, p: Any, data: Any, inside: Any, h: Any, s: Any) -> None:
    """Reads the 10 planes and writes the 6 that an iteration writes."""
    (u1, u2), (a, b, c, d), (e, f, g, k) = u, p, data
    for _ in range(times):
        for i in range(u1.size):
            total = e[i] + f[i] + g[i] + k[i]
            u1[i] -= total
            u2[i] += total
            a[i] -= total
            b[i] += total
            c[i] -= total
            d[i] += total


def side_by_side(jobs: list[Callable[[], Any]], amount: float) -> float:
    """What each of the jobs does a second of `amount`, all at once."""
    with ThreadPoolExecutor(len(jobs)) as pool:
        return rate(lambda: list(pool.map(lambda job: job(), jobs)), amount, times=3)


def rate(job: Callable[[], Any], amount: float, times: int = 1) -> float:
    """`amount` a second, the best of some times."""
    took = []
    for _ in range(times):
        start = time.perf_counter()
        job()
        took.append(time.perf_counter() - start)
    return amount / min(took)


if __name__ == "__main__":
    main()
