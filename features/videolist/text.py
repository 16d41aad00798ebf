"""Annotation files as text: UTF-8 with or without byte order mark, any line ends, blank lines skipped.

for line, text in lines(Path("trainlist01.txt")): ...
header, rows = table(Path("train.csv"), ("label", "youtube_id"))
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from features.errors import UserError, near
from features.videolist.names import place

MISSING = 'put it there; README, "Your own data", says where lists go'


def decoded(path: Path) -> str:
    """The text of a file, every line ending with a newline alone."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError("annotation file is missing", where=path, fix=MISSING) from None
    except OSError as error:
        raise UserError("cannot read annotation file", where=path, got=error.strerror) from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        got = f"byte {error.object[error.start]:#04x}"
        raise UserError("not text", where=place(path, line), expected="UTF-8", got=got) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of every line that is not blank, stripped."""
    for number, line in enumerate(decoded(path).split("\n"), 1):
        if text := line.strip():
            yield number, text


def table(path: Path, required: Sequence[str]) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The header of a CSV file, in lower case, and its rows: (line, cells as many as the header has, stripped).

    A comma at the end of a line is forgiven. Raises `UserError` where a `required` column is missing.
    """
    rows = _rows(path)
    line, header = next(rows, (1, []))
    header = [name.casefold() for name in _trimmed(header, 0)]
    for name in required:
        if name not in header:
            expected, got = ",".join(required), ",".join(header) or "nothing"
            fix = f"rename {found!r}" if (found := near(name, header)) else ""
            raise UserError(f"column {name!r} is missing", where=place(path, line), expected=expected, got=got, fix=fix)
    for name in header:
        if not name or header.count(name) > 1:
            what = f"column {name!r} twice" if name else "column without a name"
            raise UserError(what, where=place(path, line), got=",".join(header))
    return header, _fitted(rows, header, path)


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    # str.splitlines would also break at characters that are none of CSV's business, such as U+2028.
    reader = csv.reader((f"{line}\n" for line in decoded(path).split("\n")), strict=True)
    first = 1  # of the row: a quoted cell may span lines, and a quote that is not closed all that follow
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                yield first, cells
            first = reader.line_num + 1
    except csv.Error as error:
        fix = "look for a quote that is not closed"
        raise UserError("malformed CSV", where=place(path, first), got=str(error), fix=fix) from None


def _fitted(rows: Iterator[tuple[int, list[str]]], header: list[str], path: Path) -> Iterator[tuple[int, list[str]]]:
    width = len(header)
    for line, row in rows:
        cells = row if len(row) == width else _trimmed(row, width)
        if len(cells) != width:
            expected = f"{width} columns ({','.join(header)})"
            raise UserError("row does not fit the header", where=place(path, line), expected=expected, got=len(cells))
        yield line, cells


def _trimmed(cells: list[str], width: int) -> list[str]:
    while len(cells) > width and not cells[-1]:
        cells = cells[:-1]
    return cells
