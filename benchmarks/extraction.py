"""How near the shard loop comes to its ceiling, for each kind of extractor, and how much memory it takes.

    python -m benchmarks.extraction [--videos FOLDER] [--only resnet50 vggish] [--precisions fp32 bf16 int8]

For each extractor and precision, in rows a second: the shard loop (first batch in to last commit); the bare network in
the same runtime, precision and batch; bare decoding into its samples on all cores; their bound
1 / (1 / network + 1 / decoding). Then the peak memory of whole processes (proportional set size of the process tree) on
50 and on 500 videos. Weights are random: speed does not depend on them. `benchmarks.peer` compares with another
project, `benchmarks.precision` says what a precision costs in accuracy.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from threadpoolctl import threadpool_limits

CORES = len(os.sched_getaffinity(0))
SHARED = Path("../shared/data/ucf6-orig")
EVERY = {"kind": "every", "k": 1}
# What an extractor is in a config, but for its weights and its precision.
EXTRACTORS: dict[str, dict[str, Any]] = {
    "resnet50": {"kind": "rgb", "network": {"name": "resnet50", "library": "torchvision"}, "sampling": EVERY},
    "mobilenetv2_100": {"kind": "rgb", "network": {"name": "mobilenetv2_100"}, "sampling": EVERY},
    "r2plus1d_18": {
        "kind": "trunk",
        "network": {"name": "r2plus1d_18", "library": "torchvision"},
        "sampling": {"kind": "clips", "frames": 16},
        "batch": 1,
    },
    "s3d": {
        "kind": "trunk",
        "network": {"name": "s3d", "library": "torchvision"},
        "sampling": {"kind": "clips", "frames": 64},
        "batch": 1,
    },
    "i3d": {
        "kind": "trunk",
        "network": {"name": "i3d", "library": "framepool"},
        "sampling": {"kind": "clips", "frames": 64},
        "batch": 1,
    },
    "vggish": {"kind": "audio", "source": "logmel", "network": {"name": "vggish", "library": "framepool"}, "batch": 16},
    "yamnet": {"kind": "audio", "source": "logmel", "network": {"name": "yamnet", "library": "framepool"}, "batch": 16},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, default=SHARED, help="folder of clips (default: %(default)s)")
    parser.add_argument("--only", nargs="+", default=list(EXTRACTORS), choices=list(EXTRACTORS))
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16", "int8"])
    parser.add_argument("--seconds", type=float, default=12, help="that a loop should run, about")
    parser.add_argument(
        "--memory", nargs="*", default=["mobilenetv2_100", "yamnet"], help="extractors to run on 50 and on 500 videos"
    )
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        print(json.dumps(job(json.loads(args.job))))
        return
    clips = found_clips(args.videos)
    with tempfile.TemporaryDirectory(dir=Path("work") if Path("work").is_dir() else None) as folder:
        run(args, clips, Path(folder).resolve())


def found_clips(folder: Path) -> list[str]:
    """The clips below a folder."""
    clips = sorted(str(p) for p in folder.rglob("*") if p.suffix.lower() in (".avi", ".mp4", ".mkv", ".webm", ".wav"))
    if not clips:
        raise SystemExit(f"no clips under {folder}: give --videos a folder")
    return clips


def run(args: argparse.Namespace, clips: list[str], folder: Path) -> None:
    print(f"{len(clips)} clips, {CORES} cores, {processor()}; rows a second", flush=True)
    columns = f"{'loop':>8}{'network':>9}{'decoding':>10}{'bound':>8}{'loop/bound':>12}{'error':>9}"
    memory = f"{'50':>9}{'500':>6} videos, MB"
    print(f"{'extractor':<18}{'precision':<11}{columns}{memory}", flush=True)
    for name in args.only:
        weights = random_weights(folder, name)
        heard = [c for c in clips if sounds(c)] if "source" in EXTRACTORS[name] else clips
        decoding = child({"what": "decoding", "name": name, "videos": heard, "weights": weights, "folder": str(folder)})
        for precision in args.precisions:
            spec = {"name": name, "weights": weights, "precision": precision, "folder": str(folder)}
            bare = child({**spec, "what": "network", "videos": heard})["rate"]
            bound = 1 / (1 / bare + 1 / decoding["rate"])
            chosen = repeated(heard, args.seconds * bound / decoding["rows"])
            loop = child({**spec, "what": "loop", "videos": chosen})
            line = (
                f"{loop['rate']:>8.1f}{bare:>9.1f}{decoding['rate']:>10.0f}{bound:>8.1f}{loop['rate'] / bound:>12.2f}"
            )
            error = f"{loop['error']:>9.4f}" if loop["error"] is not None else f"{'':>9}"
            peaks = ""
            if name in args.memory:
                for count, width in ((50, 9), (500, 6)):  # the network is converted by now
                    few = {"what": "whole", "videos": (heard * count)[:count], "n": 16}
                    measured(command({**spec, **few, "videos": heard[:2]}))
                    peaks += f"{measured(command({**spec, **few}))[2]:>{width}.0f}"
            print(f"{name:<18}{precision:<11}{line}{error}{peaks}", flush=True)


def repeated(clips: list[str], times: float) -> list[str]:
    """The clips, again and again, about `times` times."""
    return (clips * max(1, int(np.ceil(times))))[: max(1, round(len(clips) * times))]


def task_of(spec: dict[str, Any]) -> Any:
    """The real job on the real files."""
    from pydantic import TypeAdapter

    from extract.config import ExtractorConfig, recipe
    from extract.fingerprint import Item
    from extract.shard import Task

    parse = TypeAdapter(ExtractorConfig).validate_python
    folder, value = Path(spec["folder"]), dict(EXTRACTORS[spec["name"]])
    value["network"] = {**value["network"], "weights": spec["weights"]}
    value["precision"] = spec.get("precision", "fp32")
    if spec.get("n"):  # a few rows of every video
        n = spec["n"]
        value["sampling"] = {"kind": "uniform", "n": n} if value["kind"] == "rgb" else value.get("sampling")
        value = {k: v for k, v in value.items() if v is not None}
    items = tuple(Item(f"{n}", path) for n, path in enumerate(spec["videos"]))
    config, source = parse(value), None
    common = {"shard": 0, "items": items, "root": Path.cwd(), "cache": folder / "cache"}
    if config.source:
        logmel = parse({"kind": "logmel", "store": False})
        source = Task(
            extractor="logmel", config=logmel, recipe=recipe(logmel), weights=None, store=folder / "none", **common
        )
    store = folder / "stores" / f"{spec['name']}-{config.precision}"
    shutil.rmtree(store, ignore_errors=True)
    made = recipe(config, "random", "logmel" if source else None)
    return Task(
        extractor=spec["name"],
        config=config,
        recipe=made,
        weights=Path(spec["weights"]),
        store=store,
        source=source,
        calibration=items[:64],
        **common,
    )


def job(spec: dict[str, Any]) -> dict[str, Any]:
    """One measurement, in a process of its own."""
    from extract import shard

    task = task_of(spec)
    if spec["what"] == "whole":
        return {"rows": shard.extract_shard(task, workers=CORES).rows}
    stage = shard.stage_of(task)
    if spec["what"] == "decoding":
        first = stage.first.job
        work = [(path, first) for path in repeated(spec["videos"], max(1.0, 8 * CORES / len(spec["videos"])))]
        with get_context("spawn").Pool(CORES, threadpool_limits, (1,)) as pool:
            pool.map(decode_one, work[:CORES])
            start = time.monotonic()
            rows = sum(pool.imap_unordered(decode_one, work))
            return {"rate": rows / (time.monotonic() - start), "rows": rows * len(spec["videos"]) / len(work)}
    if spec["what"] == "network":
        return {"rate": bare_network(stage)}
    began: list[float] = []
    send = shard.Lane._send

    def noting(lane: Any) -> None:
        began.append(time.monotonic())
        send(lane)

    shard.Lane._send = noting  # type: ignore[method-assign]
    manifest = shard.extract_shard(task, workers=CORES)
    seconds = time.monotonic() - began[0]
    return {"rate": manifest.rows / seconds, "error": manifest.statistics.get("relative_error")}


def bare_network(stage: Any) -> float:
    """Rows a second through the engine alone, batches ready."""
    engine, batch = stage.engine(CORES), stage.batch
    shape, dtype, _ = stage.input
    rng = np.random.default_rng(0)
    rows = (
        rng.integers(0, 255, (batch, *shape)).astype(dtype) if dtype == np.uint8 else rng.normal(size=(batch, *shape))
    )
    rows = rows.astype(dtype)
    tickets, count, start = [engine.start(rows) for _ in range(2)], 0, 0.0
    for number in range(1 << 30):
        tickets.append(engine.start(rows))
        engine.finish(tickets.pop(0))
        if number == 3:
            start = time.monotonic()
        if number > 3:
            count += batch
            if time.monotonic() - start > 8:
                break
    return count / (time.monotonic() - start)


def decode_one(work: tuple[str, Any]) -> int:
    from extract.samples import samples
    from features.outcome import Outcome

    return sum(not isinstance(item, Outcome) for _, item in samples(Path(work[0]), {0: work[1]}))


def sounds(path: str) -> bool:
    """Whether a clip has a sound track."""
    from extract.audio import duration_s
    from extract.config import Limits
    from extract.media import MediaError

    try:
        return duration_s(Path(path), Limits()) > 1
    except MediaError:
        return False


def random_weights(folder: Path, name: str) -> str:
    path, network = folder / f"{name}.safetensors", EXTRACTORS[name]["network"]
    code = (
        "import sys; from pathlib import Path; from extract.networks import build, save_network\n"
        "path, name, library = sys.argv[1:]; import torch; torch.manual_seed(0)\n"
        "Path(path).write_bytes(save_network(build(name, library=library)))"
    )
    subprocess.run([sys.executable, "-c", code, str(path), network["name"], network.get("library", "timm")], check=True)
    return str(path)


def command(spec: dict[str, Any]) -> list[str]:
    return [sys.executable, "-m", "benchmarks.extraction", "--job", json.dumps(spec)]


def child(spec: dict[str, Any]) -> Any:
    done = subprocess.run(command(spec), check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def measured(words: list[str], **options: Any) -> tuple[str, float, float]:
    """Output, seconds and peak memory (MB of the whole tree, shared pages counted once) of a command."""
    start, peak = time.monotonic(), [0.0]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)

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
            time.sleep(0.1)

    thread = threading.Thread(target=watch)
    thread.start()
    output, errors = process.communicate()
    seconds = time.monotonic() - start
    thread.join()
    if process.returncode:
        raise SystemExit(f"{words[:4]} failed with {process.returncode}: {errors[-2000:]}")
    return output, seconds, peak[0]


def processor() -> str:
    """The CPU's name, and whether it has matrix units for bf16."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    name = next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), "CPU")
    return f"{name}, {'with' if 'amx_bf16' in text else 'without'} AMX"


if __name__ == "__main__":
    main()
