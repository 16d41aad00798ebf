"""A folder of .npy files, one a video, below it as deep as one likes.

rows = Npy(Path("output/i3d"), "rgb", None, ids)            # v_a_rgb.npy, v_a_timestamps_ms.npy, v_a_fps.npy
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from features.errors import UserError
from features.foreign.base import TIMES, Array, Collection, Unreadable, matched, read_npy

_BESIDE: Final = (f"_{TIMES}", "_fps")


class Npy(Collection):
    """`entries`: the path of a video's rows below the folder, without ``_<key>.npy``."""

    def __init__(self, path: Path, key: str | None, every_s: float | None, ids: Sequence[str]) -> None:
        super().__init__(path, every_s)
        if not path.is_dir():
            raise UserError("not a folder of .npy files", where=path, fix="set layout: hdf5 or webdataset for one file")
        self.root, self.end = path, f"_{key}" if key else ""
        names: dict[str, str] = {}
        for folder, _, files in os.walk(path):
            below = Path(folder).relative_to(path).as_posix()
            for file in files:
                stem = file.removesuffix(".npy")
                if stem != file and stem.endswith(self.end) and (key or not stem.endswith(_BESIDE)):
                    name = stem.removesuffix(self.end)
                    name = name if below == "." else f"{below}/{name}"
                    names[name] = name
        self.entries = matched(names, ids, path)

    def place(self, video: str) -> str:
        """See `Collection`."""
        return f"{self.entries[video]}{self.end}.npy" if video in self.entries else ""

    def _array(self, video: str) -> Array:
        return self._read(self.root / self.place(video))

    def _times(self, video: str, count: int) -> Array | None:
        for end in dict.fromkeys((f"{self.end}_{TIMES}", f"_{TIMES}")):
            path = self.root / f"{self.entries[video]}{end}.npy"
            if path.is_file():
                return self._read(path)
        return None

    def _rate_hz(self, video: str) -> float | None:
        path = self.root / f"{self.entries[video]}_fps.npy"
        if not path.is_file():
            return None
        rate = self._read(path)
        if rate.size != 1 or not 0 < float(rate.reshape(())) < 1e6:
            raise Unreadable("undecodable", f"{path.name} is no rate")
        return float(rate.reshape(()))

    def _read(self, path: Path) -> Array:
        try:
            if not path.resolve().is_relative_to(self.root.resolve()):
                raise Unreadable("refused", "a link that leads out of the folder")
            if not path.is_file():
                raise Unreadable("refused", "not a regular file")
            with path.open("rb") as stream:
                return read_npy(stream, os.fstat(stream.fileno()).st_size)
        except OSError as error:
            raise Unreadable("undecodable", f"cannot be read: {error.strerror}") from None
