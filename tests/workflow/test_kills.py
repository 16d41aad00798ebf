"""F07, F09, F18: Snakemake itself is killed, or started twice in one folder."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from pipelines.running import announce
from tests.media import share_networks, write_network, write_video
from tests.workflow import world

VIDEOS = 8
FRAMES = 200

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One shard of videos that take some seconds."""
    folder = tmp_path_factory.mktemp("kills") / "seed"
    clip = write_video(folder / "clip.avi", frames=FRAMES, codec="mpeg4")
    names = [world.name_of(number) for number in range(VIDEOS)]
    for name in names:
        (folder / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, folder / "videos" / f"{name}.avi")
    world.write_list(folder, names)
    write_network(folder / "network.safetensors", "test_resnet")
    share_networks(folder / "work" / "cache")
    rgb = {**world.CONFIG["extractors"]["rgb"], "sampling": {"kind": "every", "k": 1}}
    world.write_config(folder, {**world.CONFIG, "shard_size": VIDEOS, "extractors": {"rgb": rgb}})
    return folder


@pytest.fixture(scope="module")
def undisturbed(seed: Path) -> dict[str, str]:
    folder = shutil.copytree(seed, seed.parent / "undisturbed", symlinks=True)
    world.snakemake(folder, target(folder))
    return world.contents(world.store(folder))


@pytest.fixture
def folder(seed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(seed, tmp_path / "here", symlinks=True)


@pytest.fixture
def killed(folder: Path) -> list[psutil.Process]:
    """What ran below a Snakemake that was killed while its shard job was at work."""
    process = started(folder)
    below = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    return below


def target(folder: Path) -> str:
    """The summary of the one store, that is: stage one alone."""
    name = world.framepool(folder, "features", "tiny").split(":")[0]
    return f"work/tiny/features/{name}/store.json"


def started(folder: Path) -> subprocess.Popen[bytes]:
    """Snakemake, once its shard job has written rows."""
    process = subprocess.Popen(
        world.snakemake_command("--cores", "2", target(folder)),
        cwd=folder,
        env=world.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    features, deadline = folder / "work" / "tiny" / "features", time.monotonic() + 60
    while not any('"rows"' in p.read_text() for p in features.glob("*/00000.partial/journal.jsonl")):
        assert process.poll() is None, "it ended before it could be disturbed"
        assert time.monotonic() < deadline, "the shard job never wrote a row"
        time.sleep(0.02)
    return process


def test_the_same_command_goes_on_at_once(
    folder: Path, killed: list[psutil.Process], undisturbed: dict[str, str]
) -> None:
    assert list((folder / ".snakemake" / "locks").iterdir()), "F09: Snakemake left its locks behind"
    world.snakemake(folder, target(folder))
    assert killed and world.gone(killed)
    assert world.contents(world.store(folder)) == undisturbed


def test_the_mark_of_a_workflow_can_be_read(tmp_path: Path) -> None:
    """NFS gives a shared lock on nothing else."""
    with announce(tmp_path) as mark:
        assert mark.readable()


def test_nothing_of_a_killed_snakemake_goes_on(killed: list[psutil.Process]) -> None:
    assert killed and world.gone(killed)


def test_a_second_snakemake_is_refused(folder: Path, undisturbed: dict[str, str]) -> None:
    first = started(folder)
    first.send_signal(signal.SIGSTOP)  # so that it does not end before the other is refused
    printed = world.snakemake(folder, target(folder), code=1)
    assert "cannot be locked" in printed
    first.send_signal(signal.SIGCONT)
    assert first.wait(60) == 0
    assert world.contents(world.store(folder)) == undisturbed
