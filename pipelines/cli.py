"""The command line: names, arguments and help; each command's work is in `pipelines.commands`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def parser() -> argparse.ArgumentParser:
    """All commands. A command's module is imported only when it runs."""
    top = argparse.ArgumentParser(
        prog="framepool", description="Classify video from cached features.", allow_abbrev=False
    )
    top.add_argument("--follow-parent", action="store_true", help="end when the parent process ends; for workflows")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, where: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
        sub.set_defaults(run=_late(where))
        return sub

    sub = add(
        "index", "stage_one.index", "read the video list, say what is wrong with it and what the stores will take"
    )
    _dataset(sub)
    sub = add("render", "stage_one.render", "render the clips of a dataset that makes its own")
    _dataset(sub)
    _threads(sub)
    sub = add("extract", "stage_one.extract", "extract features; resumes where it was stopped")
    _dataset(sub)
    sub.add_argument(
        "--extractor", action="append", required=True, metavar="NAME", help="of the config; may be repeated"
    )
    sub.add_argument("--shard", type=_whole, metavar="K", help="only this shard; default: all, then their summary")
    sub.add_argument("--split", metavar="K", help="for weights that are trained by split; default: the config's first")
    _cluster(sub)
    _threads(sub)
    sub = add("gather", "stage_one.gather", "check that a store is complete and that few enough videos failed")
    _dataset(sub)
    sub.add_argument("--extractor", required=True, metavar="NAME")
    sub.add_argument("--split", metavar="K")
    sub = add("train", "stage_two.train", "train and judge heads; resumes where it was stopped")
    _dataset(sub)
    sub.add_argument(
        "--head", action="append", required=True, metavar="NAME", help="of the config; several train side by side"
    )
    sub.add_argument("--split", metavar="K", help="default: the config's first")
    sub.add_argument("--seed", action="append", type=_whole, metavar="S", help="may be repeated; default: the config's")
    sub.add_argument(
        "--device",
        default=os.environ.get("FRAMEPOOL_DEVICE", "cpu"),
        help="cpu, cuda, cuda:1, ...; under torchrun cuda (default: FRAMEPOOL_DEVICE, which workflows pass on, or cpu)",
    )
    sub.add_argument(
        "--checkpoint-minutes",
        type=_minutes,
        default=10.0,
        metavar="M",
        help="inside of an epoch keep the state so often (default: %(default)g)",
    )
    sub.add_argument(
        "--stream", action="store_true", help="read features block by block, also where they would fit in memory"
    )
    _threads(sub)
    sub = add("evaluate", "stage_two.evaluate", "judge a finished run again, from its weights and the features on disk")
    sub.add_argument("folder", type=Path, metavar="RUN", help="a folder work/DATASET/runs/HEAD-splitK-DIGEST/seedS")
    sub.add_argument("--device", default="cpu")
    _threads(sub)
    sub = add("export", "serving.export", "write a run as ONNX or OpenVINO graphs, checked against the run itself")
    sub.add_argument("folder", type=Path, metavar="RUN", help="a folder work/DATASET/runs/HEAD-splitK-DIGEST/seedS")
    sub.add_argument("--format", choices=("onnx", "openvino"), default="onnx", help="default: onnx")
    sub.add_argument("--out", type=Path, metavar="FOLDER", help="default: RUN/onnx or RUN/openvino")
    sub.add_argument("--check", type=_whole, default=24, metavar="N", help="test videos to run both on (%(default)s)")
    sub = add("stream", "serving.stream", "label a video, a camera or an address as its frames arrive")
    sub.add_argument("folder", type=Path, metavar="RUN", help="a folder work/DATASET/runs/HEAD-splitK-DIGEST/seedS")
    sub.add_argument(
        "source", metavar="VIDEO", help="a file, /dev/video0, or http(s)://, rtsp://, rtmp://, tcp://, udp://"
    )
    sub.add_argument(
        "--every", type=_positive, metavar="K", help="look at each K-th frame (default: 1, or as clips were trained)"
    )
    sub.add_argument(
        "--last", type=_positive, metavar="T", help="embeddings that the head sees; default: as in its tests"
    )
    _threads(sub)
    sub = add("score", "scoring.score", "label the videos of folders, tars and lists; resumes, and scores what is new")
    sub.add_argument("run_folder", type=Path, metavar="RUN", help="a folder work/DATASET/runs/HEAD-splitK-DIGEST/seedS")
    sub.add_argument("source", type=Path, nargs="+", metavar="SOURCE", help="a folder, a tar, a list file or a video")
    sub.add_argument("--out", type=Path, required=True, metavar="F", help="F.parquet (a folder of parts), .csv, .jsonl")
    sub.add_argument("--also", type=Path, action="append", default=[], metavar="RUN", help="another run, beside it")
    sub.add_argument("--top", type=_positive, default=5, metavar="K", help="classes named for each (default: 5)")
    sub.add_argument("--logits", action="store_true", help="all of them too")
    sub.add_argument("--root", type=Path, metavar="FOLDER", help="that a list's paths are below (default: the list's)")
    sub.add_argument("--only", action="append", default=[], metavar="GLOB", help="names to score, such as '*.mp4'")
    sub.add_argument("--window", type=_seconds, metavar="S", help="a row for each S seconds of a video, and segments")
    sub.add_argument("--stride", type=_seconds, metavar="S", help="seconds between windows (default: the window)")
    sub.add_argument(
        "--keep-features", type=Path, metavar="FOLDER", help="keep what was extracted, as stores of this --out"
    )
    _cluster(sub)
    _threads(sub)
    sub = add("features", "inventory.features", "list the stores; export, import or prune them")
    _dataset(sub)
    one = sub.add_mutually_exclusive_group()
    one.add_argument("--export", type=Path, metavar="PATH", help="write all stores to an HDF5 file or a folder")
    one.add_argument(
        "--import", type=Path, metavar="PATH", dest="import_", help="bring in stores, or features that the config names"
    )
    one.add_argument("--prune", action="store_true", help="remove stores and runs that the config no longer needs")
    sub.add_argument("--yes", action="store_true", help="prune without asking")
    sub.add_argument(
        "--layout",
        choices=("shards", "npy", "webdataset", "videos", "flat"),
        help="of an export: shards (an .h5 to import again), .npy files (a folder), tars, or HDF5 by video or flat",
    )
    _threads(sub)
    sub = add("verify", "stage_one.verify", "check every byte of every shard against its manifest")
    _dataset(sub)
    sub.add_argument("--repair", action="store_true", help="extract damaged and missing shards again")
    _threads(sub)
    sub = add("models", "inventory.models", "list networks and heads with parameters and MACs")
    sub.add_argument(
        "pattern", nargs="*", help="names of timm or torchvision networks, * allowed; default: the papers'"
    )
    sub.add_argument("--json", action="store_true", help="machine-readable")
    add("doctor", "inventory.doctor", "versions, devices, what is missing")
    sub = add("assemble", "stage_two.assemble", "write results/DATASET: leaderboard, figures, page")
    _dataset(sub)
    sub.add_argument("--out", type=Path, metavar="FOLDER", help="default: results/DATASET")
    sub.add_argument("--partial", action="store_true", help="from what is finished already")
    return top


