"""Where scores go: a folder of parquet parts, or one CSV or JSON lines file, written part by part.

    scores.parquet/00000.parquet, ...                parts; a folder that parquet readers take as one table
    scores.segments.parquet/...                      merged segments, where there are windows
    scores.parquet.state/  state.json                what is to be said of each video, and how much of the rest counts
                           seen.bin                  16 bytes a scored video (`Clip.key`)

A part counts once state.json says so; what a killed run left beyond that is cut off by the next. So each video is
written once, whenever the run is killed.

    with Output(Path("scores.parquet"), identity, windows=False, logits=False) as output:
        if clip.key not in output.seen: output.add(done)
"""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from features.atomic import Disk, Lock, fsync_folder, make_folder, remove, write_bytes, write_json, writing
from features.errors import DamagedStore, UserError
from features.outcome import FAILED
from pipelines.scoring.machine import Done, Row
from pipelines.scoring.seen import KEY_BYTES, Seen

PART_VIDEOS: Final = 4096
PART_BYTES: Final = 256 << 20
PART_S: Final = 60.0  # a kill costs no more than what was scored since
FORMATS: Final = ("parquet", "csv", "jsonl")
SCORES: Final = {
    "source": "string",
    "video": "string",
    "run": "string",
    "duration_s": "double",
    "start_s": "double",
    "end_s": "double",
    "label": "string",
    "probability": "double",
    "labels": "strings",
    "probabilities": "doubles",
    "logits": "floats",
    "outcome": "string",
    "reason": "string",
}
SEGMENTS: Final = {
    **{name: SCORES[name] for name in ("source", "video", "run", "start_s", "end_s", "label", "probability")},
    "windows": "int32",
}
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would run a cell that begins so


class Output:
    """The scores at `path`, whose suffix is the format. `identity` is what must be the same when they are taken up."""

    def __init__(self, path: Path, identity: dict[str, Any], *, windows: bool, logits: bool) -> None:
        self.path, self._identity = path, json.loads(json.dumps(identity))
        kind = path.suffix[1:].lower()
        if kind not in FORMATS:
            got = path.suffix or "no suffix"
            raise UserError("unknown format of scores", where=path, expected=".parquet, .csv or .jsonl", got=got)
        left_out = (() if windows else ("start_s", "end_s")) + (() if logits else ("logits",))
        make: type[_Table] = _Parquet if kind == "parquet" else _Csv if kind == "csv" else _Jsonl
        self._scores = make(path, {k: v for k, v in SCORES.items() if k not in left_out})
        self._segments = make(path.with_suffix(f".segments.{kind}"), SEGMENTS) if windows else None
        self._state = path.with_name(f"{path.name}.state")
        self.seen, self.videos, self.parts = Seen(), 0, 0
        self.keep: Callable[[int, Sequence[Done]], None] | None = None  # called with a part before it counts
        self._waiting: list[Done] = []
        self._bytes = 0  # of kept features among them
        self._half = False  # a commit was begun and not ended: the next run takes it back
        self._since = time.monotonic()
        self._stack = ExitStack()

    @property
    def paths(self) -> list[Path]:
        """What it writes."""
        segments = [] if self._segments is None else [self._segments.path]
        return [self._scores.path, *segments, self._state]

    def __enter__(self) -> Self:
        make_folder(self._state)
        self._stack.enter_context(Lock(self._state / "lock"))
        try:
            self._take_up()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        """What is finished is kept, also when something else failed."""
        try:
            if not self._half and (kind is None or issubclass(kind, Exception | SystemExit)):
                self.commit()
        finally:
            self._stack.close()

    def add(self, done: Done) -> None:
        """One more video; each once."""
        self.seen.add(_key(done))
        self._waiting.append(done)
        self._bytes += 0 if done.video is None else done.video.nbytes
        if len(self._waiting) == PART_VIDEOS or time.monotonic() - self._since > PART_S or self._bytes > PART_BYTES:
            self.commit()

    def commit(self) -> None:
        """What was added counts from now on."""
        if not self._waiting:
            return
        self._half = True
        if self.keep is not None:
            self.keep(self.parts, self._waiting)
        sizes = {"scores": self._scores.write(self.parts, [row for done in self._waiting for row in done.rows])}
        if self._segments is not None:
            rows = [row for done in self._waiting for row in done.segments]
            sizes["segments"] = self._segments.write(self.parts, rows)
        _append(self._state / "seen.bin", self.videos * KEY_BYTES, b"".join(map(_key, self._waiting)))
        self.videos, self.parts = self.videos + len(self._waiting), self.parts + 1
        self._say(sizes)
        self._waiting, self._bytes, self._since, self._half = [], 0, time.monotonic(), False

    def _say(self, sizes: dict[str, int]) -> None:
        state = {"identity": self._identity, "videos": self.videos, "parts": self.parts, "sizes": sizes}
        write_json(self._state / "state.json", state)

    def _take_up(self) -> None:
        path = self._state / "state.json"
        tables = {"scores": self._scores, **({"segments": self._segments} if self._segments is not None else {})}
        if not path.exists():
            for table in tables.values():
                if table.path.exists():
                    fix = "choose another --out, or remove it"
                    raise UserError("scores of something else", where=table.path, got="no state beside it", fix=fix)
            self._say({})
            for table in tables.values():
                table.begin()
            return
        try:
            state = json.loads(path.read_bytes())
            found, sizes = state["identity"], state["sizes"]
            self.videos, self.parts = int(state["videos"]), int(state["parts"])
            keys = np.fromfile(self._state / "seen.bin", np.uint8, self.videos * KEY_BYTES) if self.videos else b""
            if len(keys) < self.videos * KEY_BYTES:
                raise ValueError(f"seen.bin has {len(keys) // KEY_BYTES} of {self.videos} videos")
        except (OSError, ValueError, KeyError, TypeError) as error:
            fix = f"remove it and {self.path} to begin anew"
            raise DamagedStore("state of the scores does not load", where=path, got=error, fix=fix) from None
        if found != self._identity:
            differs = next(k for k in self._identity if found.get(k) != self._identity[k])
            where, fix = f"{self.path}: {differs}", "choose another --out"
            expected, got = found.get(differs), self._identity[differs]
            raise UserError("scores of another making", where=where, expected=expected, got=got, fix=fix)
        for name, table in tables.items():
            table.begin() if self.parts == 0 else table.cut(self.parts, sizes[name])
        self.seen = Seen(bytes(keys))


