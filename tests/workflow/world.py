"""A tiny dataset of its own in a folder, and the workflow run on it as a user would."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.media import share_networks, write_network, write_video

REPO = Path(__file__).resolve().parents[2]
VIDEOS = 9
CLASSES = ("Jump", "Run")
CONFIG: dict[str, Any] = {
    "title": "Tiny",
    "videos": {"format": "ucf101", "root": "videos", "lists": "lists"},
    "shard_size": 4,
    "seeds": [0],
    "splits": ["1"],
    "extractors": {
        "rgb": {
            "kind": "rgb",
            "sampling": {"kind": "uniform", "n": 4},
            "network": {"name": "test_resnet", "weights": "network.safetensors"},
            "transform": {"resize": 64, "crop": 64},
        }
    },
    "heads": {
        "average": {"kind": "average", "features": ["rgb"], "train": {"epochs": 2}},
        "ridge": {"kind": "ridge", "features": ["rgb"]},
    },
}


def build(folder: Path, videos: int = VIDEOS, *, frames: int = 8) -> Path:
    """Clips, their lists, weights and ``config/tiny.yaml`` under `folder`."""
    names = [name_of(number) for number in range(videos)]
    for number, name in enumerate(names):
        write_video(folder / "videos" / f"{name}.avi", frames=frames, seed=number, codec="mpeg4")
    write_list(folder, names)
    write_network(folder / "network.safetensors", "test_resnet")
    share_networks(folder / "work" / "cache")
    write_config(folder, CONFIG)
    return folder


def name_of(number: int) -> str:
    """The listed name of a clip, without its suffix."""
    label = CLASSES[number % 2]
    return f"{label}/v_{label}_g{number // 2 + 1:02d}_c01"


def write_list(folder: Path, names: Sequence[str]) -> None:
    """UCF101's files; of three videos of a class one is tested. The three splits are the same."""
    lists = folder / "lists"
    lists.mkdir(exist_ok=True)
    (lists / "classInd.txt").write_text("".join(f"{k} {name}\n" for k, name in enumerate(CLASSES, 1)))
    sides: dict[str, list[str]] = {"train": [], "test": []}
    for name in names:
        label, group = name.split("/")[0], int(name.split("_g")[1][:2])
        number = f" {CLASSES.index(label) + 1}" if group % 3 else ""
        sides["train" if group % 3 else "test"].append(f"{name}.avi{number}\n")
    for side, listed in sides.items():
        for split in "123":
            (lists / f"{side}list0{split}.txt").write_text("".join(listed))


def write_config(folder: Path, config: dict[str, Any], name: str = "tiny") -> None:
    (folder / "config").mkdir(exist_ok=True)
    (folder / "config" / f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def environment() -> dict[str, str]:
    """Modules come from the checkout and data from the folder that the command runs in."""
    return {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}


def snakemake_command(*arguments: str) -> list[str]:
    profile = str(REPO / "profiles" / "default")
    return [sys.executable, "-m", "snakemake", "-s", str(REPO / "Snakefile"), "--workflow-profile", profile, *arguments]


def snakemake(folder: Path, *arguments: str, code: int | None = 0) -> str:
    """Run Snakemake in `folder`; returns what it printed. `code` None: any but 0."""
    command = snakemake_command("--cores", "2", *(arguments or ("results/tiny",)))
    return _run(command, folder, code)


def framepool(folder: Path, *arguments: str, code: int | None = 0) -> str:
    """Run the command line in `folder`; returns what it printed on both streams."""
    return _run([sys.executable, "-m", "pipelines", *arguments], folder, code)


def command(folder: Path, command: list[str], code: int | None = 0) -> str:
    """Run any command in `folder`; returns what it printed on both streams."""
    return _run(command, folder, code)


def gone(processes: list[psutil.Process]) -> bool:
    """Whether they end within some seconds."""
    for _ in range(200):
        if not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes):
            return True
        time.sleep(0.05)
    return False


def _run(command: list[str], folder: Path, code: int | None) -> str:
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    printed = done.stdout + done.stderr
    assert done.returncode == code or (code is None and done.returncode), f"exit code {done.returncode}\n{printed}"
    return printed


def planned(folder: Path, *arguments: str) -> dict[str, int]:
    """How many jobs of each rule Snakemake would run now."""
    text = snakemake(folder, *(arguments or ("results/tiny",)), "--dry-run")
    return {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", text, re.M) if rule != "total"}


def store(folder: Path, extractor: str = "rgb") -> Path:
    """The one store of an extractor."""
    (found,) = (folder / "work" / "tiny" / "features").glob(f"{extractor}-*")
    return found


def contents(folder: Path) -> dict[str, str]:
    """sha256 of every file under `folder` by its path, without locks."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock" and ".snakemake" not in p.parts]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
