"""F52: all of Kinetics-400 is planned in seconds, in little memory, and without the libraries that jobs need."""

from __future__ import annotations

import os
import random
import re
import string
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from tests.workflow import world

TRAIN, VAL, CLASSES = 246_535, 19_907, 400
LETTERS = string.ascii_letters + string.digits + "-_"
PREFIX = "heavy:"
SPY = f"""
import atexit, os, sys
if "snakemake" in " ".join(sys.orig_argv):
    heavy = ("torch", "openvino", "zarr", "timm")
    atexit.register(lambda: print("{PREFIX}", *(n for n in heavy if n in sys.modules), file=sys.stderr))
"""


def write_lists(folder: Path) -> None:
    """Lists of Kinetics' size and form."""
    folder.mkdir(parents=True)
    chance = random.Random(0)
    for side, count in (("train", TRAIN), ("val", VAL)):
        rows = ["label,youtube_id,time_start,time_end,split"]
        for number in range(count):
            start, name = chance.randrange(300), "".join(chance.choices(LETTERS, k=11))
            rows.append(f"doing thing {number % CLASSES},{name},{start},{start + 10},{side}")
        (folder / f"{side}.csv").write_text("\n".join(rows) + "\n")


@pytest.mark.slow
def test_kinetics_is_planned_in_seconds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lists(tmp_path / "data" / "kinetics")
    config = yaml.safe_load((world.REPO / "config" / "kinetics.yaml").read_text())
    for name, network in (("resnet", "resnet152"), ("mobile", "mobilenetv2_100")):
        config["extractors"][name] = {"kind": "rgb", "network": {"name": network, "weights": "DEFAULT"}}
    config["heads"]["attention_cluster"]["features"] = ["rgb", "resnet", "mobile"]
    world.write_config(tmp_path, config, "kinetics")
    spy = tmp_path / "spy"
    spy.mkdir()
    (spy / "sitecustomize.py").write_text(SPY)
    environment = world.environment()
    environment["PYTHONPATH"] += f":{spy}"
    began = time.monotonic()
    with (tmp_path / "printed").open("w") as stream:
        process = subprocess.Popen(
            world.snakemake_command("--cores", "2", "results/kinetics", "--dry-run"),
            cwd=tmp_path,
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
        _, status, used = os.wait4(process.pid, 0)
    seconds, cpu_s, peak_mb = time.monotonic() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
    printed = (tmp_path / "printed").read_text()
    assert os.waitstatus_to_exitcode(status) == 0, printed[-2000:]
    shards = -(-(TRAIN + VAL) // 256)
    jobs = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", printed, re.M)}
    assert jobs["extract"] == 3 * shards and jobs["gather"] == 3 and jobs["train"] == 2
    with capsys.disabled():
        print(f"\n{TRAIN + VAL} videos, {jobs['total']} jobs: {seconds:.1f} s, {cpu_s:.1f} s of CPU, {peak_mb:.0f} MB")
    assert f"{PREFIX}\n" in printed
    assert peak_mb < 1000
    assert cpu_s < 10, "on one core; the time that others leave on this machine is not counted"