def _key(done: Done) -> bytes:
    """What the next run knows it by: what failed is tried again once it has changed."""
    failed = any(row["outcome"] in FAILED for row in done.rows)
    return done.clip.tried if failed else done.clip.key


class _Table:
    """One table in parts. Sizes are of what counts: of the last part (parquet) or of the file."""

    def __init__(self, path: Path, columns: dict[str, str]) -> None:
        self.path, self.columns = path, columns

    def begin(self) -> None:
        """Make it, without rows."""
        raise NotImplementedError

    def write(self, part: int, rows: Sequence[Row]) -> int:
        """Make the rows durable as part number `part`; the size."""
        raise NotImplementedError

    def cut(self, parts: int, size: int) -> None:
        """Take away what is beyond; there is at least one part. Raises `DamagedStore` where there is less."""
        raise NotImplementedError

    def _lost(self, path: Path, expected: int, got: int) -> DamagedStore:
        fix = f"remove {self.path} and its .state to begin anew"
        where = f"{expected} bytes or more" if expected == 1 else f"{expected} bytes"
        return DamagedStore("scores are gone", where=path, expected=where, got=f"{got} bytes", fix=fix)


class _Parquet(_Table):
    def begin(self) -> None:
        self._pyarrow()
        self._from(0)

    def write(self, part: int, rows: Sequence[Row]) -> int:
        pyarrow, parquet = self._pyarrow()
        base = {"string": pyarrow.string(), "double": pyarrow.float64(), "int32": pyarrow.int32()}
        lists = {"strings": pyarrow.string(), "doubles": pyarrow.float64(), "floats": pyarrow.float32()}
        types = base | {name: pyarrow.list_(one) for name, one in lists.items()}
        schema = pyarrow.schema([(name, types[kind]) for name, kind in self.columns.items()])
        stream = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema=schema), stream, compression="zstd")
        write_bytes(self._part(part), stream.getvalue())
        return len(stream.getvalue())

    def cut(self, parts: int, size: int) -> None:
        self._from(parts)
        for part in range(parts):
            path = self._part(part)
            got = path.stat().st_size if path.is_file() else 0
            if got == 0 or (part == parts - 1 and got != size):
                raise self._lost(path, size if part == parts - 1 else 1, got)

    def _from(self, parts: int) -> None:
        """Without what a killed run left from this part on."""
        make_folder(self.path)
        for path in self.path.glob("*.parquet"):
            if path.stem.isdigit() and int(path.stem) >= parts:
                remove(path)

    def _part(self, part: int) -> Path:
        return self.path / f"{part:05d}.parquet"

    def _pyarrow(self) -> tuple[Any, Any]:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            fix = "install pyarrow, or choose .csv or .jsonl"
            raise UserError("no writer of parquet here", where=self.path, fix=fix) from None
        return pyarrow, pyarrow.parquet


class _Lines(_Table):
    """A text file that grows."""

    def begin(self) -> None:
        make_folder(self.path.parent)
        head = self._head()
        write_bytes(self.path, head)
        self._size = len(head)

    def write(self, part: int, rows: Sequence[Row]) -> int:
        self._size = _append(self.path, self._size, self._text(rows).encode())
        return self._size

    def cut(self, parts: int, size: int) -> None:
        got = self.path.stat().st_size if self.path.is_file() else 0
        if got < size:
            raise self._lost(self.path, size, got)
        self._size = _append(self.path, size, b"")

    def _head(self) -> bytes:
        return b""

    def _text(self, rows: Sequence[Row]) -> str:
        raise NotImplementedError


class _Jsonl(_Lines):
    def _text(self, rows: Sequence[Row]) -> str:
        return "".join(json.dumps({k: row[k] for k in self.columns}, ensure_ascii=False) + "\n" for row in rows)


class _Csv(_Lines):
    """Lists with | between; cells that a spreadsheet would run begin with an apostrophe."""

    def _head(self) -> bytes:
        return (",".join(self.columns) + "\n").encode()

    def _text(self, rows: Sequence[Row]) -> str:
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows([_cell(row[name]) for name in self.columns] for row in rows)
        return stream.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return "|".join(f"{v:.8g}" if isinstance(v, float) else _cell(v) for v in value)
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _append(path: Path, size: int, data: bytes) -> int:
    """`data` after the first `size` bytes of a file, durably; the new size."""
    with writing(path):
        fresh = not path.exists()
        with path.open("r+b" if not fresh else "w+b") as stream:
            Disk.truncate(stream, size)
            stream.seek(0, os.SEEK_END)
            Disk.write(stream, data)
            Disk.fsync(stream.fileno())
        if fresh:
            fsync_folder(path.parent)
    return size + len(data)
