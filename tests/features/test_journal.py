"""The journal takes up the longest prefix that is whole, whatever a kill or a power cut left behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.errors import FramepoolError
from features.journal import INDEX, Journal, finished
from features.outcome import Outcome
from tests.features import made

ROWS = made.videos([3, 0, 5, 2])
PARTIAL = "00000.partial"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A journal with everything in it, closed."""
    journal = made.open_journal(tmp_path, made.manifest(ROWS))
    made.fill(journal, ROWS)
    journal.note("relative_error", 0.25)
    journal.close()
    return tmp_path


def taken_up(folder: Path, **fields: Any) -> Journal:
    journal = made.open_journal(folder, made.manifest(ROWS, **fields))
    journal.close()
    return journal


def test_everything_is_taken_up(folder: Path) -> None:
    journal = taken_up(folder)
    assert journal.rows == 10 and journal.notes == {"relative_error": 0.25}
    assert [journal.outcomes[v] for v in range(4)] == made.outcomes(ROWS)
    assert [journal.rows_of(v) for v in range(4)] == [3, 0, 5, 2]
    np.testing.assert_array_equal(journal.block(0, 10), np.concatenate(ROWS))
    np.testing.assert_array_equal(journal.block(4, 7), np.concatenate(ROWS)[4:7])


def test_what_is_finished_is_told_without_taking_it_up(folder: Path) -> None:
    path = folder / PARTIAL / "journal.jsonl"
    assert finished(folder / PARTIAL) == {0, 1, 2, 3} and finished(folder / "nowhere") == set()
    lines = path.read_bytes().splitlines(keepends=True)
    last = next(n for n, line in enumerate(lines) if b'"video": 3' in line)
    path.write_bytes(b"".join(lines[:last]) + lines[last][:9])  # killed as it wrote
    before = path.read_bytes()
    assert finished(folder / PARTIAL) == {0, 1, 2} and path.read_bytes() == before


def test_any_torn_end_is_cut_off_and_completed(folder: Path) -> None:
    """For every length that the record can be cut to: the journal opens, and the same appends end in the same rows."""
    path = folder / PARTIAL / "journal.jsonl"
    whole = path.read_bytes()
    for size in [*range(0, len(whole), 7), len(whole) - 1]:
        path.write_bytes(whole[:size])
        journal = made.open_journal(folder, made.manifest(ROWS))
        lines = path.read_bytes()
        assert whole.startswith(lines) and lines.endswith(b"\n")
        made.fill(journal, ROWS)
        np.testing.assert_array_equal(journal.block(0, journal.rows), np.concatenate(ROWS))
        assert journal.outcomes == dict(enumerate(made.outcomes(ROWS)))
        journal.close()


@pytest.mark.parametrize("name", ["rows.bin", "index.bin"])
@pytest.mark.parametrize("damage", ["cut", "zeroed"])
def test_rows_that_do_not_match_their_crc_are_cut_off_with_all_that_follows(
    folder: Path, name: str, damage: str
) -> None:
    path = folder / PARTIAL / name
    data, row = path.read_bytes(), 8 if name == "rows.bin" else INDEX.itemsize
    path.write_bytes(data[: 5 * row] + (b"" if damage == "cut" else bytes(len(data) - 5 * row)))
    journal = taken_up(folder)
    assert journal.rows == 3 and sorted(journal.outcomes) == [0, 1]
    assert path.stat().st_size == 3 * row
    np.testing.assert_array_equal(journal.block(0, 3), ROWS[0])


def test_rows_without_a_line_are_cut_off(folder: Path) -> None:
    with (folder / PARTIAL / "rows.bin").open("ab") as stream:
        stream.write(b"half a ro")
    assert taken_up(folder).rows == 10
    assert (folder / PARTIAL / "rows.bin").stat().st_size == 10 * 8


@pytest.mark.parametrize(
    "line", [b"\0" * 40 + b"\n", b"[]\n", b"7\n", b"null\n", b'{"rows": "x"}\n', b'{"video": 1, "x": 2}\n', b"\xff\n"]
)
def test_lines_that_are_not_ours_are_cut_off(folder: Path, line: bytes) -> None:
    path = folder / PARTIAL / "journal.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + line)
    assert taken_up(folder).rows == 10
    assert path.read_bytes() == whole
    path.write_bytes(line + whole)
    assert taken_up(folder).rows == 0


@pytest.mark.parametrize("fields", [{"digest": "other"}, {"row_shape": (8,)}, {"dtype": "uint8"}])
def test_another_head_starts_afresh(folder: Path, fields: dict[str, Any]) -> None:
    journal = taken_up(folder, **fields)
    assert journal.rows == 0 and journal.outcomes == {} and journal.notes == {}
    sizes = {p.name: p.stat().st_size for p in (folder / PARTIAL).iterdir()}
    assert sizes["rows.bin"] == sizes["index.bin"] == 0
    assert (folder / PARTIAL / "journal.jsonl").read_text() == json.dumps(journal.head) + "\n"


def test_the_first_line_is_durable_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from features.atomic import Disk

    synced: list[int] = []
    monkeypatch.setattr(Disk, "fsync", staticmethod(synced.append))
    journal = made.open_journal(tmp_path, made.manifest(ROWS))
    assert len(synced) == 4  # three files and their folder
    journal.append_outcome(1, Outcome(outcome="too_short"))
    assert len(synced) == 4  # a kill loses nothing; only a power cut can lose the last seconds
    journal.close()


def test_a_file_in_place_of_the_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / PARTIAL).write_text("")
    with pytest.raises(FramepoolError, match=f"cannot write: .*{PARTIAL}: got File exists; make its folder exist"):
        made.open_journal(tmp_path, made.manifest(ROWS))
