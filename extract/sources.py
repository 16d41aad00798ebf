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
import re
import stat
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from extract.span import Media, Span
from features.errors import UserError, printable
from features.outcome import Outcome
from features.tars import Headers
from features.videolist.names import SOUND_SUFFIXES, VIDEO_SUFFIXES, refusal, unspeakable
from features.videolist.text import decoded

PACKED: Final = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".tbz2", ".txz", ".lzma")
NESTED: Final = (".tar", ".zip", ".7z", ".rar", *PACKED)
_LINE: Final = re.compile(r"^line \d+: ")  # of a list, which grows
_PADDING: Final = 64 << 10  # behind a tar's end there are zeros to a full record


@dataclass(frozen=True)
class Clip:
    """A video: `source` as the command names it, `name` within it (printable), and its bytes, or why it has none.

    `top` is what the name is below, wherever the command is given: a folder and a slash, or a tar; `of_all` is said of
    a whole archive or folder. `mark` changes when the file does.
    """

    source: str
    name: str
    media: Media | None = None
    refused: Outcome | None = None
    top: str = ""
    of_all: bool = False
    mark: str = ""

    @property
    def key(self) -> bytes:
        """16 bytes that tell it from every other; what is refused is another one once it can be read."""
        return self._key(_LINE.sub("", self.refused.reason) if self.refused else "")

    @property
    def placed(self) -> bytes:
        """The same of this very member of a tar, where several have one name."""
        return self._key(f"at {self.media.start}") if isinstance(self.media, Span) else self.key

    @property
    def tried(self) -> bytes:
        """The same of a video that failed: it is another one once its `mark` is."""
        return self.key if self.media is None else self._key(f"failed {self.mark}")

    def marked(self) -> Clip:
        """With the size and time that its file has now; of a tar's member those do not change."""
        if isinstance(self.media, Span):
            return replace(self, mark=f"{self.media.start} {self.media.size}")
        try:
            status = os.stat(self.media) if self.media is not None else None
        except OSError:
            return self
        return self if status is None else replace(self, mark=f"{status.st_size} {status.st_mtime_ns}")

    def _key(self, more: str) -> bytes:
        text = f"{self.top or self.source + chr(0)}{self.name}\0{more}"
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def walk(source: Path, root: Path | None = None, only: Sequence[str] = (), skip: Sequence[Path] = ()) -> Iterator[Clip]:
    """The videos of a folder (recursive, tars in it included), a tar, a list (paths below `root`, or below the list's
    folder) or of one file, in one order; `only` are patterns of names such as ``*.mp4``, `skip` files and folders that
    are none of them.

    Raises `UserError` where `source` cannot be read, or is a packed tar; at once, and not when the first is asked for.
    """
    return _wanted(_clips(source, root, _kind(source), frozenset(map(os.path.abspath, skip))), only)


def _wanted(clips: Iterator[Clip], only: Sequence[str]) -> Iterator[Clip]:
    for clip in clips:
        if not only or clip.of_all or any(fnmatch.fnmatch(clip.name, pattern) for pattern in only):
            yield clip


def _kind(source: Path) -> str:
    try:
        mode = source.stat().st_mode
    except (OSError, ValueError) as error:
        raise UserError("cannot read source", where=source, got=getattr(error, "strerror", error)) from None
    suffix = source.suffix.lower()
    if stat.S_ISDIR(mode):
        return "folder"
    if not stat.S_ISREG(mode):
        raise UserError("cannot read source", where=source, expected="a folder, a tar, a list or a video")
    if suffix in PACKED:
        fix = "unpack it to a plain .tar: only there a member can be read where it lies"
        raise UserError("packed archive", where=source, expected="a .tar", got=suffix, fix=fix)
    return "tar" if suffix == ".tar" else "video" if suffix[1:] in VIDEO_SUFFIXES | SOUND_SUFFIXES else "list"


