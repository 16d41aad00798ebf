"""What a killed run leaves of its output, and that the next one writes every video once (P2); what `Seen` knows."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from extract.sources import Clip
from features.atomic import Disk
from features.errors import Busy, DamagedStore, FramepoolError, UserError
from pipelines.scoring.machine import Done
from pipelines.scoring.output import SCORES, SEGMENTS, Output
from pipelines.scoring.seen import Seen
from tests.scoring.world import rows_of

FORMATS = ("parquet", "csv", "jsonl")
VIDEOS = 3


def done(number: int) -> Done:
    clip = Clip("source", f"video{number}")
    row: dict[str, Any] = dict.fromkeys(SCORES)
    row |= {"source": clip.source, "video": clip.name, "run": "r", "start_s": 0.0, "end_s": 1.0, "outcome": "ok"}
    row |= {"labels": ["a", "-b"], "probabilities": [0.75, 0.25], "label": "a", "probability": 0.75, "reason": ""}
    segment: dict[str, Any] = {**{name: row[name] for name in SEGMENTS if name != "windows"}, "windows": 1}
    return Done(clip, [row, {**row, "run": "s"}], [segment])


def output(path: Path, **identity: Any) -> Output:
    return Output(path, {"runs": ["r"], **identity}, windows=True, logits=False)


def write(path: Path, parts: int = 2) -> None:
    """What is missing of VIDEOS videos, `parts` to a part."""
    with output(path) as out:
        for number in range(VIDEOS):
            if done(number).clip.key not in out.seen:
                out.add(done(number))
            if number % parts == 1:
                out.commit()


def contents(path: Path) -> list[bytes]:
    found = []
    for table in (path, path.with_suffix(f".segments{path.suffix}")):
        files = sorted(table.rglob("*.parquet")) if table.is_dir() else [table]
        found += [file.read_bytes() for file in files]
    return found


class Killed(BaseException):
    pass


FAILURES: dict[str, tuple[Callable[[], BaseException], bool]] = {  # what it raises, and whether from then on
    "kill": (Killed, True),
    "full": (lambda: OSError(28, "No space left on device"), True),
    "once": (lambda: OSError(5, "Input/output error"), False),
}


def failing(patch: pytest.MonkeyPatch, n: int, failure: str) -> None:
    """Operation number n of the disk fails."""
    raised, sticky = FAILURES[failure]
    count = [0]

    def wrapped(original: Any) -> Any:
        def counted(*args: Any) -> Any:
            count[0] += 1
            if count[0] == n + 1 or (sticky and count[0] > n):
                raise raised()
            return original(*args)

        return staticmethod(counted)

    for name in ("write", "fsync", "rename", "truncate"):
        patch.setattr(Disk, name, wrapped(getattr(Disk, name)))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("failure", FAILURES)
def test_stopped_at_every_operation_and_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, failure: str
) -> None:
    write(whole := tmp_path / f"whole.{kind}")
    for n in range(200):
        path, stopped = tmp_path / f"{n}.{kind}", False
        with monkeypatch.context() as patch:
            failing(patch, n, failure)
            try:
                write(path)
            except (Killed, FramepoolError):
                stopped = True
        for _ in range(2):  # the second finds nothing to do
            write(path)
            if kind == "parquet":
                assert rows_of(path) == rows_of(whole)
            else:
                assert contents(path) == contents(whole)
        if not stopped:
            break
    assert n > 20, "too few operations for this to mean anything"


def test_a_row_that_was_cut_is_written_again(tmp_path: Path) -> None:
    write(path := tmp_path / "s.jsonl")
    whole = path.read_bytes()
    with path.open("ab") as stream:
        stream.write(b'{"video": "half of a li')
    write(path)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("kind", FORMATS)
def test_lost_scores_are_not_taken_for_done(tmp_path: Path, kind: str) -> None:
    write(path := tmp_path / f"s.{kind}")
    last = max(path.glob("*")) if path.is_dir() else path
    os.truncate(last, last.stat().st_size - 1)
    with pytest.raises(DamagedStore, match=r"scores are gone: .*; remove .* to begin anew"):
        write(path)


def test_a_state_that_lost_videos_is_not_taken_up(tmp_path: Path) -> None:
    write(path := tmp_path / "s.jsonl")
    seen = tmp_path / "s.jsonl.state" / "seen.bin"
    for less in (16, 8):
        os.truncate(seen, seen.stat().st_size - less)
        with pytest.raises(DamagedStore, match=r"state of the scores does not load: .*seen.bin has [12] of 3 videos"):
            write(path)


def test_an_earlier_part_that_is_gone_is_missed(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    with output(path) as out:
        for number in range(VIDEOS):
            out.add(done(number))
            out.commit()
    parts = sorted(path.glob("*.parquet"))
    assert len(parts) > 1
    parts[0].unlink()
    with pytest.raises(DamagedStore, match=r"scores are gone: .*00000.parquet"):
        write(path)


def test_one_writer_at_a_time_and_only_of_the_same_making(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    with output(path), pytest.raises(Busy, match="held by process"):
        output(path).__enter__()
    with pytest.raises(UserError, match=r"scores of another making: .*: runs: expected \['r'\], got \['s'\]"):
        output(path, runs=["s"]).__enter__()


def test_a_spreadsheet_runs_no_cell(tmp_path: Path) -> None:
    path, one = tmp_path / "s.csv", done(0)
    with output(path) as out:
        out.add(Done(one.clip, [{**one.rows[0], "video": "=cmd()", "reason": "@x", "labels": ["+1", "b"]}]))
    assert ",'=cmd()," in path.read_text() and ",'@x" in path.read_text() and ",'+1|b," in path.read_text()


def test_seen_is_a_set() -> None:
    rng = np.random.default_rng(0)
    keys = [rng.bytes(16) for _ in range(40_000)]
    seen, known = Seen(b"".join(keys[:10_000])), set(keys[:10_000])
    for key in keys[10_000:30_000]:
        seen.add(key)
        known.add(key)
    assert len(seen) == 30_000
    assert all((key in seen) == (key in known) for key in keys)
    twin = keys[0][:8] + keys[1][8:]  # half of one and half of another
    assert twin not in seen
