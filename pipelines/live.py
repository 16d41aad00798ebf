"""Labels as frames arrive: each frame is embedded once, the head sees the last T embeddings.

What comes from a file, or over a connection that waits, is taken whole; of a camera or a broadcast, which do not wait,
the newest frames are, and `dropped` counts the others. A run whose head is a CNN (tsn) keeps the scores of the last T
frames. An end-to-end head, such as a VTN with its encoder, runs as the OpenVINO model of `pipelines.streaming`; its T
is that of its clips, and at the start the first frame stands for those that never were.
Legend: T embeddings, C classes.

    for label in Live(of_run(folder)).labels("rtsp://camera/1", every=5):
        print(label.time_s, label.name, label.probability)
"""

from __future__ import annotations

import queue
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from av.video.frame import VideoFrame

from extract.config import FromVideo, RgbDiff
from extract.convert import prepare
from extract.lanes import middle
from extract.media import FOREVER, LIVE, Decoded, MediaError, decode, decode_live, probe, scheme_of
from extract.runtime import engine
from extract.samples import Array
from extract.samplings import Fps, Segments, Uniform, own_frames
from extract.scaler import Scaler
from features.atomic import Lock, make_folder, publish_folder
from features.errors import FramepoolError, UserError
from features.recipe import file_sha256
from heads.checkpoint import WEIGHTS
from heads.denormals import flushed
from heads.end_to_end import EndToEnd
from heads.streaming import Online
from pipelines.export.graphs import pictures
from pipelines.of_run import OfRun
from pipelines.plan import WORK
from pipelines.streaming import Stream, export

AHEAD: Final = 4  # frames that are decoded and wait
RATE_OVER: Final = 32  # frames
DEFAULT_LAST: Final = 16
_EARLY_US: Final = 1000  # some containers round times to milliseconds


@dataclass(frozen=True)
class Label:
    """The most probable class after a frame; probabilities of several labels a video do not sum to 1."""

    time_s: float  # of the frame, on the source's own clock
    name: str
    probability: float
    logits: npt.NDArray[np.float32]  # (C,)
    frames_per_s: float  # taken, over the last `RATE_OVER`


