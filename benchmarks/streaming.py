"""VTN on a stream: frames a second beside OpenVINO's own benchmark of the same exported model, and beside torch.

python -m benchmarks.streaming --only mobilenetv2_100 --seconds 5

A step is one new frame of 224x224 through the encoder and the decoder on the last 16 embeddings, 400 classes, random
weights. Ours is `pipelines.streaming.Stream`, called with another frame each time, one after the other, as a camera
gives them; `benchmark_app` runs the very file, one request at a time, in the same precision, on as many cores; torch
runs the same step eagerly in fp32, and the aim of 5 is for ours at bf16. The three take turns, `--rounds` times, and
the median counts: other work on the machine comes and goes. Beside them stand the frames a second of the paper (VTN,
Table 5), which are of a Core i7-8700, of another version of OpenVINO, and of fp32.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import heads
from benchmarks.extraction import processor
from heads.streaming import Online
from pipelines.streaming import Stream, export

CORES = len(os.sched_getaffinity(0))
ENCODERS = ("resnet34", "resnet50", "mobilenetv2_100")
SIDE_PX, CLASSES, FRAMES = 224, 400, 16
HINTS = {"fp32": "f32", "bf16": "bf16"}
WARM_UP = 5
PAPER = {"resnet34": 56, "resnet50": 49, "mobilenetv2_100": 177}
Precision = Literal["fp32", "bf16"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(ENCODERS), choices=list(ENCODERS))
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--seconds", type=int, default=10, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(f"{CORES} cores, {processor()}; frames/s, medians of {args.rounds} rounds of {args.seconds} s", flush=True)
    for encoder in args.only:
        with tempfile.TemporaryDirectory() as folder:
            measure(encoder, Path(folder), args.precisions, args.seconds, args.rounds)


def measure(encoder: str, folder: Path, precisions: list[Precision], seconds: int, rounds: int) -> None:
    """Print a line for each precision."""
    torch.manual_seed(0)
    shape = (FRAMES, SIDE_PX, SIDE_PX, 3)
    head: Any = heads.build("vtn", {"pixels": shape}, CLASSES, network={"name": encoder}).eval()
    model = export(head, folder)
    film = np.random.default_rng(0).integers(0, 256, (32, SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    streams = {p: Stream(model, precision=p, threads=CORES) for p in precisions}
    found: dict[str, list[float]] = {"torch": [], **{f"{who} {p}": [] for p in precisions for who in ("ours", "app")}}
    for _ in range(rounds):
        for p in precisions:
            found[f"ours {p}"].append(per_second(streams[p], film, seconds))
            found[f"app {p}"].append(benchmark_app(model, p, seconds))
        found["torch"].append(per_second(eager(head), film, seconds))
    rates = {name: statistics.median(rate) for name, rate in found.items()}
    for p in precisions:
        ours, app = rates[f"ours {p}"], rates[f"app {p}"]
        said = f"{encoder:16s} {p}  ours {ours:7.1f}  benchmark_app {app:7.1f}  torch {rates['torch']:6.1f}"
        ratios = f"over benchmark_app {ours / app:.2f}, over torch {ours / rates['torch']:.1f}"
        print(f"{said}  {ratios}; the paper's i7-8700 {PAPER[encoder]}", flush=True)


def per_second(step: Callable[[Any], Any], film: Any, seconds: int) -> float:
    """How many frames a second `step` takes, one after the other."""
    for frame in film[:WARM_UP]:
        step(frame)
    count, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < seconds:
        step(film[count % len(film)])
        count += 1
    return count / passed


def eager(head: Any) -> Callable[[Any], Any]:
    """The same step in torch, fp32."""
    torch.set_num_threads(CORES)
    online, state = Online(head).eval(), list[torch.Tensor]()

    def step(frame: Any) -> None:
        image = torch.from_numpy(frame)[None]
        with torch.inference_mode():
            _, *state[:] = online(image, *(state or online.begin(image)))

    return step


def benchmark_app(model: Path, precision: Precision, seconds: int) -> float:
    """What OpenVINO's own tool measures, one request at a time."""
    command = [str(Path(sys.executable).parent / "benchmark_app"), "-m", str(model), "-d", "CPU"]
    command += ["-api", "sync", "-hint", "none", "-nstreams", "1", "-nthreads", str(CORES)]
    command += ["-infer_precision", HINTS[precision], "-t", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rate = re.search(r"Throughput:\s+([\d.]+) FPS", done.stdout)
    if done.returncode or rate is None:
        raise SystemExit(f"benchmark_app ended with {done.returncode}: {(done.stdout + done.stderr)[-800:]}")
    return float(rate[1])


if __name__ == "__main__":
    main()
