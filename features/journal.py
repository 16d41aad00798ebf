"""The journal of a shard in the making: rows as they come, and which videos are finished.

    00042.partial/ rows.bin      rows of shape `row_shape`, one after the other
                   index.bin     (video int32, time_us int64) for each row
                   journal.jsonl first line: what is being made; then a line per block of rows and per finished video

A line for rows carries their CRC, so that after a kill, or a power cut that lost unsynced pages, what is taken up again
is the longest prefix that is whole. A job whose first line differs (another recipe, another list) starts afresh.
"""

from __future__ import annotations

import json
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from features.atomic import Disk, fsync_folder, make_folder, writing
from features.outcome import Outcome

INDEX: Final = np.dtype([("video", "<i4"), ("time_us", "<i8")])
FSYNC_EVERY_S = 5.0  # a kill loses nothing that was written; only a power cut can lose the last seconds


def finished(folder: Path) -> set[int]:
    """The videos that the journal in `folder` has an outcome of; none where there is no journal."""
    found = set()
    with suppress(OSError, ValueError):  # the last line may be half written
        for line in (folder / "journal.jsonl").read_bytes().splitlines()[1:]:
            value = json.loads(line)
            if isinstance(value, dict) and "video" in value:
                found.add(int(value["video"]))
    return found


class Journal:
    """Append-only record of a shard in the making; opening it takes up what is there.

    `head` says what is being made and holds `row_shape` and `dtype`. One writer (the shard's lock holder).
    """

    def __init__(self, folder: Path, head: dict[str, Any]) -> None:
        self.folder, self.head = folder, head
        self.row_shape: tuple[int, ...] = tuple(head["row_shape"])
        self.dtype = np.dtype(head["dtype"])
        self.row_bytes = int(np.prod(self.row_shape, dtype=np.int64)) * self.dtype.itemsize
        self.outcomes: dict[int, Outcome] = {}
        self.notes: dict[str, Any] = {}
        self.rows = 0
        make_folder(folder)
        with writing(folder):
            self._streams = {name: self._open(name) for name in ("rows.bin", "index.bin", "journal.jsonl")}
        try:
            self._take_up()
        except BaseException:
            self.close()
            raise
        self._synced = time.monotonic()

    def close(self) -> None:
        for stream in self._streams.values():
            with suppress(OSError):  # what could not be written has been said, and is still in the buffer
                stream.close()

    def rows_of(self, video: int) -> int:
        """How many rows of `video` are already here."""
        return int(np.count_nonzero(self.index()["video"] == video))

    def index(self) -> npt.NDArray[Any]:
        """(rows,) records of `INDEX`."""
        return np.fromfile(self.folder / "index.bin", INDEX, self.rows)

    def block(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows [start, stop) as they were appended."""
        count = (stop - start) * self.row_bytes // self.dtype.itemsize
        values = np.fromfile(self.folder / "rows.bin", self.dtype, count, offset=start * self.row_bytes)
        return values.reshape(stop - start, *self.row_shape)

    def append_rows(self, rows: npt.NDArray[Any], index: npt.NDArray[Any]) -> None:
        """`rows` (n, *row_shape) and their `index` (n,) of `INDEX`."""
        data, records = np.ascontiguousarray(rows).tobytes(), index.tobytes()
        with writing(self.folder):
            Disk.write(self._streams["rows.bin"], data)
            Disk.write(self._streams["index.bin"], records)
        self.rows += len(rows)
        self._line({"rows": self.rows, "crc": zlib.crc32(records, zlib.crc32(data))})

    def append_outcome(self, video: int, outcome: Outcome) -> None:
        """`video` is finished: all its rows are here."""
        self.outcomes[video] = outcome
        self._line({"video": video, **outcome.to_json()})

    def note(self, name: str, value: Any) -> None:
        """Keep a fact that only the first batch can tell."""
        self.notes[name] = value
        self._line({"note": name, "value": value})

    def _line(self, value: dict[str, Any]) -> None:
        with writing(self.folder):
            Disk.write(self._streams["journal.jsonl"], json.dumps(value).encode() + b"\n")
            if time.monotonic() - self._synced > FSYNC_EVERY_S:
                for stream in self._streams.values():
                    Disk.fsync(stream.fileno())
                self._synced = time.monotonic()

    def _open(self, name: str) -> IO[bytes]:
        path = self.folder / name
        return path.open("r+b" if path.exists() else "w+b")

    def _take_up(self) -> None:
        lines, rows, index = (self._streams[n] for n in ("journal.jsonl", "rows.bin", "index.bin"))
        good = 0
        for number, line in enumerate(lines):
            try:
                if not line.endswith(b"\n") or not self._accept(number, json.loads(line), rows, index):
                    break
            except (ValueError, TypeError, KeyError, AttributeError):  # what a power cut left is no line of ours
                break
            good += len(line)
        with writing(self.folder):
            for stream, size in (
                (lines, good),
                (rows, self.rows * self.row_bytes),
                (index, self.rows * INDEX.itemsize),
            ):
                Disk.truncate(stream, size)
                stream.seek(size)
        if good == 0:
            self._synced = float("-inf")  # make the first line durable at once
            self._line(self.head)
            fsync_folder(self.folder)

    def _accept(self, number: int, value: Any, rows: IO[bytes], index: IO[bytes]) -> bool:
        if number == 0:
            return bool(value == json.loads(json.dumps(self.head)))
        if "video" in value:
            video = value.pop("video")
            self.outcomes[video] = Outcome(**value)
        elif "note" in value:
            self.notes[value["note"]] = value["value"]
        else:
            fresh = value["rows"] - self.rows
            crc = zlib.crc32(rows.read(fresh * self.row_bytes))
            if zlib.crc32(index.read(fresh * INDEX.itemsize), crc) != value["crc"]:
                return False
            self.rows = value["rows"]
        return True
