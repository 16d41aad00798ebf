"""What numbers too small for full precision cost a training step, and that `heads.denormals` spares it.

    python -m benchmarks.denormals [--threads 1]

A fresh attention cluster of 32 units, without shifting, on batches of 64 videos of 25 rows of 1024 log-probabilities,
as those of Flash-MNIST in its authors' code: its logits are far apart, so that most gradients of their softmax are such
numbers. Beside it the same head on rows of the unit normal distribution, which has none. On a processor that is as
fast with them the ratios are one.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F

import heads
from heads.denormals import flushed

VIDEOS, ROWS, DIM, CLASSES, UNITS, STEPS = 64, 25, 1024, 1024, 32, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    torch.manual_seed(0)
    normal = torch.randn(VIDEOS, ROWS, DIM)
    with flushed():  # torch's threads are made
        plain = median_s(normal)
    for name, rows in (("normal", normal), ("log-softmax", (5 * normal).log_softmax(dim=2))):
        for how, context in (("as they are", nullcontext), ("flushed", flushed)):
            with context():
                seconds = median_s(rows)
            print(f"{name:12s} {how:12s} {seconds * 1e3:8.1f} ms a step, {seconds / plain:6.2f} of normal, flushed")


def median_s(rows: Tensor) -> float:
    """Of a step without its optimiser, after a first one."""
    head = heads.build("attention_cluster", {"cnn": (DIM,)}, CLASSES, clusters=UNITS, weighting="fc1", shift=False)
    mask, labels = torch.ones(rows.shape[:2], dtype=torch.bool), torch.arange(VIDEOS)
    found = []
    for _ in range(STEPS + 1):
        head.zero_grad()
        start = time.perf_counter()
        F.cross_entropy(head({"cnn": rows}, {"cnn": mask}), labels).backward()
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


if __name__ == "__main__":
    main()
