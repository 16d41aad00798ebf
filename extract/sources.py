"""What there is to score: the videos of folders, tars and lists, each with a name, one by one as they are asked for.

A tar is read where it lies: its headers tell where each member's bytes are, and nothing is unpacked. What strangers
wrote (members of a tar, lines of a list) is a plain path below its root or it is refused, with its number; links out of
a folder, devices, archives in archives and members that the archive is too short for are refused likewise. A refused
file is a file too: it has its outcome.

    for clip in walk(Path("archive.tar")): clip.name, clip.media, clip.refused
"""

from __future__ import annotations

import fnmatch
import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from extract.span import Media, Span
from features.errors import UserError, printable
from features.outcome import Outcome
from features.videolist.names import VIDEO_SUFFIXES, refusal
from features.videolist.text import decoded

HEADER_BYTES: Final = 1 << 20  # of a member; nobody's path is longer
PACKED: Final = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".tbz2", ".txz", ".lzma")
NESTED: Final = (".tar", ".zip", ".7z", ".rar", *PACKED)
_BLOCK: Final = 512


@dataclass(frozen=True)
class Clip:
    """A video: `source` as the command names it, `name` within it (printable), and its bytes, or why it has none."""

    source: str
    name: str
    media: Media | None = None
    refused: Outcome | None = None

    @property
    def key(self) -> bytes:
        """16 bytes that tell it from every other."""
        text = f"{self.source}\0{self.name}"
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def walk(source: Path, root: Path | None = None, only: Sequence[str] = ()) -> Iterator[Clip]:
    """The videos of a folder (recursive, tars in it included), a tar, a list (paths below `root`, or below the list's
    folder) or of one file, in one order; `only` are patterns of names such as ``*.mp4``.

    Raises `UserError` where `source` cannot be read, or is a packed tar.
    """
    for clip in _clips(source, root):
        if not only or any(fnmatch.fnmatch(clip.name, pattern) for pattern in only):
            yield clip


def _clips(source: Path, root: Path | None) -> Iterator[Clip]:
    try:
        mode = source.stat().st_mode
    except (OSError, ValueError) as error:
        raise UserError("cannot read source", where=source, got=getattr(error, "strerror", error)) from None
    suffix = source.suffix.lower()
    if stat.S_ISDIR(mode):
        yield from _folder(source, source, os.path.realpath(source))
    elif not stat.S_ISREG(mode):
        raise UserError("cannot read source", where=source, expected="a folder, a tar, a list or a video")
    elif suffix == ".tar":
        yield from _tar(source, str(source))
    elif suffix in PACKED:
        fix = "unpack it to a plain .tar: only there a member can be read where it lies"
        raise UserError("packed archive", where=source, expected="a .tar", got=suffix, fix=fix)
    elif suffix[1:] in VIDEO_SUFFIXES:
        yield Clip(str(source.parent), printable(source.name), source)
    else:
        yield from _list(source, root or source.parent)


def _no(source: str, name: str, reason: str, outcome: Any = "refused") -> Clip:
    return Clip(source, printable(name), None, Outcome(outcome=outcome, reason=printable(reason)))


def _folder(top: Path, folder: Path, real_top: str) -> Iterator[Clip]:
    source = str(top)
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        yield _no(source, os.path.relpath(folder, top), f"cannot read folder: {error.strerror}", "undecodable")
        return
    for entry in entries:
        path = folder / entry.name
        name = path.relative_to(top).as_posix()
        if any(not c.isprintable() for c in name):
            yield _no(source, name, "a control character, or a name that is not UTF-8")
        elif entry.is_symlink():
            yield _linked(source, name, path, real_top)
        elif entry.is_dir():
            yield from _folder(top, path, real_top)
        elif not entry.is_file():
            yield _no(source, name, "not a regular file")
        elif path.suffix.lower() == ".tar":
            yield from _tar(path, str(path))
        else:
            yield Clip(source, name, path)


def _linked(source: str, name: str, path: Path, real_top: str) -> Clip:
    """A link is followed to a file below the top, and no further."""
    real = os.path.realpath(path)
    if os.path.commonpath([real_top, real]) != real_top:
        return _no(source, name, "a link that leads out of the folder")
    if not os.path.isfile(real):
        return _no(source, name, "a link to what is no file")
    return Clip(source, name, path)


def _list(path: Path, root: Path) -> Iterator[Clip]:
    source, real_root = str(path), os.path.realpath(root)
    for number, line in enumerate(decoded(path).split("\n"), 1):
        name = line.strip()
        if not name:
            continue
        if reason := refusal(name):
            yield _no(source, name, f"line {number}: {reason}")
            continue
        real = os.path.realpath(root / name)
        if os.path.commonpath([real_root, real]) != real_root:
            yield _no(source, name, f"line {number}: a link that leads out of the root")
        elif not os.path.lexists(real):
            yield _no(source, name, f"line {number}: no such file under the root", "undecodable")
        else:
            yield Clip(source, _plain(name), root / name)


def _plain(name: str) -> str:
    """Without ``./`` and doubled slashes, so that a tar, a folder and a list call a video the same."""
    return printable("/".join(part for part in name.split("/") if part not in ("", ".")))


class _Headers(io.BufferedReader):
    """A tar as its headers are read from: nothing in it may ask for more than a header's worth."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _tar(path: Path, source: str) -> Iterator[Clip]:
    try:
        raw = io.FileIO(path)
    except OSError as error:
        yield _no(source, path.name, f"cannot be read: {error.strerror}", "undecodable")
        return
    with _Headers(raw) as headers:
        total = os.fstat(headers.fileno()).st_size
        at, number, damage = 0, 0, ""
        try:
            with tarfile.open(fileobj=headers, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    number += 1
                    tar.members.clear()  # type: ignore[attr-defined]  # it would keep those of a million
                    yield from _member(path, source, member, number, total)
                    if tar.offset <= at:
                        raise tarfile.ReadError("a header that leads back")
                    at = tar.offset
                rest = os.pread(raw.fileno(), _BLOCK, tar.offset)
                damage = "what follows is no header" if rest.strip(b"\0") else ""
        except (tarfile.TarError, OSError, ValueError, OverflowError, EOFError) as error:
            damage = str(error)
        if damage:  # said of the archive itself, so that what could not be read is not silently passed over
            yield _no(source, path.name, f"archive damaged after {number} members: {damage}", "undecodable")


def _member(path: Path, source: str, member: tarfile.TarInfo, number: int, total: int) -> Iterator[Clip]:
    name = member.name
    if member.isdir():
        return
    if not member.isreg():
        kind = "a link" if member.issym() or member.islnk() else "not a regular file"
        yield _no(source, name, f"member {number}: {kind}")
    elif member.issparse():
        yield _no(source, name, f"member {number}: a sparse file")
    elif reason := refusal(name):
        yield _no(source, name, f"member {number}: {reason}")
    elif Path(name).suffix.lower() in NESTED:
        yield _no(source, name, f"member {number}: an archive in an archive")
    elif member.size < 0 or member.offset_data + member.size > total:
        reason = f"member {number}: {member.size} bytes, but the archive ends before"
        yield _no(source, _plain(name), reason, "undecodable")
    else:
        yield Clip(source, _plain(name), Span(path, member.offset_data, member.size, name))