class Live:
    """A run ready for frames. `last` is T: default what the run's tests give the head."""

    def __init__(self, run: OfRun, *, last: int | None = None, threads: int = 1, cache: Path = WORK / "cache") -> None:
        """Raises `UserError` for a head of several modalities, of snippets, or of no pictures."""
        modality, reader, scaling = pictures(run)
        source, clips = run.sources[modality], isinstance(run.head, EndToEnd)
        snippets = own_frames(reader.config.sampling) > 1 and not clips  # type: ignore[union-attr]
        if isinstance(reader.config, RgbDiff) or snippets:
            fix = "stream a run on single frames"
            raise UserError("rows of several frames do not stream", where=run.folder, got=reader.config.kind, fix=fix)
        self.run, self._modality, self.dropped = run, modality, 0
        self._online = _online(run, cache, threads) if isinstance(run.head, EndToEnd) else None
        self.last = self._online.tokens if self._online else _rows_of_a_test(run) if last is None else last
        if self.last < 1:
            raise UserError("no frames to look back on", where="last", expected="1 or more", got=last)
        if last not in (None, self.last):
            fix = "leave out how many it is to see"
            raise UserError("an end-to-end head sees clips of one length", expected=self.last, got=last, fix=fix)
        sampling = getattr(reader.config, "sampling", None) if self._online else None
        # which frames labels() takes where nobody says, or how many a second
        self.every = int(getattr(sampling, "stride", getattr(sampling, "k", 1)))
        self.fps = sampling.fps if isinstance(sampling, Fps) else None
        self.damage = ""  # what was wrong with the file that was read last
        self._limits = reader.config.limits  # type: ignore[union-attr]
        crop_px = scaling["crop"] or scaling["resize"]
        width_px = scaling.get("width") or crop_px
        how = scaling["resize"] or crop_px, crop_px, scaling["interpolation"] or "bilinear"
        self._scaler: Callable[[], Scaler] = lambda: Scaler(*how, width_px=width_px)
        self._cut = middle((crop_px, width_px, 3), source.facts["transform"]["crop"]) if source is not reader else ()
        self._engine: Any = None
        if getattr(source.config, "precision", None) == "int8":
            fix = "train the run on features in fp32 or bf16"
            raise UserError("an int8 network takes whole batches, and no single frames", where=run.folder, fix=fix)
        if source.model is not None:
            single = replace(source.model, config=source.model.config.model_copy(update={"batch": 1}))
            self._engine = engine(single, prepare(single, cache), cache, threads=threads)
        self._threads = threads

    def labels(self, source: str, *, every: int | None = None) -> Iterator[Label]:
        """A label for each `every`-th frame of a file, a camera (``/dev/video0``) or an address (of `LIVE`); by default
        for those that an end-to-end head's clips were made of.

        Raises `UserError` where the source is none of these, `FramepoolError` where it gives no frames, or breaks off.
        """
        due = _Due(self.fps) if every is None and self.fps is not None else None
        every = (self.every if due is None else 1) if every is None else every
        if every < 1:
            raise UserError("no frames to take", where="every", expected="1 or more", got=every)
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            yield from self._labels(source, every, due)
        finally:
            torch.set_num_threads(before)

    def _labels(self, source: str, every: int, due: _Due | None) -> Iterator[Label]:
        ring: deque[Array] = deque(maxlen=self.last)
        clock: deque[float] = deque([time.perf_counter()], maxlen=RATE_OVER + 1)
        if self._online is not None:
            self._online.begin_again()
        for time_us, image in self._images(source, every, due):
            if self._online is not None:
                logits = self._online(image)
            else:
                ring.append(self._embedded(image))
                logits = self._logits(ring)
            clock.append(time.perf_counter())
            rate = (len(clock) - 1) * every / (clock[-1] - clock[0])
            yield self._label(time_us * 1e-6, logits, rate)

    def _embedded(self, image: Array) -> Array:
        """(S,S,3) uint8 -> (D,), rounded as the store does; of a CNN head its scores (C,)."""
        if self._engine is not None:
            rows: Array = self._engine.finish(self._engine.start(image[self._cut][None]))
            features: Array = rows[0].astype(np.float16)
            return features
        scores: Array = self._head(torch.from_numpy(np.ascontiguousarray(image))[None, None])[0].numpy()
        return scores

    def _logits(self, ring: deque[Array]) -> npt.NDArray[np.float32]:
        rows = np.stack(ring)
        if self._engine is None:
            mean: npt.NDArray[np.float32] = rows.mean(axis=0)
            return mean
        logits: npt.NDArray[np.float32] = self._head(torch.from_numpy(rows)[None].float()).numpy()[0]
        return logits

    @flushed()
    def _head(self, rows: torch.Tensor) -> torch.Tensor:
        mask = torch.ones(rows.shape[:2], dtype=torch.bool)
        with torch.inference_mode():
            logits: torch.Tensor = self.run.head({self._modality: rows}, {self._modality: mask})
        return logits.float()

    def _label(self, time_s: float, logits: npt.NDArray[np.float32], rate: float) -> Label:
        best = int(logits.argmax())
        shares = torch.from_numpy(logits)
        shares = shares.sigmoid() if self.run.several else shares.softmax(dim=0)
        return Label(time_s, self.run.classes[best], float(shares[best]), logits, rate)

    def _images(self, source: str, every: int, due: _Due | None) -> Iterator[tuple[int, Array]]:
        """(time_us, image) of each `every`-th frame that is `due`, decoded and scaled in a thread of its own."""
        scheme, waiting, stop = scheme_of(source), _Waiting(AHEAD), threading.Event()
        if scheme not in ("", "camera", *LIVE):
            known = f"a file, /dev/video0, or an address of {', '.join(LIVE)}"
            raise UserError("not a source", where=source, expected=known, got=f"{scheme}://")
        if not scheme and not Path(source).is_file():
            raise UserError(
                "no such file", where=source, fix="name a video, /dev/video0, or an address such as rtsp://"
            )
        drops = scheme in ("camera", *FOREVER)

        def work() -> None:
            scale, found = self._scaler(), Decoded()
            number = -1
            try:
                for number, (time_us, frame) in enumerate(self._frames(source, scheme, found)):
                    if number % every == 0 and (due is None or due(time_us)):
                        waiting.put((time_us, scale(frame)), drops, stop)
                    if stop.is_set():
                        return
                if number < 0:
                    raise MediaError("undecodable", found.first_error or "not one picture decodes")
                missing = "" if scheme else self._missing(source, number + 1)
                self.damage = "; ".join(filter(None, (missing, found.first_error)))
                waiting.put(None, False, stop)
            except BaseException as error:
                waiting.put(error, False, stop)

        thread = threading.Thread(target=work, daemon=True)
        self.damage = ""
        thread.start()
        what = "no frames"
        try:
            while (item := waiting.get()) is not None:
                if isinstance(item, MediaError):
                    raise FramepoolError(what, where=source, got=f"{item.outcome}: {item.reason}")
                if isinstance(item, BaseException):
                    raise item
                self.dropped, what = waiting.dropped, "no more frames"
                yield item
        finally:
            stop.set()
            waiting.clear()
            thread.join(1.0)

    def _missing(self, path: str, frames: int) -> str:
        """What a file lacks that has so many `frames`, by its own header; a few are no loss."""
        with suppress(MediaError):  # of decoding alone
            promised = probe(Path(path), self._limits).promised
            if promised - frames > min(2, promised // 10):
                return f"{frames} of {promised} frames decoded"
        return ""

    def _frames(self, source: str, scheme: str, found: Decoded) -> Iterator[tuple[int, VideoFrame]]:
        if scheme:
            return decode_live(source, self._limits)
        return ((time_us, frame) for _, time_us, frame in decode(Path(source), self._limits, found))


class _Due:
    """So many frames a second, by their times: the first at or after each moment, at most a millisecond before it."""

    def __init__(self, fps: float) -> None:
        self._step_us, self._next_us = 1e6 / fps, -float("inf")

    def __call__(self, time_us: int) -> bool:
        if time_us < self._next_us - _EARLY_US:
            return False
        start_us = self._next_us if self._next_us > -float("inf") else time_us
        passed = (time_us + _EARLY_US - start_us) // self._step_us
        self._next_us = start_us + (passed + 1) * self._step_us
        return True


class _Waiting:
    """A short queue between decoding and the network; one that drops gives up its oldest for the newest."""

    def __init__(self, size: int) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(size)
        self.dropped = 0

    def get(self) -> Any:
        return self._queue.get()

    def put(self, item: Any, drops: bool, stop: threading.Event) -> None:
        """Wait for room, or make some; gives up once nobody reads any more."""
        while not stop.is_set():
            try:
                self._queue.put(item, timeout=0 if drops else 0.1)
                return
            except queue.Full:
                if drops:
                    self._oldest_goes()

    def _oldest_goes(self) -> None:
        try:
            self._queue.get_nowait()
            self.dropped += 1
        except queue.Empty:
            pass

    def clear(self) -> None:
        while not self._queue.empty():
            try:
                self._queue.get_nowait()
            except queue.Empty:
                return


class _Online:
    """An end-to-end head frame by frame: (S,S,3) uint8 -> logits (C,)."""

    def __init__(self, head: EndToEnd, model: Path, threads: int) -> None:
        self.tokens, self._encoder = Online(head).tokens, head.encoder
        self._stream = Stream(model, threads=threads)
        self.begin_again = self._stream.begin_again

    def __call__(self, image: Array) -> npt.NDArray[np.float32]:
        frame = torch.from_numpy(np.ascontiguousarray(image))[None, None]
        cropped = self._encoder.cropped(frame, random=False)[0, 0]
        return self._stream(cropped.round().to(torch.uint8).numpy())


def _online(run: OfRun, cache: Path, threads: int) -> _Online:
    """The step of the run's head, converted once. Raises `UserError` for a head on flow."""
    head: Any = run.head
    folder = cache / f"online-{file_sha256(run.folder / WEIGHTS)[:16]}"
    with Lock(make_folder(cache) / f"{folder.name}.lock", wait_s=900):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=cache) as made:
                export(head, Path(made) / folder.name)
                publish_folder(Path(made) / folder.name, folder)
    return _Online(head, folder / "model.xml", threads)


def _rows_of_a_test(run: OfRun) -> int:
    """What a head is used to: its own number of test rows, else that of its extractor, else `DEFAULT_LAST`."""
    modality, reader, _ = pictures(run)
    own = run.config.rows(modality).test  # type: ignore[union-attr]
    config = reader.config
    if own is None and isinstance(config, FromVideo) and isinstance(config.sampling, Uniform | Segments):
        return config.sampling.n
    return own or DEFAULT_LAST
