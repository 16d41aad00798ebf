"""Kill -9 at random moments: the same command ends in the rows of an undisturbed run, none twice (P2)."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.world import leftovers
from tests.media import write_video
from tests.scoring import world
from tests.scoring.test_score import by_video, close
from tests.workflow.world import environment

VIDEOS, KILLS = 500, 10
# Parts as small as a killed run would have after minutes: so that kills fall between and into them.
CODE = (
    "import sys; from pipelines import __main__; from pipelines.scoring import output; output.PART_VIDEOS = 8\n"
    "sys.exit(__main__.main(sys.argv[1:]))"
)


def start(here: Path, out: str) -> subprocess.Popen[str]:
    arguments = f"score {world.run_of('average')} archive.tar --out {out} --logits --threads 2".split()
    words = [sys.executable, "-c", CODE, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        words, cwd=here, env=environment(), stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_kills_at_random_moments_lose_and_double_nothing(here: Path, kind: str) -> None:
    for number in range(5):
        write_video(here / "clips" / f"{number}.mp4", frames=4 + 3 * number, seed=number)
    names = [(f"{n:03d}.mp4", here / "clips" / f"{n % 5}.mp4") for n in range(VIDEOS)]
    world.tar_of(here / "archive.tar", names)
    began = time.monotonic()
    whole = start(here, "whole.parquet")
    said = whole.communicate()
    seconds = time.monotonic() - began
    assert whole.returncode == 0, said
    chance, killed, fell, finished = random.Random(0), 0, 0, 0
    while killed < KILLS or not finished:
        out = here / f"s{finished}.{kind}"
        state = out.with_name(f"{out.name}.state") / "state.json"
        before = state.read_bytes() if state.exists() else b""
        one = start(here, out.name)
        share = chance.uniform(0.2, 1.0)
        if killed < KILLS and killed % 2:  # every other one a while after its first part, wherever that falls
            share *= 0.3
            while one.poll() is None and (state.read_bytes() if state.exists() else b"") == before:
                time.sleep(0.01)
        try:
            said = one.communicate(timeout=share * seconds if killed < KILLS else None)
        except subprocess.TimeoutExpired:
            os.killpg(one.pid, signal.SIGKILL)
            one.communicate()
            killed += 1
            fell += state.exists() and state.read_bytes() != before
            assert leftovers(one.pid) == []
            continue
        assert one.returncode == 0, said
        same(here / "whole.parquet", out)
        finished, last = finished + 1, out
    assert fell >= 2, "too few kills fell into the work itself for this to mean anything"
    world.tar_of(here / "archive.tar", [*names, *((f"more{n}.mp4", here / "clips" / "0.mp4") for n in range(10))])
    printed, _ = start(here, last.name).communicate()
    assert ": 10 videos scored in " in printed and f"{VIDEOS} were there before" in printed


def same(whole: Path, out: Path) -> None:
    """The same videos, each once, and where the format is one of numbers the same scores."""
    if out.suffix == ".parquet":
        assert len(world.rows_of(out)) == VIDEOS
        close(by_video(whole), by_video(out))
        return
    with out.open() as stream:
        rows = {row["video"]: row for row in csv.DictReader(stream)}
    assert len(rows) == VIDEOS and len(out.read_text().splitlines()) == VIDEOS + 1
    for video, row in by_video(whole).items():
        assert rows[video]["label"] == row["label"]
        assert float(rows[video]["probability"]) == pytest.approx(row["probability"], abs=1e-5)