def _clips(source: Path, root: Path | None, kind: str, skip: frozenset[str]) -> Iterator[Clip]:
    root = source if kind == "folder" else root if kind == "list" and root is not None else source.parent
    top = _tar_top(source) if kind == "tar" else os.path.join(os.path.abspath(root), "")
    if kind == "folder":
        found = _folder(source, skip)
    elif kind == "tar":
        found = _tar(source, str(source))
    elif kind == "video":
        found = iter([Clip(str(root), printable(source.name), source)])
    else:
        found = _list(source, root)
    for clip in found:
        yield clip if clip.top else replace(clip, top=top)


def _no(source: str, name: str, reason: str, outcome: Any = "refused", *, of_all: bool = False) -> Clip:
    return Clip(source, printable(name), None, Outcome(outcome=outcome, reason=printable(reason)), of_all=of_all)


def _folder(top: Path, skip: frozenset[str]) -> Iterator[Clip]:
    source, real_top = str(top), os.path.realpath(top)
    open_: list[Iterator[os.DirEntry[str]]] = []  # the folders that lead to where we are, and what is left of each

    def enter(folder: Path) -> Iterator[Clip]:
        try:
            with os.scandir(folder) as found:
                open_.append(iter(sorted(found, key=lambda entry: entry.name)))
        except OSError as error:
            name, reason = os.path.relpath(folder, top), f"cannot read folder: {error.strerror}"
            yield _no(source, name, reason, "undecodable", of_all=True)

    yield from enter(top)
    while open_:
        if (entry := next(open_[-1], None)) is None:
            open_.pop()
            continue
        path = Path(entry.path)
        name = path.relative_to(top).as_posix()
        if skip and os.path.abspath(path) in skip:
            continue
        if reason := unspeakable(name):
            yield _no(source, name, reason)
        elif entry.is_symlink():
            yield _linked(source, name, path, real_top)
        elif entry.is_dir():
            yield from enter(path)
        elif not entry.is_file():
            yield _no(source, name, "not a regular file")
        elif path.suffix.lower() == ".tar":
            yield from (replace(clip, top=_tar_top(path)) for clip in _tar(path, str(path)))
        else:
            yield Clip(source, printable(name), path)


def _tar_top(path: Path) -> str:
    return f"{os.path.abspath(path)}\0"


def _linked(source: str, name: str, path: Path, real_top: str) -> Clip:
    """A link is followed to a file below the top, and no further."""
    real = os.path.realpath(path)
    if os.path.commonpath([real_top, real]) != real_top:
        return _no(source, name, "a link that leads out of the folder")
    if not os.path.isfile(real):
        return _no(source, name, "a link to what is no file")
    if path.suffix.lower() == ".tar":
        return _no(source, name, "a link to a tar: give that as a source of its own")
    return Clip(source, printable(name), path)


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
        elif name.lower().endswith(".tar"):
            yield _no(source, name, f"line {number}: a tar: give it as a source of its own")
        else:
            yield Clip(source, _plain(name), root / name)


def _plain(name: str) -> str:
    """Without ``./`` and doubled slashes, so that a tar, a folder and a list call a video the same."""
    return printable("/".join(part for part in name.split("/") if part not in ("", ".")))


def _tar(path: Path, source: str) -> Iterator[Clip]:
    try:
        raw = io.FileIO(path)
    except OSError as error:
        yield _no(source, path.name, f"cannot be read: {error.strerror}", "undecodable", of_all=True)
        return
    with Headers(raw) as headers:
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
                rest = os.pread(raw.fileno(), _PADDING, tar.offset)
                damage = "more follows its end, or what follows is no header" if rest.strip(b"\0") else ""
        except (tarfile.TarError, OSError, ValueError, OverflowError, EOFError) as error:
            damage = str(error)
        if damage:  # said of the archive itself, so that what could not be read is not silently passed over
            reason = f"archive damaged after {number} members: {damage}"
            yield _no(source, path.name, reason, "undecodable", of_all=True)


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
