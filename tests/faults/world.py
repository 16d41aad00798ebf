"""A small world to break: one shard of tiny clips, and what must hold whatever was done to it.

python -m tests.faults.world FOLDER            # extract its shard, as a job would
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path

from extract.config import MapTransform, NetworkConfig, Pixels, Rgb, Transform, recipe
from extract.fingerprint import Item
from extract.samplings import Uniform
from extract.shard import Task, extract_shard
from features.manifest import Manifest
from features.recipe import file_sha256
from features.store import shards, verify_shard
from tests.media import share_networks, write_network, write_video

VIDEOS = 14


def build(folder: Path) -> Path:
    """Clips of several lengths, one of them broken, and the weights of a small network."""
    for number in range(VIDEOS):
        write_video(folder / "videos" / f"clip{number:02d}.mp4", frames=6 + 3 * (number % 4), seed=number)
    (folder / "videos" / "clip05.mp4").write_bytes(b"not a video")
    write_network(folder / "network.safetensors", "test_resnet")
    share_networks(folder / "cache")
    return folder


def task(folder: Path, *, store: Path | None = None, pixels: bool = False) -> Task:
    """The job: every frame count differs, so batches of 8 cross video borders."""
    config: Pixels | Rgb
    if pixels:
        config = Pixels(kind="pixels", sampling=Uniform(n=5), transform=MapTransform(resize=32, crop=32))
    else:
        network = NetworkConfig(name="test_resnet", weights=folder / "network.safetensors")
        config = Rgb(kind="rgb", sampling=Uniform(n=11), network=network, transform=Transform(resize=64, crop=64))
    weights = None if pixels else folder / "network.safetensors"
    return Task(
        extractor="x",
        config=config,
        recipe=recipe(config, None if weights is None else file_sha256(weights)),
        weights=weights,
        shard=0,
        items=tuple(Item(f"clip{n:02d}", f"clip{n:02d}.mp4") for n in range(VIDEOS)),
        root=folder / "videos",
        store=store or folder / "store",
        cache=folder / "cache",
    )


def run(folder: Path, store: Path) -> subprocess.Popen[bytes]:
    """Start the job in a process of its own."""
    command = [sys.executable, "-m", "tests.faults.world", str(folder), str(store)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, start_new_session=True)


def contents(store: Path) -> dict[str, str]:
    """sha256 of every published file, by its path."""
    files = [p for p in store.rglob("*") if p.is_file()]
    return {str(p.relative_to(store)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def check(store: Path, world: Task) -> list[Manifest]:
    """What is published verifies, its outcomes add up to the list, and no decoder is left behind."""
    found = [verify_shard(store, shard) for shard in shards(store)] if store.is_dir() else []
    for manifest in found:
        if [i.id for i in world.items] != list(manifest.ids):
            raise AssertionError(f"ids {manifest.ids}")
    return found


def leftovers(pid: int) -> list[int]:
    """Processes of the session that `pid` leads, a moment after it was told to end."""
    import psutil

    for _ in range(50):
        left = [p.pid for p in psutil.process_iter() if _session(p.pid) == pid and p.status() != psutil.STATUS_ZOMBIE]
        if not left:
            return []
        time.sleep(0.05)
    return left


def _session(pid: int) -> int:
    import os

    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1


if __name__ == "__main__":
    extract_shard(task(Path(sys.argv[1]), store=Path(sys.argv[2])), workers=2, lock_wait_s=120)
