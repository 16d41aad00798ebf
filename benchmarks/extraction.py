"""How near the shard loop comes to its ceiling, and how far it is ahead of a plain loop. Prints ratios of one run.

    python -m benchmarks.extraction [--videos FOLDER] [--networks resnet50 mobilenetv2_100] [--seconds 60]

For each network and precision: frames/s of the shard loop (first batch in to last commit), of the bare network (same
runtime, precision and batch), of bare decoding on all cores, and their bound 1 / (1 / network + 1 / decoding). Then
whole processes, start-up included, on the same frames: ours against `benchmarks.plain_loop`, with the peak memory of
each process tree (proportional set size). Weights are random: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil

CORES = len(os.sched_getaffinity(0))
SHARED = Path("../shared/data/ucf6-orig")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, default=SHARED, help="folder of clips (default: %(default)s)")
    parser.add_argument("--networks", nargs="+", default=["resnet50", "mobilenetv2_100"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--seconds", type=float, default=60, help="of the plain loop's work, at least")
    parser.add_argument("--plain", nargs="*", default=["resnet50"], help="networks to run the plain loop with")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        job(json.loads(args.job))
        return
    clips = sorted(p for p in args.videos.rglob("*") if p.suffix.lower() in (".avi", ".mp4", ".mkv", ".webm"))
    if not clips:
        raise SystemExit(f"no clips under {args.videos}: give --videos a folder")
    with tempfile.TemporaryDirectory(dir=Path("work") if Path("work").is_dir() else None) as folder:
        run(args, clips, Path(folder).resolve())


def run(args: argparse.Namespace, clips: list[Path], folder: Path) -> None:
    decoding = bare_decoding(clips)
    print(
        f"{len(clips)} clips, {CORES} cores; bare decoding to 256 px, every frame: {decoding:.0f} frames/s", flush=True
    )
    columns = f"{'loop':>8}{'network':>9}{'decoding':>10}{'bound':>8}{'loop/bound':>12}"
    print(f"{'network':<18}{'precision':<11}{columns}  (frames/s)", flush=True)
    for name in args.networks:
        weights = random_weights(folder, name)
        for precision in args.precisions:
            spec = {"name": name, "weights": str(weights), "precision": precision, "cache": str(folder / "cache")}
            bare = json.loads(child({**spec, "what": "network"})[0])["rate"]
            frames = 12 * bare  # long enough to see past the start, short enough to sit through
            chosen, every = enough(clips, frames)
            loop = json.loads(
                child({**spec, "what": "loop", "videos": chosen, "every": every, "out": str(folder / "store")})[0]
            )
            bound = 1 / (1 / bare + 1 / (decoding / every))
            shown = (
                f"{loop['rate']:>8.1f}{bare:>9.1f}{decoding / every:>10.0f}{bound:>8.1f}{loop['rate'] / bound:>12.2f}"
            )
            print(f"{name:<18}{precision:<11}{shown}", flush=True)
        if name in args.plain:
            against_plain_loop(args, clips, folder, name, weights)


def against_plain_loop(args: argparse.Namespace, clips: list[Path], folder: Path, name: str, weights: Path) -> None:
    every, chosen = 2, [str(c) for c in clips]
    out = folder / "plain"
    out.mkdir(exist_ok=True)
    while True:
        command = [sys.executable, "-m", "benchmarks.plain_loop", str(out), name, str(every), *chosen]
        _, seconds, memory = measured(command)
        if seconds >= args.seconds:
            break
        chosen = chosen * int(np.ceil(1.1 * args.seconds / seconds))
    frames = sum(len(np.load(p, mmap_mode="r")) for p in out.glob("*.npy"))
    print(
        f"plain loop, {name}: {frames} frames in {seconds:.1f} s, {frames / seconds:.1f} frames/s, {memory:.0f} MB",
        flush=True,
    )
    for precision in args.precisions:
        spec = {
            "name": name,
            "weights": str(weights),
            "precision": precision,
            "cache": str(folder / "cache"),
            "what": "whole",
        }
        store = folder / f"whole-{precision}"
        text, ours, ours_mb = child({**spec, "videos": chosen, "every": every, "out": str(store)}, measure=True)
        rows = json.loads(text)["rows"]
        print(
            f"  ours at {precision}: {rows} frames in {ours:.1f} s, {rows / ours:.1f} frames/s, {ours_mb:.0f} MB: "
            f"speed x {(rows / ours) / (frames / seconds):.2f}, memory x {ours_mb / memory:.2f}",
            flush=True,
        )


def job(spec: dict[str, Any]) -> None:
    """One measurement in a fresh process; prints a line of JSON."""
    from extract.config import Every, NetworkConfig, Rgb
    from extract.runtime import Model, engine, prepare

    network = NetworkConfig(name=spec["name"], weights=Path(spec["weights"]))
    config = Rgb(
        kind="rgb", sampling=Every(kind="every", k=spec.get("every", 1)), network=network, precision=spec["precision"]
    )
    model, cache = Model(config, Path(spec["weights"])), Path(spec["cache"])
    if spec["what"] == "network":
        facts = prepare(model, cache)
        side = facts["transform"]["crop"]
        pixels = np.random.default_rng(0).integers(0, 255, (config.batch, side, side, 3), dtype=np.uint8)
        run = engine(model, facts, cache, threads=CORES)
        list(run([pixels] * 3))
        start, count = time.monotonic(), 0
        for rows in run(for_seconds(pixels, 8.0)):
            count += len(rows)
        print(json.dumps({"rate": count / (time.monotonic() - start)}))
    else:
        print(json.dumps(shard_loop(config, spec, cache)))


def for_seconds(value: Any, seconds: float) -> Iterator[Any]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield value


def shard_loop(config: Any, spec: dict[str, Any], cache: Path) -> dict[str, Any]:
    """The real job on the real files; the clock runs from the first full batch to the published shard."""
    import shutil

    from extract import shard
    from extract.config import recipe

    shutil.rmtree(spec["out"], ignore_errors=True)
    began: list[float] = []
    batches = shard._batches

    def noting(*args: Any) -> Iterable[Any]:
        for batch in batches(*args):
            began.append(time.monotonic())
            yield batch

    shard._batches = noting  # type: ignore[assignment]
    items = tuple(shard.Item(f"{n}", path) for n, path in enumerate(spec["videos"]))
    task = shard.Task(
        extractor="rgb",
        config=config,
        recipe=recipe(config, "random"),
        weights=Path(spec["weights"]),
        shard=1,
        items=items,
        root=Path.cwd(),
        store=Path(spec["out"]),
        cache=cache,
    )
    manifest = shard.extract_shard(task, workers=CORES)
    return {"rows": manifest.rows, "rate": manifest.rows / (time.monotonic() - began[0])}


def bare_decoding(clips: list[Path]) -> float:
    """Frames/s of decoding every frame to 256 px, crop 224, on all cores, nothing else running and nothing kept."""
    work = (clips * 8)[: max(len(clips), 8 * CORES)]
    with get_context("spawn").Pool(CORES) as pool:
        pool.map(decode_one, work[:CORES])
        start = time.monotonic()
        frames = sum(pool.imap_unordered(decode_one, work))
        return frames / (time.monotonic() - start)


def decode_one(path: Path) -> int:
    from extract.config import Every, Limits
    from extract.decoders import Job, samples
    from features.outcome import Outcome

    job = Job(Every(kind="every", k=1), 256, 224, "bicubic", Limits())
    return sum(not isinstance(item, Outcome) for item in samples(path, job))


def enough(clips: list[Path], frames: float) -> tuple[list[str], int]:
    """Clips, repeated where need be, that hold `frames` frames."""
    from extract.config import Limits
    from extract.media import probe

    counts = [len(probe(c, Limits()).times_us) for c in clips]
    chosen, total = [], 0
    while total < frames:
        for clip, count in zip(clips, counts, strict=True):
            chosen.append(str(clip))
            total += count
            if total >= frames:
                break
    return chosen, 1


def random_weights(folder: Path, name: str) -> Path:
    path = folder / f"{name}.safetensors"
    make = f"save_network(build({name!r}))"
    code = f"from extract.networks import build, save_network; open({str(path)!r}, 'wb').write({make})"
    subprocess.run([sys.executable, "-c", code], check=True)
    return path


def child(spec: dict[str, Any], *, measure: bool = False) -> tuple[str, float, float]:
    command = [sys.executable, "-m", "benchmarks.extraction", "--job", json.dumps(spec)]
    if measure:
        return measured(command)
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return done.stdout, 0.0, 0.0


def measured(command: list[str]) -> tuple[str, float, float]:
    """Output, seconds and peak memory (MB of the whole tree, shared pages counted once) of a command."""
    start, peak = time.monotonic(), [0.0]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def watch() -> None:
        top = psutil.Process(process.pid)
        while process.poll() is None:
            total = 0
            try:
                for one in (top, *top.children(recursive=True)):
                    total += one.memory_full_info().pss
            except psutil.Error:
                continue
            peak[0] = max(peak[0], total / 1e6)
            time.sleep(0.3)

    thread = threading.Thread(target=watch)
    thread.start()
    output, _ = process.communicate()
    seconds = time.monotonic() - start
    thread.join()
    if process.returncode:
        raise SystemExit(f"{command[:4]} failed with {process.returncode}")
    return output, seconds, peak[0]


if __name__ == "__main__":
    main()
