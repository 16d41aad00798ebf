"""export, stream: a trained head at work elsewhere, and on what is happening now.

framepool export work/ucf6/runs/RUN/seed0 --format openvino && framepool stream work/ucf6/runs/RUN/seed0 clip.mp4
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace

from features.errors import printable
from pipelines.of_run import of_run


def export(args: Namespace) -> None:
    """Write the graphs of a run, check them, and say how far they were off."""
    from pipelines.export.run import export_run

    export_run(of_run(args.folder), args.out or args.folder / args.format, args.format, videos=args.check)


def stream(args: Namespace) -> None:
    """A line for each frame that is looked at: its time, the label and its probability, frames a second."""
    from pipelines.live import Live

    live, start, count = Live(of_run(args.folder), last=args.last, threads=args.threads), time.perf_counter(), 0
    every = args.every or live.every
    pace = "each frame" if every == 1 else f"each {every}. frame"
    pace = f"{live.fps:g} a second" if live.fps and not args.every else pace
    print(f"the last {live.last} embeddings, {pace}", file=sys.stderr, flush=True)
    for label in live.labels(args.source, every=args.every):
        count += 1
        shown = f"{label.time_s:10.3f} s  {printable(label.name)}  {label.probability:.3f}"
        print(f"{shown}  {label.frames_per_s:.1f} frames/s", flush=True)
    seconds = time.perf_counter() - start
    dropped = f", {live.dropped} dropped" if live.dropped else ""
    damage = f"; the file is damaged: {printable(live.damage)}" if live.damage else ""
    print(f"{count} labels in {seconds:.1f} s{dropped}{damage}", file=sys.stderr)
