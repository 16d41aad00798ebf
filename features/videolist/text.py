"""Reading annotation files as they come: BOM, CRLF, blank lines, spaces at the ends; every row knows its line."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from features.errors import UserError, nearest

README = "see README, section Your own data, for where lists go"


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """(``file:line``, text) of each line that is not blank."""
    for number, line in enumerate(_read(path).split("\n"), 1):
        if line.strip():
            yield f"{path}:{number}", line.strip()


def rows(path: Path, needed: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """(``file:line``, row) of a CSV with a header that has the columns `needed`."""
    reader = csv.reader(_read(path).split("\n"))
    header = [name.strip() for name in next(reader, [])]
    while header and not header[-1]:
        header.pop()  # a trailing comma
    for name in needed:
        if name not in header:
            expected = f"a column {name!r}"
            raise UserError(
                "malformed list", where=f"{path}:1", expected=expected, got=",".join(header), fix=nearest(name, header)
            )
    while (fields := _next(reader, path)) is not None:
        if not any(f.strip() for f in fields):
            continue
        where = f"{path}:{reader.line_num}"
        while len(fields) > len(header) and not fields[-1].strip():
            fields.pop()
        if len(fields) != len(header):
            raise UserError(
                "malformed list",
                where=where,
                expected=f"{len(header)} fields",
                got=f"{len(fields)}: {','.join(fields)[:80]}",
            )
        yield where, dict(zip(header, (f.strip() for f in fields), strict=True))


def _next(reader: Iterator[list[str]], path: Path) -> list[str] | None:
    try:
        return next(reader, None)
    except csv.Error as error:
        raise UserError("malformed list", where=f"{path}:{reader.line_num}", got=error) from None  # type: ignore[attr-defined]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig").replace("\r\n", "\n")
    except FileNotFoundError:
        raise UserError("annotation file is not there", where=path, fix=README) from None
    except (UnicodeDecodeError, OSError) as error:
        raise UserError("annotation file cannot be read", where=path, expected="UTF-8 text", got=error) from None
