"""Runs that somebody else made, and machines that are not like ours (F44, F46, F50)."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from extract.config import recipe
from features.atomic import Disk
from features.errors import FramepoolError
from features.recipe import digest, file_sha256
from heads import checkpoint
from pipelines.extractors import Stages
from pipelines.of_run import of_run
from pipelines.scoring import output
from tests.misplaced import places, put
from tests.scoring import world
from tests.scoring.test_score import by_video, close
from tests.workflow.world import environment

Call = Callable[[str], tuple[int, str]]


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


def changed(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    record = json.loads((run / "run.json").read_text())
    change(record)
    (run / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "", 7])
def test_names_of_extractors_are_no_paths(here: Path, call: Call, name: Any) -> None:
    changed(world.run_of("average"), lambda record: record["extractors"]["rgb"].update(extractor=name))
    code, said = call(f"score {world.run_of('average')} videos --out s.jsonl --keep-features kept --threads 1")
    assert code == 1 and "run does not load" in said and not (here / "s.jsonl").exists(), said


@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_weights_that_are_a_pickle_bomb_do_not_go_off(here: Path, call: Call, protocol: str) -> None:
    """Whoever made the run made every digest fit."""
    run, canary, bomb = world.run_of("average"), here / "canary", here / "bomb.pt"
    if protocol == "torch":
        torch.save({"conv1.weight": Bomb(canary)}, bomb)
    else:
        bomb.write_bytes(pickle.dumps(Bomb(canary)))
    pickle.loads(pickle.dumps(Bomb(here / "seen")))
    assert (here / "seen").exists(), "a bomb that does not go off where it could shows nothing"

    def arm(record: dict[str, Any]) -> None:
        own, sha = record["extractors"]["rgb"], file_sha256(bomb)
        own["weights"] = own["config"]["network"]["weights"] = str(bomb)
        own["recipe"]["network"]["weights"] = sha
        record["stores"]["rgb"]["digest"] = digest(own["recipe"])
        record["stores"]["rgb"]["facts"]["weights_sha256"] = sha

    changed(run, arm)
    code, said = call(f"score {run} videos --out s.jsonl --threads 1")
    assert code == 2 and "weights" in said and str(bomb) in said, said
    assert not canary.exists()


@pytest.mark.parametrize(
    ("hostile", "message"),
    [
        (b"[" * 100_000, "run does not load"),
        (b"[]", "run does not load"),
        (b'{"kind": "average"', "run does not load"),
        (b'{"kind": "nothing"}', "run does not load"),
        (b"\xff\xfe", "run does not load"),
    ],
)
def test_a_hostile_run_json_is_one_line(here: Path, call: Call, hostile: bytes, message: str) -> None:
    run = world.run_of("average")
    (run / "run.json").write_bytes(hostile)
    code, said = call(f"score {run} videos --out s.jsonl --threads 1")
    assert code in (1, 2) and message in said and len(said.splitlines()) == 1 and len(said) < 1000, said
    assert not (here / "s.jsonl").exists()


def test_whatever_stands_anywhere_in_a_run_json_is_right_or_a_line(here: Path) -> None:
    run = world.run_of("average")
    record = json.loads((run / "run.json").read_text())
    refused = 0
    for at in places(record):
        for value in (-1, {}, ["x"], None):
            (run / "run.json").write_text(json.dumps(put(record, at, value)))
            try:
                found = of_run(run)
                assert found.classes and not found.several
                assert [found.store(modality).name for modality in found.sources]
            except FramepoolError as error:
                refused += 1
                assert "\n" not in str(error), error
    assert refused > 200


def test_a_gigabyte_of_run_json_is_not_read(here: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    run = world.run_of("average")
    os.truncate(run / "run.json", 1 << 30)  # a hole: it takes no disk
    monkeypatch.setattr(checkpoint.json, "loads", lambda _: pytest.fail("it was read"))
    code, said = call(f"score {run} videos --out s.jsonl --threads 1")
    assert code == 1 and f"got {1 << 30} bytes, and at most {checkpoint.MAX_BYTES} are read" in said


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shapes", {"rgb": [10**12]}),
        ("shapes", {"rgb": ["many"]}),
        ("shapes", {"rgb": [-1]}),
        ("classes", ["a"] * 10**5),
    ],
)
def test_sizes_that_the_weights_do_not_have_are_refused(here: Path, call: Call, key: str, value: Any) -> None:
    """Before anything is allocated: ten terabytes of a layer would be no error line."""
    run = world.run_of("average")
    changed(run, lambda record: record.update({key: value}))
    code, said = call(f"score {run} videos --out s.jsonl --threads 1")
    assert code == 1 and "run does not load" in said and len(said) < 2000, said


@pytest.mark.parametrize(
    "where", ["../../../etc/passwd", "/etc/passwd", "file:" + "///etc/passwd", "|cat", "a\nb\x1b[31m"]
)
def test_paths_of_weights_are_only_looked_up(here: Path, call: Call, where: str) -> None:
    """A path that is not a file of the right sha256 is refused unopened, and printed without control characters."""
    run = world.run_of("average")
    shutil.rmtree(run.parent / "extractors")
    changed(run, lambda record: record["extractors"]["rgb"].update(weights=where))
    code, said = call(f"score {run} videos --out s.jsonl --threads 1")
    assert code == 2 and "weights are not there" in said and "\x1b" not in said and said.count("\n") == 1


def test_the_digest_is_that_of_what_runs(here: Path) -> None:
    """What a run says of its extractor is believed only where it comes to the digest of its store."""
    from heads.scoring import Trained

    run = Trained.load(world.run_of("average"))
    own = run.record["extractors"]["rgb"]
    stages = Stages(here / "work" / "cache")
    name = stages.of(run, "rgb")
    config = stages.found[name].config
    assert name == digest(recipe(config, own["recipe"]["network"]["weights"], None)) == digest(own["recipe"])


# What a machine may be like, as a line of sh before the program.
MACHINES = {
    "no HOME, LANG=C": "unset HOME; export LANG=C LC_ALL=C",
    "HOME that cannot be written": "export HOME=/proc/self",
    "TMPDIR that cannot be written": "export TMPDIR=/proc/self",
    "umask 077": "umask 077",
    "64 open files": "ulimit -n 64",
    "one core": "taskset -c 0",
    "python -O": "export PYTHONOPTIMIZE=1",
}


@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES)
def test_machines_that_are_not_like_ours(here: Path, tmp_path: Path, machine: str, call: Call) -> None:
    """In a folder with a space and an umlaut, too."""
    run = world.run_of("average")
    assert call(f"score {run} videos --out usual.jsonl --threads 2")[0] == 0
    folder = shutil.copytree(here, tmp_path / "süß ünd sauer", symlinks=True)
    before = MACHINES[machine]
    program = f"{sys.executable} -m pipelines score {run} videos --out s.jsonl --threads 2"
    line = f"{before} {program}" if before.startswith("taskset") else f"{before}; exec {program}"
    done = subprocess.run(
        ["sh", "-c", line], cwd=folder, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    close(by_video(here / "usual.jsonl"), by_video(folder / "s.jsonl"))


def test_a_full_disk_is_one_line_and_the_rest_comes_later(
    here: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, write, left = world.run_of("average"), Disk.write, [2]

    def full(stream: IO[bytes], data: bytes | memoryview) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(stream, data)

    monkeypatch.setattr(output, "PART_VIDEOS", 2)
    with monkeypatch.context() as patch:
        patch.setattr(Disk, "write", staticmethod(full))
        code, said = call(f"score {run} videos --out s.jsonl --threads 1")
    last = said.splitlines()[-1]
    assert code == 1 and last.startswith("framepool: ") and "No space left on device" in last, said
    assert call(f"score {run} videos --out s.jsonl --threads 1")[0] == 0
    assert len(by_video(here / "s.jsonl")) == 9