def _dataset(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("dataset", metavar="DATASET", help="name of a config/DATASET.yaml")


def _threads(sub: argparse.ArgumentParser) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    sub.add_argument(
        "--threads",
        type=_positive,
        default=cores,
        metavar="N",
        help="cores to use (default: all, %(default)s); on a running cluster, those of each worker",
    )


def _cluster(sub: argparse.ArgumentParser) -> None:
    one = sub.add_mutually_exclusive_group()
    one.add_argument("--scheduler", metavar="ADDRESS", help="of a running Dask cluster, such as tcp://10.0.0.1:8786")
    one.add_argument("--workers", type=_positive, metavar="N", help="processes of a Dask cluster of its own, here")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1e-3 <= value <= 1e6:
        raise argparse.ArgumentTypeError(f"expected seconds between 0.001 and 1000000, got {text!r}")
    return value


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected minutes >= 0, got {text!r}")
    return value


def _whole(text: str, least: int = 0) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected a whole number >= {least}, got {text!r}")
    return int(text)


def _positive(text: str) -> int:
    return _whole(text, 1)


def _late(where: str) -> Callable[[Any], None]:
    module, function = where.split(".")

    def run(args: argparse.Namespace) -> None:
        getattr(import_module(f"pipelines.commands.{module}"), function)(args)

    return run
