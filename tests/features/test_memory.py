"""How much memory a process may take, by files as Linux and SLURM leave them."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

import features.memory as module
from features.memory import available_bytes

FREE = 1000 << 20


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With 1000 MiB free, and no limit."""
    monkeypatch.setattr(psutil, "virtual_memory", type("M", (), {"available": FREE}))
    monkeypatch.delenv("SLURM_MEM_PER_NODE", raising=False)
    monkeypatch.setattr(module, "OWN", tmp_path / "cgroup")
    monkeypatch.setattr(module, "CGROUPS", tmp_path / "fs")
    return tmp_path


def put(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


def test_where_nothing_is_said_the_machine_counts(machine: Path) -> None:
    assert available_bytes() == FREE
    put(machine, cgroup="no such thing\n0::/a\n4:memory:/b")
    put(machine / "fs/a", memory__max="max", memory__current=5)
    put(machine / "fs/memory", memory__limit_in_bytes="what", memory__usage_in_bytes=5)
    assert available_bytes() == FREE


def test_the_least_of_the_cgroup_and_those_above_it(machine: Path) -> None:
    put(machine, cgroup="0::/job/step")
    put(machine / "fs/job/step", memory__max=800 << 20, memory__current=100 << 20)
    assert available_bytes() == 700 << 20
    put(machine / "fs/job", memory__max=500 << 20, memory__current=300 << 20)
    assert available_bytes() == 200 << 20
    put(machine / "fs/job", memory__stat=f"anon 7\nactive_file {10 << 20}\ninactive_file {20 << 20}")
    assert available_bytes() == 230 << 20, "the kernel gives files back"
    put(machine / "fs/job", memory__current=900 << 20)
    assert available_bytes() == 0


def test_a_container_of_version_1_is_the_mount(machine: Path) -> None:
    put(machine, cgroup="9:name=systemd:/x\n4:cpu,memory:/docker/0123\n0::/")
    stat = f"inactive_file 1\ntotal_inactive_file {50 << 20}"
    put(machine / "fs/memory", memory__limit_in_bytes=400 << 20, memory__usage_in_bytes=300 << 20, memory__stat=stat)
    assert available_bytes() == 150 << 20


@pytest.mark.parametrize(("said", "limited"), [("600", True), ("0", False), ("4G", False), ("", False)])
def test_a_job_of_slurm(monkeypatch: pytest.MonkeyPatch, said: str, limited: bool) -> None:
    monkeypatch.setenv("SLURM_MEM_PER_NODE", said)
    rss = psutil.Process().memory_info().rss
    assert available_bytes() == (pytest.approx(max(0, (600 << 20) - rss), abs=64 << 20) if limited else FREE)
