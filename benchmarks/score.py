"""How near scoring comes to its ceiling: in one process, on two Dask workers here, and on many that are simulated.

    python -m benchmarks.score [--videos FOLDER] [--seconds 30] [--workers 1 2 4 ... 64] [--skip memory cluster ...]

One process: rows a second of `Machine.score`, first batch in to last score out, over the bound 1 / (1 / network +
1 / decoding) of `benchmarks.extraction` on the same clips, and the peak memory of whole commands on 50 and on 500
videos. Cluster: the same clips on two workers of a core each, once they are warm, over the one process. Simulation:
workers that sleep for as long as a shard of 64 takes one core (as measured here) and answer as much as a real one, and
a client that writes it; each worker's share of one worker's rate. The network is MobileNetV2 with random weights, 25
frames a video, the head an attention cluster of 400 classes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import extraction, sleeping

EXTRACTOR = {"kind": "rgb", "sampling": {"kind": "uniform", "n": 25}, "network": {"name": "mobilenetv2_100"}}
CLASSES = 400
SHARD = 64
PARTS = ("one", "memory", "cluster", "simulation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, default=extraction.SHARED, help="folder of clips (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=30, help="that a measurement should run, about")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], help="of the simulation")
    parser.add_argument("--skip", nargs="+", default=[], choices=PARTS)
    parser.add_argument("--shard-seconds", type=float, help="that a simulated shard takes; default: as measured")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        print(json.dumps(job(json.loads(args.job))))
        return
    clips = [str(Path(clip).resolve()) for clip in extraction.found_clips(args.videos)]
    with tempfile.TemporaryDirectory(dir=Path("work") if Path("work").is_dir() else None) as name:
        run(args, clips, Path(name).resolve())


def run(args: argparse.Namespace, clips: list[str], folder: Path) -> None:
    cores = extraction.CORES
    print(f"{len(clips)} clips, {cores} cores, {extraction.processor()}", flush=True)
    spec = {"folder": str(folder), "videos": clips, "threads": cores}
    child({**spec, "what": "prepare"})
    network, decoding = (child({**spec, "what": what})["rate"] for what in ("network", "decoding"))
    bound = 1 / (1 / network + 1 / decoding)
    chosen = extraction.repeated(clips, args.seconds * bound / 25 / len(clips))
    print(f"rows a second: network {network:.1f}, decoding {decoding:.0f}, bound {bound:.1f}", flush=True)
    if "one" not in args.skip:
        one = child({**spec, "what": "score", "videos": chosen})
        print(f"one process: {one['rate']:.1f} rows a second, {one['rate'] / bound:.2f} of the bound", flush=True)
        if "cluster" not in args.skip:
            many = chosen * -(-8 * SHARD // len(chosen))  # shards enough that the last ones' wait does not count
            two = child({**spec, "what": "cluster", "videos": many, "workers": 2})
            print(f"two workers: {two['rate']:.1f}, {two['rate'] / one['rate']:.2f} of one process", flush=True)
    if "memory" not in args.skip:
        peaks = [memory(folder, (clips * count)[:count]) for count in (50, 500)]
        print(
            f"peak memory: {peaks[0]:.0f} MB on 50 videos, {peaks[1]:.0f} on 500 ({peaks[1] / peaks[0]:.2f})",
            flush=True,
        )
    if "simulation" not in args.skip:
        seconds = args.shard_seconds or SHARD * 25 * cores / bound
        print(f"simulated: a shard of {SHARD} videos takes a core {seconds:.1f} s", flush=True)
        first = 0.0
        for count in args.workers:
            words = {"what": "simulate", "workers": count, "seconds": seconds, "folder": str(folder)}
            rate = child(words)["rate"] / count
            first = first or rate
            print(f"  {count:>3} workers: {rate / first:.3f} of the first one each", flush=True)


def memory(folder: Path, clips: list[str]) -> float:
    """Peak MB of the whole command."""
    names = folder / f"{len(clips)}"
    names.mkdir(exist_ok=True)
    for number, clip in enumerate(clips):
        link = names / f"{number:05d}{Path(clip).suffix}"
        if not link.exists():
            link.write_bytes(Path(clip).read_bytes())
    words = ["score", str(folder / "run"), str(names), "--out", str(folder / f"{len(clips)}.jsonl"), "--logits"]
    return extraction.measured([sys.executable, "-m", "pipelines", *words], cwd=folder)[2]


def job(spec: dict[str, Any]) -> dict[str, Any]:
    """One measurement, in a process of its own."""
    return {
        "prepare": prepare,
        "network": lambda spec: {"rate": extraction.bare_network(stage_of(spec))},
        "decoding": decoding,
        "score": score,
        "cluster": cluster,
        "simulate": simulate,
    }[spec["what"]](spec)


def config_of(spec: dict[str, Any]) -> Any:
    from pydantic import TypeAdapter

    from extract.config import ExtractorConfig

    value = dict(EXTRACTOR)
    value["network"] = {**EXTRACTOR["network"], "weights": f"{spec['folder']}/mobilenetv2_100.safetensors"}  # type: ignore[dict-item]
    return TypeAdapter(ExtractorConfig).validate_python(value), value


def stage_of(spec: dict[str, Any]) -> Any:
    from extract.stage import Stage

    config, _ = config_of(spec)
    return Stage.of(config, weights=Path(config.network.weights), cache=Path(spec["folder"]) / "work" / "cache")


def prepare(spec: dict[str, Any]) -> dict[str, Any]:
    """A run with random weights, as training leaves one, and the converted network."""
    import heads
    from extract.config import recipe
    from features.atomic import make_folder, write_json
    from features.recipe import digest, file_sha256
    from heads.checkpoint import save_head

    folder = Path(spec["folder"])
    weights = extraction.random_weights(folder, "mobilenetv2_100")
    config, value = config_of(spec)
    stage, made = stage_of(spec), recipe(config, file_sha256(Path(weights)))
    classes, shapes = [f"class {k}" for k in range(CLASSES)], {"rgb": stage.row_shape}
    head_config = heads.HEADS["attention_cluster"][1].parse({"features": ["rgb"], "clusters": 64}, where="here")
    run = make_folder(folder / "run")
    save_head(run, heads.from_config(head_config, shapes, CLASSES), kind="attention_cluster", classes=classes)
    record = {
        "kind": "attention_cluster",
        "config": head_config.recipe(),
        "classes": classes,
        "multi_label": False,
        "shapes": {"rgb": list(stage.row_shape)},
        "digest": "random",
        "seed": 0,
        "stores": {"rgb": {"digest": digest(made), "facts": stage.lasting_facts}},
        "extractors": {
            "rgb": {"extractor": "rgb", "config": value, "recipe": made, "weights": weights, "source": None}
        },
    }
    write_json(run / "run.json", record)
    return {}


def decoding(spec: dict[str, Any]) -> dict[str, Any]:
    """Rows a second that all cores decode."""
    from multiprocessing import get_context

    from threadpoolctl import threadpool_limits

    first = stage_of(spec).job
    clips = extraction.repeated(spec["videos"], max(1.0, 8 * extraction.CORES / len(spec["videos"])))
    with get_context("spawn").Pool(extraction.CORES, threadpool_limits, (1,)) as pool:
        work = [(path, first) for path in clips]
        pool.map(extraction.decode_one, work[: extraction.CORES])
        start = time.monotonic()
        rows = sum(pool.imap_unordered(extraction.decode_one, work))
        return {"rate": rows / (time.monotonic() - start)}


def machine_of(spec: dict[str, Any], threads: int) -> Any:
    from pipelines.scoring.machine import Machine, Options

    folder = Path(spec["folder"])
    return Machine(Options(runs=(folder / "run",), threads=threads, cache=folder / "work" / "cache", logits=True))


def clips_of(spec: dict[str, Any]) -> list[Any]:
    from extract.sources import Clip

    return [Clip("here", f"{n}", Path(path)) for n, path in enumerate(spec["videos"])]


def score(spec: dict[str, Any]) -> dict[str, Any]:
    """Rows a second, first batch in to last score out."""
    from extract.lanes import Lane

    began: list[float] = []
    send = Lane._send

    def noting(lane: Any) -> None:
        began.append(time.monotonic())
        send(lane)

    Lane._send = noting  # type: ignore[method-assign]
    clips = clips_of(spec)
    with machine_of(spec, extraction.CORES) as machine:
        found = list(machine.score(clips))
    check(found, clips)
    return {"rate": 25 * len(found) / (time.monotonic() - began[0])}


def cluster(spec: dict[str, Any]) -> dict[str, Any]:
    """Rows a second of a local cluster that has scored a shard a worker before."""
    from pipelines.cluster import connected, score_on

    machine, clips = machine_of(spec, max(1, extraction.CORES // spec["workers"])), clips_of(spec)
    with connected(None, spec["workers"]) as client:
        found, start = [], 0.0
        warm = spec["workers"] * SHARD
        for done in score_on(client, machine, machine.options, (clips * (2 + warm // len(clips)))[:warm] + clips):
            found.append(done)
            if len(found) == warm:
                start = time.monotonic()
        seconds = time.monotonic() - start
    check(found[warm:], clips)
    return {"rate": 25 * (len(found) - warm) / seconds}


def check(found: list[Any], clips: list[Any]) -> None:
    bad = [done for done in found if done.rows[0]["outcome"] != "ok"]
    if bad or len(found) != len(clips):
        raise SystemExit(f"{len(found)} of {len(clips)} scored, {len(bad)} not: {bad[:1]}")


def simulate(spec: dict[str, Any]) -> dict[str, Any]:
    """Shards a second of workers that sleep, once all of them are at work.

    They share the cores that real ones have for themselves, so what Dask does in each of them beside its work (a
    profile every 10 ms, a look at its event loop every 20) is left out.
    """
    import dask

    from extract.sources import Clip
    from pipelines.cluster import connected
    from pipelines.scoring.machine import Done
    from pipelines.scoring.output import Output
    from pipelines.waves import in_waves

    count, rounds = spec["workers"], 3
    out = Path(spec["folder"]) / f"simulated{count}.parquet"
    idle = {"distributed.worker.profile.enabled": False, "distributed.admin.tick.interval": "2s"}
    with (
        dask.config.set(idle),
        connected(None, count) as client,
        Output(out, {}, windows=False, logits=True) as output,
    ):
        client.wait_for_workers(count)

        def call(number: int) -> tuple[Any, ...]:
            return sleeping.shard, spec["seconds"] if number >= count else 0.0, SHARD, CLASSES, number

        for _ in in_waves(client, call, iter(range(count)), lambda number: f"wake-{number}"):
            pass
        start = time.monotonic()
        for _, rows in in_waves(client, call, iter(range(count, count * (1 + rounds))), lambda n: f"sleep-{n}"):
            for row in rows:
                output.add(Done(Clip(row["source"], row["video"]), [row]))
        output.commit()
        return {"rate": count * rounds / (time.monotonic() - start)}


def child(spec: dict[str, Any]) -> Any:
    words = [sys.executable, "-m", "benchmarks.score", "--job", json.dumps(spec)]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
