"""Features in tars as WebDataset has them: a sample is the members of one name up to its first dot.

    Archery/v_Archery_g01_c01.rgb.npy, Archery/v_Archery_g01_c01.rgb_timestamps_ms.npy

Nothing is unpacked: members are read where they lie, and only plain tars are, as others cannot be read in any order. A
dot in a video's name stands as %2E.

rows = Tars(Path("features"), "rgb", None, ids)              # every .tar in the folder
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from features.atomic import make_folder, write_bytes
from features.errors import UserError
from features.foreign.base import LARGEST_BYTES, TIMES, Array, Collection, Unreadable, matched, read_npy
from features.tars import Headers

Member = tuple[Path, int, int]  # the tar, where the bytes begin, how many there are


class Tars(Collection):
    """`entries`: the member that holds a video's rows, and that of their times."""

    def __init__(
        self, path: Path, key: str | None, every_s: float | None, ids: Sequence[str], cache: Path | None = None
    ) -> None:
        super().__init__(path, every_s)
        self.root = path if path.is_dir() else path.parent
        tars = sorted(path.rglob("*.tar")) if path.is_dir() else [path]
        if not tars:
            raise UserError("no tars here", where=path, expected="a .tar", fix="set layout: npy for a folder")
        own, times = (f"{key}.npy", f"{key}_{TIMES}.npy") if key else ("npy", f"{TIMES}.npy")
        found: dict[str, dict[str, Member]] = {}
        for tar in tars:
            for name, start, size in _members(tar) if cache is None else _kept(tar, cache):
                folder, _, base = name.rpartition("/")
                stem, _, ending = base.partition(".")
                if ending in (own, times, f"{TIMES}.npy"):
                    plain = dotted(f"{folder}/{stem}" if folder else stem)
                    found.setdefault(plain, {})["rows" if ending == own else "times"] = (tar, start, size)
        self.entries = matched({name: parts for name, parts in found.items() if "rows" in parts}, ids, path)

    def place(self, video: str) -> str:
        """See `Collection`."""
        return self.entries[video]["rows"][0].relative_to(self.root).as_posix() if video in self.entries else ""

    def _array(self, video: str) -> Array:
        return _read(self.entries[video]["rows"])

    def _times(self, video: str, count: int) -> Array | None:
        return _read(self.entries[video]["times"]) if "times" in self.entries[video] else None


def undotted(video: str) -> str:
    """The name of a video's members up to their first dot."""
    folder, slash, base = video.rpartition("/")
    return folder + slash + base.replace("%", "%25").replace(".", "%2E")


def dotted(name: str) -> str:
    """The video that members of a name are of."""
    return name.replace("%2E", ".").replace("%25", "%")


def _kept(tar: Path, cache: Path) -> list[tuple[str, int, int]]:
    """`_members`, out of the cache where it has them: each shard's job asks, and headers of a million take minutes."""
    status = tar.stat()
    known_by = f"{os.path.abspath(tar)} {status.st_size} {status.st_mtime_ns}"
    path = cache / f"tar-{hashlib.sha256(known_by.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}.json"
    with suppress(OSError, ValueError, TypeError):
        return [(str(name), int(start), int(size)) for name, start, size in json.loads(path.read_bytes())]
    found = _members(tar)
    make_folder(cache)
    write_bytes(path, json.dumps(found).encode())
    return found


def _members(tar: Path) -> list[tuple[str, int, int]]:
    """(name, where its bytes begin, how many there are) of each file in it."""
    try:
        with Headers(io.FileIO(tar)) as headers, tarfile.open(fileobj=headers, mode="r:") as opened:
            return [(m.name, m.offset_data, m.size) for m in opened if m.isreg() and not m.issparse()]
    except (tarfile.TarError, OSError, ValueError, OverflowError, EOFError) as error:
        fix = "unpack it if it is compressed, or copy it again if it is cut short"
        raise UserError("not a plain tar", where=tar, got=str(error)[:120], fix=fix) from None


def _read(member: Member) -> Array:
    tar, start, size = member
    if size > LARGEST_BYTES:
        raise Unreadable("too_large", f"{size} bytes, limit {LARGEST_BYTES}")
    try:
        with tar.open("rb") as stream:
            stream.seek(start)
            return read_npy(stream, size)
    except OSError as error:
        raise Unreadable("undecodable", f"cannot be read: {error.strerror}") from None
